"""Puts a tokenizer on the device of a worker, with the precision and the step shape of the job."""

import socket
from dataclasses import replace
from math import isqrt
from pathlib import Path

import torch

from vidvq.errors import UsageError
from vidvq.model import Tokenizer
from vidvq.model.step_shape import StepShape
from vidvq.pretrained import load_tokenizer
from vidvq.tokenize.config import ANY_GPU, Execution


def prepare(tokenizer: Tokenizer, execution: Execution, gpus: float = 1.0) -> None:
    """Move a tokenizer to its device and set how it computes; :meth:`Tokenizer.compile_steps` may follow.

    Args:
        tokenizer: the tokenizer, on the CPU.
        execution: how samples are encoded.
        gpus: GPUs of this worker; with a fraction, it gets no more than that of the memory.

    Raises:
        UsageError: there is no CUDA device, though the job runs on GPUs, or one of another kind than planned;
            or Triton kernels are asked for, and there are none.
    """
    if execution.device == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(
                f"{socket.gethostname()} was given a GPU, but its torch {torch.__version__} finds no CUDA device; "
                "install torch for CUDA there, or set device=cpu"
            )
        _check_kind(execution)
        if gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus)
        # The fastest kernel of a shape would be chosen by timing, and not be the same one in every worker.
        torch.backends.cudnn.benchmark = False
        allow_tf32(execution.precision == "tf32")
    tokenizer.to(execution.device)
    if execution.precision == "bf16":
        tokenizer.use_half(torch.bfloat16)
    if execution.kernels == "triton":
        tokenizer.use_triton()
    tokenizer.step_shape = StepShape(execution.streams, execution.groups, execution.max_pixels)
    # On CPUs a batch of samples to score is no faster than one after another.
    together = execution.streams if execution.device == "cuda" else 1
    tokenizer.decode_shape = StepShape(together, execution.groups, execution.max_pixels)
    # Frames are bytes, so their range is known.
    tokenizer.checks_range = False


def allow_tf32(allowed: bool) -> None:
    """Set whether CUDA devices may round the factors of fp32 products to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def probe_gpu(checkpoint: Path, execution: Execution, decodes: bool, gpus: float = 1.0) -> Execution:
    """Try the largest step of a job on the GPU of this process. Runs in a worker, before the job is planned.

    Args:
        checkpoint: folder of the tokenizer.
        execution: how samples are to be encoded; with ``gpu`` as ``any``, the kind is not recorded.
        decodes: whether samples are decoded as well, to be scored.
        gpus: GPUs of a worker, which gets no more of the memory than a fraction says.

    Returns:
        The execution with the kind of the GPU, and with ``max_pixels`` halved until a step fits the memory.

    Raises:
        UsageError: there is no GPU, or not even the smallest step fits its memory.
    """
    tokenizer, _ = load_tokenizer(checkpoint)
    prepare(tokenizer, replace(execution, gpu=None), gpus)
    return fit_memory(tokenizer, replace(execution, gpu=execution.gpu or torch.cuda.get_device_name()), decodes)


def fit_memory(tokenizer: Tokenizer, execution: Execution, decodes: bool) -> Execution:
    """Try the largest step of a job on the GPU of this process, and leave a step shape that fits its memory.

    Args:
        tokenizer: the tokenizer after :func:`prepare`, not compiled.
        execution: how samples are to be encoded.
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
    """Whether a step with as many pixels as the execution allows fits the memory."""
    streams, groups, pixels = execution.streams, execution.groups, execution.max_pixels
    s = tokenizer.spatial_factor
    side = max(isqrt(pixels // (streams * groups * tokenizer.temporal_factor)) // s, 1) * s
    tokenizer.step_shape = StepShape(streams, groups, pixels)
    tokenizer.decode_shape = StepShape(tokenizer.decode_shape.streams, groups, pixels)
    frames = tokenizer.step_shape.num_frames(tokenizer.temporal_factor, first=True)
    try:
        if tokenizer.supports_streaming:
            video = torch.zeros(streams, 3, frames, side, side, device=tokenizer.device)
            codes, _ = tokenizer.encode_step(video)
            if decodes:
                tokenizer.decode_rest(tokenizer.decode_step(codes)[1])
    except torch.OutOfMemoryError:
        return False
    finally:
        if tokenizer.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _check_kind(execution: Execution) -> None:
    mine = torch.cuda.get_device_name()
    if execution.gpu not in (None, ANY_GPU, mine):
        raise UsageError(
            f"{socket.gethostname()} has a {mine}, and the job was planned for {execution.gpu}, whose tokens may "
            "differ by rounding; run on GPUs of that kind, or give another --out with mixed_gpus=true"
        )
