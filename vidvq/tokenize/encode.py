"""Encoding steps of one sample, for an encoder that many streams share; see :mod:`vidvq.tokenize.batching`."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np
from einops import pack

from vidvq.model import StreamState, Tokenizer
from vidvq.model.streaming import encode_frames, split_steps

# Codes `lt lh lw` of a step, and the state after it.
StepResult = tuple[np.ndarray, StreamState | None]


@dataclass(frozen=True)
class Step:
    """Frames of a stream that are ready to encode.

    Attributes:
        frames: ``t h w c`` uint8, as :func:`vidvq.model.streaming.split_steps` yields them.
        state: state after the previous step of the stream; None at its start.
    """

    frames: np.ndarray
    state: StreamState | None = None


SampleSteps = Generator[Step, StepResult, np.ndarray]


def sample_steps(
    tokenizer: Tokenizer, chunks: Iterable[np.ndarray], dtype: type[np.unsignedinteger] = np.uint32
) -> SampleSteps:
    """Yield the steps of one sample, receive the result of each, and return the codes ``lt lh lw`` of the sample.

    Args:
        tokenizer: a tokenizer; one without streaming gets the whole sample as one step.
        chunks: frames ``t h w c`` uint8. Without frame 0, all chunks but the last are whole groups.
        dtype: type of the codes held until the end; a video of hours has many.
    """
    state: StreamState | None = None
    parts = []
    for frames in split_steps(tokenizer, chunks):
        codes, state = yield Step(frames, state)
        parts.append(codes.astype(dtype))
    return pack(parts, "* h w")[0]


def encode_step(tokenizer: Tokenizer, step: Step) -> StepResult:
    """Encode one step without a batch: codes ``g lh lw`` int64, and the state after it."""
    codes, state = encode_frames(tokenizer, step.frames, step.state)
    return codes.cpu().numpy(), state
