"""Encoding steps of one sample, for an encoder that many streams share; see :mod:`vidvq.tokenize.batching`."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from einops import pack
from torch import Tensor

from vidvq.model import StreamState, Tokenizer
from vidvq.model.streaming import encode_frames, join_chunks, split_steps

# Waits for the codes `lt lh lw` of a step or a sample, which the device may still be computing, and returns them.
PendingCodes = Callable[[], np.ndarray]
# Codes of a step, and the state after it.
StepResult = tuple[PendingCodes, StreamState | None]


@dataclass(frozen=True)
class Step:
    """Frames of a stream that are ready to encode.

    Attributes:
        chunks: chunks ``t h w c`` uint8, as :func:`vidvq.model.streaming.split_steps` yields them.
        state: state after the previous step of the stream; None at its start.
    """

    chunks: list[np.ndarray]
    state: StreamState | None = None

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return sum(map(len, self.chunks))

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Height, width and channels of a frame."""
        return self.chunks[0].shape[1:]


SampleSteps = Generator[Step, StepResult, PendingCodes]


def sample_steps(
    tokenizer: Tokenizer,
    chunks: Iterable[np.ndarray],
    dtype: type[np.unsignedinteger] = np.uint32,
    meanwhile: Callable[[], None] = lambda: None,
) -> SampleSteps:
    """Yield the steps of one sample, receive the result of each, and return the codes ``lt lh lw`` of the sample.

    Waits for the codes of a step only after the next step has been queued, so that the device never waits for this
    process.

    Args:
        tokenizer: a tokenizer; one without streaming gets the whole sample as one step.
        chunks: chunks of any number of frames ``t h w c`` uint8.
        dtype: type in which codes are held until the end; a video of hours has many.
        meanwhile: called after each step has been queued.
    """
    state: StreamState | None = None
    parts: list[np.ndarray] = []
    pending: list[PendingCodes] = []
    for step in split_steps(tokenizer, chunks):
        codes, state = yield Step(step, state)
        meanwhile()
        parts += [wait().astype(dtype) for wait in pending]
        pending = [codes]
    return lambda: pack([*parts, *(wait().astype(dtype) for wait in pending)], "* h w")[0]


def encode_step(tokenizer: Tokenizer, step: Step) -> StepResult:
    """Encode one step without a batch: codes ``g lh lw`` int64, and the state after it."""
    codes, state = encode_frames(tokenizer, join_chunks(step.chunks), step.state)
    return pending_codes(codes), state


def pending_codes(codes: Tensor) -> PendingCodes:
    """Start to copy codes from the device; the result waits for the copy, but not for work that is queued later."""
    if codes.device.type != "cuda":
        return codes.numpy
    copied = torch.empty(codes.shape, dtype=codes.dtype, pin_memory=True)
    copied.copy_(codes, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return partial(_arrived, copied, arrived)


def _arrived(copied: Tensor, arrived: torch.cuda.Event) -> np.ndarray:
    arrived.synchronize()
    return copied.numpy()
