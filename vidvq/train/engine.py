"""DeepSpeed: the only place that imports it. Two engines, one for the generator and one for the discriminator."""

import logging
import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout

# Chosen before DeepSpeed loads: without a GPU it would look for one.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# DeepSpeed tells of its own start-up at length; a run has its own log.
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
os.environ.setdefault("DS_LOG_LEVEL", "warning")
# It calls collectives by names that torch is about to change, and torch says so at each of them.
warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)

import deepspeed  # noqa: E402
from deepspeed.runtime.engine import DeepSpeedEngine  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    safe_get_full_optimizer_state,
    safe_get_local_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state  # noqa: E402

from vidvq.train.config import OptimizerConfig, TrainConfig  # noqa: E402
from vidvq.train.world import World  # noqa: E402

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# Its shared-memory collectives for CPUs are compiled when a job starts, and gloo does the same without a compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
_MOMENTS = ("exp_avg", "exp_avg_sq")


def make_engine(module: nn.Module, optimizer: OptimizerConfig, config: TrainConfig, world: World) -> Any:
    """A DeepSpeed engine around a module, which keeps fp32 weights; bf16 and fp16 are autocast.

    Args:
        module: what is trained: its parameters that require a gradient.
        optimizer: how.
        config: of the run; its batch size, ZeRO stage and precision become DeepSpeed's.
    """
    # DeepSpeed sends weights as bytes and shares them out flat, which needs them in the order of their axes.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=_make_optimizer(parameters, optimizer, config),
        config=deepspeed_config(config, optimizer, world.size),
    )
    assert isinstance(engine, DeepSpeedEngine)
    # DeepSpeed makes a group of its own, which would wait for half an hour.
    group: Any = engine.data_parallel_group
    _set_pg_timeout(timedelta(seconds=config.lost_after_s), group)
    return engine


def set_lr(engine: Any, lr: float) -> None:
    """Give the engine's next step its learning rate."""
    for group in _torch_optimizer(engine).param_groups:
        group["lr"] = lr


def local_weight(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a weight: all of it, or under ZeRO 3 a flat share."""
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter  # type: ignore[attr-defined]


def whole_weight(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """Put together a tensor of which each rank holds what :func:`local_weight` says; every rank calls it."""
    if not hasattr(parameter, "ds_tensor"):
        return local.detach()
    shares = [torch.empty_like(local) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(shares, local.detach().contiguous())
    flat = torch.cat([share.flatten() for share in shares])
    return flat[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights and saved buffers, whole; every rank calls it."""
    weights = {name: whole_weight(weight, local_weight(weight)) for name, weight in module.named_parameters()}
    saved = module.state_dict().keys()
    return weights | {name: buffer for name, buffer in module.named_buffers() if name in saved}


def optimizer_state(engine: Any) -> dict[str, Tensor]:
    """The optimizer's moments by parameter, whole and on the CPU, and ``steps``; every rank calls it."""
    slots = list(_torch_optimizer(engine).state.values())
    tensors = {"steps": torch.tensor(int(slots[0]["step"]) if slots else 0)}
    if slots:
        for name, parameter in engine.module.named_parameters():
            for moment in _MOMENTS if parameter.requires_grad else ():
                tensors[f"{moment}.{name}"] = _read_moment(engine, parameter, moment).float().cpu().contiguous()
    return tensors


def load_optimizer_state(engine: Any, tensors: dict[str, Tensor]) -> None:
    """Give a new engine what :func:`optimizer_state` returned, under whatever ZeRO stage and number of ranks."""
    if not int(tensors["steps"]):
        return
    _make_slots(engine, int(tensors["steps"]))
    for name, parameter in engine.module.named_parameters():
        for moment in _MOMENTS if parameter.requires_grad else ():
            _write_moment(engine, parameter, moment, tensors[f"{moment}.{name}"])


def deepspeed_config(config: TrainConfig, optimizer: OptimizerConfig, ranks: int) -> dict[str, Any]:
    """DeepSpeed's own configuration, derived from a run's."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if optimizer.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    half = {"bf16": "bfloat16", "fp16": "float16"}.get(config.precision)
    return {
        "train_batch_size": config.data.batch_size,
        "train_micro_batch_size_per_gpu": config.data.micro_batch(ranks),
        "gradient_accumulation_steps": config.data.accumulation(ranks),
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": half is not None, "dtype": half or "bfloat16"},
        "steps_per_print": 1 << 60,
        "wall_clock_breakdown": False,
    }


def half_precision(config: TrainConfig) -> torch.dtype | None:
    """What autocast computes in, or None."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)


def _make_optimizer(parameters: list[nn.Parameter], optimizer: OptimizerConfig, config: TrainConfig) -> Any:
    settings: dict[str, Any] = {
        "lr": optimizer.lr,
        "betas": optimizer.betas,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if optimizer.offload:
        return deepspeed.ops.adam.DeepSpeedCPUAdam(parameters, adamw_mode=True, **settings)
    if optimizer.kind == "radam":
        return torch.optim.RAdam(parameters, decoupled_weight_decay=True, **settings)
    return torch.optim.AdamW(parameters, fused=optimizer.fused, **settings)


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _flat_groups(engine: Any) -> list[Tensor]:
    """What the optimizer steps: the weights themselves, or under ZeRO this rank's flat shares of them."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    if stage:
        return list(engine.optimizer.single_partition_of_fp32_groups)
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def _make_slots(engine: Any, steps: int) -> None:
    """Optimizers make their state in their first step; make it here, to be filled."""
    optimizer = _torch_optimizer(engine)
    whole = isinstance(optimizer, deepspeed.ops.adam.DeepSpeedCPUAdam)
    for tensor in _flat_groups(engine):
        step = steps if whole else torch.tensor(float(steps))
        if not whole and optimizer.defaults.get("fused"):
            step = step.to(tensor.device)  # type: ignore[union-attr]
        optimizer.state[tensor] = {"step": step} | {moment: torch.zeros_like(tensor) for moment in _MOMENTS}
    if engine.zero_optimization_stage() in (1, 2):
        zero = engine.optimizer
        for group, tensor in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(group, tensor, optimizer.state)


def _read_moment(engine: Any, parameter: nn.Parameter, moment: str) -> Tensor:
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return whole_weight(parameter, safe_get_local_optimizer_state(parameter, moment).flatten())
    if stage:
        whole = safe_get_full_optimizer_state(parameter, moment)
        assert whole is not None
        return whole
    return _torch_optimizer(engine).state[parameter][moment]


def _write_moment(engine: Any, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
    stage = engine.zero_optimization_stage()
    if stage == 3:
        share = local_weight(parameter).numel()
        start = share * torch.distributed.get_rank()
        flat = value.flatten()[start : start + share]
        safe_set_local_optimizer_state(parameter, nn.functional.pad(flat, (0, share - len(flat))), moment)
    elif stage:
        safe_set_full_optimizer_state(parameter, value, moment)
    else:
        _torch_optimizer(engine).state[parameter][moment].copy_(value)
