"""DeepSpeed: the only place that imports it. Two engines, one for the generator and one for the discriminator."""

import logging
import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Chosen before DeepSpeed loads: without a GPU it would look for one.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# DeepSpeed tells of its own start-up at length; a run has its own log.
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
os.environ.setdefault("DS_LOG_LEVEL", "warning")

import deepspeed  # noqa: E402
from deepspeed.runtime.engine import DeepSpeedEngine  # noqa: E402
from deepspeed.runtime.zero.utils import ZeRORuntimeException  # noqa: E402

from vidvq.train.config import OptimizerConfig, TrainConfig  # noqa: E402

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# Its shared-memory collectives for CPUs are compiled when a job starts, and gloo does the same without a compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
_LOOPBACK = "127.0.0.1"
_TAG = "state"


@dataclass(frozen=True)
class World:
    """This process among the processes of a training job."""

    rank: int
    size: int
    device: torch.device


def join_world() -> World:
    """Join the job that torchrun or a scheduler started (RANK, WORLD_SIZE, MASTER_ADDR...), or be a job of one."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind((_LOOPBACK, 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR=_LOOPBACK, MASTER_PORT=str(port))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


def leave_world() -> None:
    """Leave the job; every rank calls it at the end."""
    torch.distributed.destroy_process_group()


def make_engine(module: nn.Module, optimizer: OptimizerConfig, steps: int, config: TrainConfig, world: World) -> Any:
    """A DeepSpeed engine around a module.

    Args:
        module: what is trained.
        optimizer: how.
        steps: over which the learning rate falls.
        config: of the run; its batch size, ZeRO stage and precision become DeepSpeed's.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: _lr_share(step, steps, optimizer))
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=adamw,
        lr_scheduler=schedule,  # type: ignore[arg-type]
        config=deepspeed_config(config, optimizer, world.size),
        dist_init_required=False,
    )
    assert isinstance(engine, DeepSpeedEngine)
    return engine


def save_engine(engine: Any, folder: Path) -> None:
    """Write an engine's weights, optimizer and schedule in DeepSpeed's own format; every rank calls it."""
    engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)


def load_engine(engine: Any, folder: Path) -> None:
    """Read what :func:`save_engine` wrote; every rank calls it. DeepSpeed unpickles: read only one's own runs.

    Raises:
        ValueError: it is not there, or was written by another number of ranks.
    """
    try:
        path, _ = engine.load_checkpoint(str(folder), tag=_TAG)
    except (FileNotFoundError, KeyError, AssertionError, ZeRORuntimeException) as error:
        raise ValueError(f"{folder} cannot be resumed: {error}") from error
    if path is None:
        raise ValueError(f"{folder} holds no training state of this run; remove that checkpoint to use the one before")


def any_rank(flag: bool, world: World) -> bool:
    """Whether the flag is set on any rank; every rank calls it."""
    if world.size == 1:
        return flag
    votes = torch.tensor(int(flag), device=world.device)
    torch.distributed.all_reduce(votes)
    return bool(votes)


def wait_for_all(world: World) -> None:
    """Return when every rank has come here."""
    if world.size > 1:
        torch.distributed.barrier()


def deepspeed_config(config: TrainConfig, optimizer: OptimizerConfig, ranks: int) -> dict[str, Any]:
    """DeepSpeed's own configuration, derived from a run's."""
    return {
        "train_batch_size": config.data.batch_size * ranks,
        "train_micro_batch_size_per_gpu": config.data.batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 1 << 60,
        "wall_clock_breakdown": False,
    }


def _lr_share(step: int, steps: int, optimizer: OptimizerConfig) -> float:
    if step < optimizer.warmup_steps:
        return (step + 1) / optimizer.warmup_steps
    progress = (step - optimizer.warmup_steps) / max(steps - optimizer.warmup_steps, 1)
    return optimizer.final_lr + (1 - optimizer.final_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
