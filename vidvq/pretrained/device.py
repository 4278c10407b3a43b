"""Finds the device of a job, and puts a tokenizer on it with the precision and the step shape of the job."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vidvq.errors import JobStopped, UsageError, is_gpu_full
from vidvq.formats.execution import ANY_GPU, Execution
from vidvq.log import info
from vidvq.model import Tokenizer
from vidvq.model.step_shape import StepShape

# Memory that a process takes beside torch: for its CUDA context, and the kernels and workspaces of libraries (bytes).
_CONTEXT_BYTES = 1 << 30


def find_device(asked: str, count_gpus: Callable[[], float | None] = lambda: None) -> str:
    """Return ``cpu`` or ``cuda``: what is asked for, or what the cluster or this machine has.

    Args:
        asked: ``cpu``, ``cuda`` or ``auto``.
        count_gpus: returns the GPUs of the cluster that the job joins, None if it runs on this machine; called unless
            the answer is ``cpu`` without it.

    Raises:
        UsageError: a GPU is asked for, and there is none.
    """
    if asked == "cpu":
        return "cpu"
    in_cluster = count_gpus()
    if in_cluster is None:
        if not torch.cuda.is_available() and asked == "cuda":
            raise UsageError(
                "device=cuda: torch finds no CUDA device on this machine; set device=cpu or runtime.address"
            )
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not in_cluster and asked == "cuda":
        info("the Ray cluster has no GPU yet; the job waits until it adds one (device=cpu runs without)")
    return "cuda" if in_cluster or asked == "cuda" else "cpu"


def prepare(tokenizer: Tokenizer, execution: Execution, gpus: float = 1.0) -> None:
    """Move a tokenizer to its device and set how it computes; :meth:`Tokenizer.compile_steps` may follow.

    Args:
        tokenizer: the tokenizer, on the CPU.
        gpus: GPUs of this worker; with a fraction, it gets no more than that of the memory, its CUDA context included.

    Raises:
        UsageError: there is no CUDA device, though the job runs on GPUs, or one of another kind than planned;
            or Triton kernels are asked for, and there are none.
    """
    if execution.device == "cuda":
        require_cuda()
        _check_kind(execution)
        if gpus < 1:
            share, total = gpus, torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(max(share - _CONTEXT_BYTES / total, share / 2))
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


def require_cuda() -> None:
    """Check that a worker that was given a GPU can use it.

    Raises:
        UsageError: torch finds no CUDA device.
    """
    if not torch.cuda.is_available():
        raise UsageError(
            f"{socket.gethostname()} was given a GPU, but its torch {torch.__version__} finds no CUDA device; "
            "install torch for CUDA there, or set device=cpu"
        )


def find_fp32_device() -> str:
    """Return ``cuda`` if this machine has a GPU, whose fp32 products no longer round to TF32 then; else ``cpu``."""
    if not torch.cuda.is_available():
        return "cpu"
    # Convolutions round to TF32 by default.
    allow_tf32(False)
    return "cuda"


def allow_tf32(allowed: bool) -> None:
    """Set whether CUDA devices may round the factors of fp32 products to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def stopping_when_full(what: str, remedy: str) -> Iterator[None]:
    """Stop the job with a message if the memory of the GPU is full.

    Args:
        what: what is computed.
        remedy: what helps besides freeing what other processes use, such as ``or use smaller clips``.

    Raises:
        JobStopped: the memory is full.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_gpu_full(error):
            raise
        raise JobStopped(
            f"{what} does not fit the memory of the GPU of {socket.gethostname()}; free what other processes "
            f"use, {remedy}"
        ) from error


def _check_kind(execution: Execution) -> None:
    mine = torch.cuda.get_device_name()
    if execution.gpu not in (None, ANY_GPU, mine):
        raise UsageError(
            f"{socket.gethostname()} has a {mine}, and the job was planned for {execution.gpu}, whose tokens may "
            "differ by rounding; run on GPUs of that kind, or give another --out with mixed_gpus=true"
        )
