"""Puts a tokenizer on the device of a worker, with the precision and the step shape of the job."""

import socket

import torch

from vidvq.errors import UsageError
from vidvq.model import Tokenizer
from vidvq.model.step_shape import StepShape
from vidvq.tokenize.config import Execution


def prepare(tokenizer: Tokenizer, execution: Execution) -> None:
    """Move a tokenizer to its device and set how it computes.

    Args:
        tokenizer: the tokenizer, on the CPU.
        execution: how samples are encoded.

    Raises:
        UsageError: there is no CUDA device, though the job runs on GPUs.
    """
    if execution.device == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(
                f"{socket.gethostname()} was given a GPU, but its torch {torch.__version__} finds no CUDA device; "
                "install torch for CUDA there, or set device=cpu"
            )
        tf32 = execution.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        # The fastest kernel of a shape would be chosen by timing, and not be the same one in every worker.
        torch.backends.cudnn.benchmark = False
    tokenizer.to(execution.device)
    if execution.precision == "bf16":
        tokenizer.use_half(torch.bfloat16)
    tokenizer.step_shape = StepShape(execution.streams, execution.groups, execution.max_pixels)
    # Samples are scored one at a time.
    tokenizer.decode_shape = StepShape(1, execution.groups, execution.max_pixels)
    # Frames are bytes, so their range is known.
    tokenizer.checks_range = False
    if execution.compiled:
        tokenizer.compile_steps(capture=True)
