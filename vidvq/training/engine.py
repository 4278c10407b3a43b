"""DeepSpeed engines of trained networks. The only module that imports DeepSpeed.

Weights and optimizer states are read and written as complete tensors, independent of the ZeRO stage. A state can be
loaded at any time, even in the middle of a step.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import _foreach_copy_ as foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import _set_pg_timeout

# Must be set before the import: without a GPU, DeepSpeed otherwise probes for accelerators.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Silences DeepSpeed's start-up messages; vidvq has its own log.
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
os.environ.setdefault("DS_LOG_LEVEL", "warning")
# DeepSpeed calls deprecated collectives, each of which warns.
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

from vidvq.pretrained.device import allow_tf32  # noqa: E402
from vidvq.training.config import EngineSettings, OptimizerConfig  # noqa: E402
from vidvq.training.distributed import DistributedContext, all_gather, any_rank  # noqa: E402
from vidvq.training.guard import RollbackNeeded  # noqa: E402

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed's shared-memory CPU collectives need a compiler at run time; gloo does not.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
_MOMENTS = ("exp_avg", "exp_avg_sq")


@contextmanager
def deepspeed_groups() -> Iterator[None]:
    """Destroy DeepSpeed's process groups after the block: the next run in this process would reuse them."""
    try:
        yield
    finally:
        if deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()


def make_engine(
    module: nn.Module, optimizer: OptimizerConfig, config: EngineSettings, context: DistributedContext
) -> Any:
    """Create a DeepSpeed engine for a module. Weights stay fp32; bf16 and fp16 use autocast.

    Args:
        module: network to train; parameters that do not require a gradient stay frozen.
        optimizer: settings of the optimizer.
        config: config of the run, for batch size, ZeRO stage and precision.
        context: distributed context of this process.
    """
    if context.device.type == "cuda" and config.precision == "fp32":
        # Convolutions round to TF32 by default.
        allow_tf32(False)
    # DeepSpeed partitions weights as flat memory, which must be in the order of the axes.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=_make_optimizer(parameters, optimizer),
        config=deepspeed_config(config, optimizer, context.size),
    )
    assert isinstance(engine, DeepSpeedEngine)
    if not config.zero_stage:
        if context.device.type == "cuda":
            store_channels_last(parameters)
        # DeepSpeed's own clipping launches two kernels for each weight, and waits for the device twice.
        engine.clip_fp32_gradients = partial(_clip, engine, parameters, optimizer.clip_norm)
        # DeepSpeed's own method walks the modules.
        engine.zero_grad = _torch_optimizer(engine).zero_grad
        if context.size == 1:
            engine.buffered_allreduce_fallback = partial(_fill_gradients, parameters)  # type: ignore[method-assign]
        else:
            # DeepSpeed's own method copies the gradients one by one from the reduced bucket.
            engine.allreduce_and_copy = partial(_average, engine)  # type: ignore[method-assign]
    # DeepSpeed creates a process group with a timeout of 30 minutes.
    group: Any = engine.data_parallel_group
    _set_pg_timeout(timedelta(seconds=config.lost_after_s), group)
    return engine


def store_channels_last(weights: list[nn.Parameter]) -> None:
    """Store the weights of 2D convolutions channels last; otherwise a GPU would convert them in each pass."""
    for weight in weights:
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def set_lr(engine: Any, lr: float) -> None:
    """Set the learning rate for the next step of an engine."""
    for group in _torch_optimizer(engine).param_groups:
        group["lr"] = lr


def local_shard(parameter: nn.Parameter) -> Tensor:
    """Return the local shard of a weight: flat and padded under ZeRO 3, the complete weight otherwise."""
    return parameter.ds_tensor if _is_sharded(parameter) else parameter  # type: ignore[attr-defined]


def gather_full(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """Gather a complete tensor from its shards on all ranks. Collective: call on every rank.

    Args:
        parameter: weight that determines shape and sharding.
        local: local shard of a tensor sharded like the weight.
    """
    if not _is_sharded(parameter):
        return local.detach()
    flat = torch.cat([shard.flatten() for shard in all_gather(local.detach())])
    return flat[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]


def local_shard_of(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """Cut the local shard of a weight out of a complete tensor; the inverse of :func:`gather_full`.

    Args:
        parameter: weight that determines shape and sharding.
        whole: complete tensor.
    """
    if not _is_sharded(parameter):
        return whole
    size = local_shard(parameter).numel()
    start = size * torch.distributed.get_rank()
    flat = whole.flatten()[start : start + size]
    return nn.functional.pad(flat, (0, size - len(flat)))


def check_weights(modules: Mapping[str, nn.Module], context: DistributedContext) -> None:
    """Check the weights before they are saved: a gradient may overflow though no loss does. Collective.

    Args:
        modules: modules by name, for the message.
        context: distributed context of this process.

    Raises:
        RollbackNeeded: a weight is not finite, on any rank.
    """
    for name, module in modules.items():
        finite = torch.stack([local_shard(weight).isfinite().all() for weight in module.parameters()]).all()
        if any_rank(not finite, context):
            raise RollbackNeeded(f"the {name} has weights that are not finite")


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the complete weights and persistent buffers of a module. Collective: call on every rank."""
    weights = {name: gather_full(weight, local_shard(weight)) for name, weight in module.named_parameters()}
    return weights | _persistent_buffers(module)


@torch.no_grad()
def load_weights(engine: Any, tensors: dict[str, Tensor]) -> None:
    """Load the tensors of :func:`full_state_dict` and discard accumulated gradients. Collective: call on every rank.

    Args:
        engine: engine of the module.
        tensors: complete tensors by name.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; nothing is changed.
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
        # Releases the gathered weights, so that the shards are current.
        engine.optimizer.checkpoint_event_prologue()
    for name, weight in module.named_parameters():
        local_shard(weight).data.copy_(local_shard_of(weight, tensors[name]))
    for name, buffer in buffers.items():
        buffer.copy_(tensors[name])
    if stage:
        engine.optimizer.refresh_fp32_params()
    if stage == 3:
        engine.optimizer.checkpoint_event_epilogue()


def optimizer_state(engine: Any) -> dict[str, Tensor]:
    """Return the complete moments of an optimizer on the CPU, and its number of ``steps``. Collective.

    With fp16, ``loss_scale`` has the scale of the loss and the number of steps since it was lowered.
    """
    slots, scaler = list(_torch_optimizer(engine).state.values()), engine.torch_autocast_z0_gradscaler
    tensors = {"steps": torch.tensor(int(slots[0]["step"]) if slots else 0)}
    if scaler:
        state = scaler.state_dict()
        tensors["loss_scale"] = torch.tensor([state["scale"], state["_growth_tracker"]])
    if slots:
        for name, parameter in engine.module.named_parameters():
            for moment in _MOMENTS if parameter.requires_grad else ():
                tensors[f"{moment}.{name}"] = _read_moment(engine, parameter, moment).float().cpu().contiguous()
    return tensors


def load_optimizer_state(engine: Any, tensors: dict[str, Tensor]) -> None:
    """Load the tensors of :func:`optimizer_state`, under any ZeRO stage and number of ranks."""
    steps, scaler = int(tensors["steps"]), engine.torch_autocast_z0_gradscaler
    if scaler and "loss_scale" in tensors:
        scale, growth = tensors["loss_scale"].tolist()
        scaler.load_state_dict(scaler.state_dict() | {"scale": scale, "_growth_tracker": int(growth)})
    if not steps and not _torch_optimizer(engine).state:
        return
    _init_optimizer_state(engine, steps)
    for name, parameter in engine.module.named_parameters():
        for moment in _MOMENTS if parameter.requires_grad and steps else ():
            _write_moment(engine, parameter, moment, tensors[f"{moment}.{name}"])


def deepspeed_config(config: EngineSettings, optimizer: OptimizerConfig, ranks: int) -> dict[str, Any]:
    """Derive the DeepSpeed configuration from the config of a run."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if optimizer.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    half = half_precision(config)
    return {
        "train_batch_size": config.data.batch_size,
        "train_micro_batch_size_per_gpu": config.data.micro_batch(ranks),
        "gradient_accumulation_steps": config.data.accumulation(ranks),
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # By default, ZeRO 1 to 3 would average the gradients of plain linear layers in half precision.
        "torch_autocast": {
            "enabled": half is not None,
            "dtype": str(half or torch.bfloat16).removeprefix("torch."),
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 1 << 60,
        # It would wait for the device before each forward pass and after each step.
        "timers": {"throughput": {"enabled": False}},
        "wall_clock_breakdown": False,
    }


def half_precision(config: EngineSettings) -> torch.dtype | None:
    """Return the dtype of autocast; None for fp32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)


def _make_optimizer(parameters: list[nn.Parameter], optimizer: OptimizerConfig) -> Any:
    settings: dict[str, Any] = {
        "lr": optimizer.lr,
        "betas": optimizer.betas,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if optimizer.offload:
        adam = deepspeed.ops.adam.DeepSpeedCPUAdam(parameters, adamw_mode=True, **settings)
        adam.register_step_pre_hook(lambda *_: _reset_bias_correction(adam))
        return adam
    if optimizer.kind == "radam":
        return torch.optim.RAdam(parameters, decoupled_weight_decay=True, **settings)
    # Not False, with which torch would update the weights one by one on a GPU; None selects multi-tensor kernels.
    return torch.optim.AdamW(parameters, fused=optimizer.fused or None, **settings)


def _reset_bias_correction(adam: Any) -> None:
    """Make DeepSpeed's compiled Adam compute its bias correction from the step number.

    It would otherwise update the correction of the previous step, which rounds differently in a resumed process.
    """
    settings = adam.defaults
    betas, decay = settings["betas"], settings["weight_decay"]
    adam.ds_opt_adam.create_adam(adam.opt_id, settings["lr"], *betas, settings["eps"], decay, adam.adam_w_mode, False)


def _clip(engine: Any, parameters: list[nn.Parameter], max_norm: float) -> None:
    engine._global_grad_norm = nn.utils.clip_grad_norm_(parameters, max_norm)


def _fill_gradients(parameters: list[nn.Parameter], **_: Any) -> None:
    """Create zero gradients for unused weights, as the reduction over several ranks does."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _average(engine: Any, gradients: list[Tensor], *group: Any) -> None:
    """Average gradients over all ranks, in place."""
    foreach_copy_(gradients, engine.unflatten(engine.allreduce_bucket(gradients, *group), gradients))


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _flat_groups(engine: Any) -> list[Tensor]:
    """Return the tensors that the optimizer updates: the weights, or flat local shards under ZeRO."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    if stage:
        return list(engine.optimizer.single_partition_of_fp32_groups)
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def _init_optimizer_state(engine: Any, steps: int) -> None:
    """Create the state that optimizers create in their first step, with zero moments and ``steps`` steps."""
    optimizer = _torch_optimizer(engine)
    is_cpu_adam = isinstance(optimizer, deepspeed.ops.adam.DeepSpeedCPUAdam)
    for tensor in _flat_groups(engine):
        step = steps if is_cpu_adam else torch.tensor(float(steps))
        if not is_cpu_adam and optimizer.defaults.get("fused"):
            step = step.to(tensor.device)  # type: ignore[union-attr]
        optimizer.state[tensor] = {"step": step} | {moment: torch.zeros_like(tensor) for moment in _MOMENTS}
    if engine.zero_optimization_stage() in (1, 2):
        zero = engine.optimizer
        for group, tensor in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(group, tensor, optimizer.state)


def _drop_gradients(engine: Any) -> None:
    """Discard the gradients that the micro-batches of an unfinished step accumulated."""
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
        return gather_full(parameter, safe_get_local_optimizer_state(parameter, moment).flatten())
    if stage:
        whole = safe_get_full_optimizer_state(parameter, moment)
        assert whole is not None
        return whole
    return _torch_optimizer(engine).state[parameter][moment]


def _write_moment(engine: Any, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
    stage = engine.zero_optimization_stage()
    if stage == 3:
        safe_set_local_optimizer_state(parameter, local_shard_of(parameter, value), moment)
    elif stage:
        safe_set_full_optimizer_state(parameter, value, moment)
    else:
        _torch_optimizer(engine).state[parameter][moment].copy_(value)


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    saved = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_tensor")
