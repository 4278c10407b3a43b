"""The largest step shape that fits the memory of a GPU, found by trying it before a job."""

import socket
from collections.abc import Callable
from dataclasses import replace
from math import isqrt
from pathlib import Path

import torch

from vidvq.errors import UsageError, is_gpu_full
from vidvq.formats.execution import Execution
from vidvq.model import Tokenizer
from vidvq.model.step_shape import StepShape
from vidvq.model.streaming import prepare_step
from vidvq.pretrained import load_tokenizer
from vidvq.pretrained.device import prepare


def probe_gpu(checkpoint: Path, execution: Execution, decodes: bool, gpus: float = 1.0) -> Execution:
    """Try the largest step of a job on the GPU of this process. Runs in a worker, before the job is planned.

    Args:
        execution: how samples are encoded; with ``gpu`` as ``any``, the kind of GPU is not recorded.
        decodes: whether samples are decoded as well, to be scored.
        gpus: GPUs of a worker; with a fraction it gets that fraction of the memory.

    Returns:
        The execution with the kind of the GPU, and with ``max_pixels`` halved until a step fits the memory.

    Raises:
        UsageError: there is no GPU, or not even the smallest step fits its memory.
    """
    tokenizer, _ = load_tokenizer(checkpoint)
    prepare(tokenizer, replace(execution, gpu=None), gpus)
    return fit_memory(tokenizer, replace(execution, gpu=execution.gpu or torch.cuda.get_device_name()), decodes)


def fit_memory(tokenizer: Tokenizer, execution: Execution, decodes: bool) -> Execution:
    """Try the largest step of a job on the GPU of this process, and set a step shape that fits its memory.

    Args:
        tokenizer: the tokenizer after :func:`prepare`, not compiled.
        decodes: whether samples are decoded as well, to be scored.

    Returns:
        The execution, with ``max_pixels`` halved until a step fits.

    Raises:
        UsageError: not even the smallest step fits.
    """
    while not _fits(tokenizer, execution, decodes):
        if execution.max_pixels < tokenizer.temporal_factor * tokenizer.spatial_factor**2:
            raise UsageError(
                f"{socket.gethostname()}: not even a step of one group fits the memory of its "
                f"{torch.cuda.get_device_name()}; free the memory that other processes use, or set device=cpu"
            )
        execution = replace(execution, max_pixels=execution.max_pixels // 2)
    return execution


@torch.inference_mode()
def _fits(tokenizer: Tokenizer, execution: Execution, decodes: bool) -> bool:
    """Whether a step with the maximum number of pixels fits the memory."""
    streams, groups, pixels = execution.streams, execution.groups, execution.max_pixels
    s = tokenizer.spatial_factor
    side = max(isqrt(pixels // (streams * groups * tokenizer.temporal_factor)) // s, 1) * s
    tokenizer.step_shape = StepShape(streams, groups, pixels)
    tokenizer.decode_shape = StepShape(tokenizer.decode_shape.streams, groups, pixels)
    frames = tokenizer.step_shape.num_frames(tokenizer.temporal_factor, first=True)

    def step() -> None:
        pixels = torch.zeros(streams, frames, side, side, 3, dtype=torch.uint8)
        codes, _ = tokenizer.encode_step(prepare_step(tokenizer, pixels, None))
        if decodes:
            tokenizer.decode_rest(tokenizer.decode_step(codes)[1])

    try:
        if tokenizer.supports_streaming:
            _try(step, execution.compiled, tokenizer.device)
    except RuntimeError as error:
        if not is_gpu_full(error):
            raise
        return False
    finally:
        if tokenizer.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _try(step: Callable[[], None], captured: bool, device: torch.device) -> None:
    """Run a step, and if it will be recorded, run it again beside as much memory as it took."""
    if not captured or device.type != "cuda":
        step()
        return
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.empty_cache()
    # Recorded graphs keep the memory of a step, and the first calls of another frame size take as much again.
    graphs = torch.empty(
        torch.cuda.max_memory_reserved() - torch.cuda.memory_reserved(), dtype=torch.uint8, device=device
    )
    step()
    del graphs
