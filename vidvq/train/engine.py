"""DeepSpeed, imported here alone: an engine for the generator and one for the discriminator.

Weights and optimizer states leave and enter an engine as complete tensors, whatever its ZeRO stage. A state can be
loaded at any time, also in the middle of a step.
"""

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
# DeepSpeed logs its start-up at length; a run has its own log.
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
os.environ.setdefault("DS_LOG_LEVEL", "warning")
# It calls collectives by names that torch deprecates, with a warning at each call.
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
from vidvq.train.distributed import DistributedContext, all_gather  # noqa: E402

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# Its shared-memory collectives for CPUs need a compiler when a job starts; gloo does the same without one.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
_MOMENTS = ("exp_avg", "exp_avg_sq")


def make_engine(module: nn.Module, optimizer: OptimizerConfig, config: TrainConfig, context: DistributedContext) -> Any:
    """A DeepSpeed engine around a module, whose weights stay fp32; bf16 and fp16 are autocast.

    Args:
        module: the network; its parameters that require a gradient are trained.
        optimizer: the optimizer's settings.
        config: the run's config; batch size, ZeRO stage and precision become DeepSpeed's.
        context: this process in the job.
    """
    # DeepSpeed partitions weights as flat memory, so that memory must follow the order of the axes.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=_make_optimizer(parameters, optimizer, config),
        config=deepspeed_config(config, optimizer, context.size),
    )
    assert isinstance(engine, DeepSpeedEngine)
    # DeepSpeed's own process group has a timeout of half an hour.
    group: Any = engine.data_parallel_group
    _set_pg_timeout(timedelta(seconds=config.lost_after_s), group)
    return engine


def set_lr(engine: Any, lr: float) -> None:
    """Set the learning rate of the engine's next step."""
    for group in _torch_optimizer(engine).param_groups:
        group["lr"] = lr


def local_weight(parameter: nn.Parameter) -> Tensor:
    """This rank's part of a weight: all of it, or under ZeRO 3 a flat, padded shard."""
    return parameter.ds_tensor if _is_sharded(parameter) else parameter  # type: ignore[attr-defined]


def whole_weight(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """Assemble a tensor that is laid out like a weight from the ranks' local parts; every rank calls it."""
    if not _is_sharded(parameter):
        return local.detach()
    flat = torch.cat([shard.flatten() for shard in all_gather(local.detach())])
    return flat[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]


def local_part(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """This rank's part of a complete tensor that is laid out like a weight; the inverse of :func:`whole_weight`."""
    if not _is_sharded(parameter):
        return whole
    size = local_weight(parameter).numel()
    start = size * torch.distributed.get_rank()
    flat = whole.flatten()[start : start + size]
    return nn.functional.pad(flat, (0, size - len(flat)))


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's complete weights and its persistent buffers; every rank calls it."""
    weights = {name: whole_weight(weight, local_weight(weight)) for name, weight in module.named_parameters()}
    return weights | _persistent_buffers(module)


@torch.no_grad()
def load_weights(engine: Any, tensors: dict[str, Tensor]) -> None:
    """Load what :func:`whole_state` returned, and drop the gradients of an unfinished step; every rank calls it.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape; nothing is changed then.
    """
    module, stage = engine.module, engine.zero_optimization_stage()
    buffers = _persistent_buffers(module)
    expected = {name: getattr(weight, "ds_shape", weight.shape) for name, weight in module.named_parameters()}
    expected |= {name: buffer.shape for name, buffer in buffers.items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        wrong = min(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
        raise ValueError(f"{wrong} has shape {found.get(wrong)}, not {expected.get(wrong)}")
    _drop_gradients(engine)
    if stage == 3:
        # Releases the gathered weights, which would hide the shards.
        engine.optimizer.checkpoint_event_prologue()
    for name, weight in module.named_parameters():
        local_weight(weight).data.copy_(local_part(weight, tensors[name]))
    for name, buffer in buffers.items():
        buffer.copy_(tensors[name])
    if stage:
        engine.optimizer.refresh_fp32_params()
    if stage == 3:
        engine.optimizer.checkpoint_event_epilogue()


def optimizer_state(engine: Any) -> dict[str, Tensor]:
    """The optimizer's complete moments by parameter, on the CPU, and its ``steps``; every rank calls it."""
    slots = list(_torch_optimizer(engine).state.values())
    tensors = {"steps": torch.tensor(int(slots[0]["step"]) if slots else 0)}
    if slots:
        for name, parameter in engine.module.named_parameters():
            for moment in _MOMENTS if parameter.requires_grad else ():
                tensors[f"{moment}.{name}"] = _read_moment(engine, parameter, moment).float().cpu().contiguous()
    return tensors


def load_optimizer_state(engine: Any, tensors: dict[str, Tensor]) -> None:
    """Load what :func:`optimizer_state` returned, under any ZeRO stage and number of ranks."""
    steps = int(tensors["steps"])
    if not steps and not _torch_optimizer(engine).state:
        return
    _make_slots(engine, steps)
    for name, parameter in engine.module.named_parameters():
        for moment in _MOMENTS if parameter.requires_grad and steps else ():
            _write_moment(engine, parameter, moment, tensors[f"{moment}.{name}"])


def deepspeed_config(config: TrainConfig, optimizer: OptimizerConfig, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration, derived from the run's."""
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
    """The type that autocast computes in; None for fp32."""
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
    """The tensors that the optimizer steps: the weights, or under ZeRO this rank's flat shards."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    if stage:
        return list(engine.optimizer.single_partition_of_fp32_groups)
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def _make_slots(engine: Any, steps: int) -> None:
    """Make the state that optimizers make in their first step: zero moments after ``steps`` steps."""
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


def _drop_gradients(engine: Any) -> None:
    """Return to the start of a step; the micro-batches of an unfinished one have left gradients behind."""
    engine.micro_steps = 0
    engine.zero_grad()
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if not stage:
        return
    zero.zero_grad()
    zero.reset_cpu_buffers()
    if stage == 3:
        zero.averaged_gradients = {}
        return
    zero.micro_step_id = -1
    for gradients in (zero.averaged_gradients, zero.all_grad_tensors):
        gradients.update(dict.fromkeys(gradients))


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
        safe_set_local_optimizer_state(parameter, local_part(parameter, value), moment)
    elif stage:
        safe_set_full_optimizer_state(parameter, value, moment)
    else:
        _torch_optimizer(engine).state[parameter][moment].copy_(value)


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    saved = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_tensor")
