"""A stream of frames as steps for an encoder that many streams share; see :mod:`vidvq.tokenize.lanes`."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np
from einops import pack

from vidvq.model import StreamState, Tokenizer
from vidvq.model.streaming import encode_frames, split_steps

Answer = tuple[np.ndarray, StreamState | None]


@dataclass(frozen=True)
class Step:
    """Frames that a stream has ready to encode.

    Attributes:
        frames: ``t h w c`` uint8, as :func:`vidvq.model.streaming.split_steps` yields them.
        state: state after the stream's step before, None at the start.
    """

    frames: np.ndarray
    state: StreamState | None = None


Stream = Generator[Step, Answer, np.ndarray]


def stream(tokenizer: Tokenizer, chunks: Iterable[np.ndarray], dtype: type[np.unsignedinteger] = np.uint32) -> Stream:
    """Yield one step after another, receive its codes and state, and return the codes ``lt lh lw`` of the video.

    Args:
        tokenizer: one without streaming gets the whole video as one step.
        chunks: frames ``t h w c`` uint8; frame 0 aside, all chunks but the last are whole groups.
        dtype: type that codes are kept in until the end, which for a video of hours is many.
    """
    state: StreamState | None = None
    parts = []
    for frames in split_steps(tokenizer, chunks):
        codes, state = yield Step(frames, state)
        parts.append(codes.astype(dtype))
    return pack(parts, "* h w")[0]


def encode_step(tokenizer: Tokenizer, step: Step) -> Answer:
    """Encode one step by itself: codes ``g lh lw`` int64, and the state after it."""
    codes, state = encode_frames(tokenizer, step.frames, step.state)
    return codes.cpu().numpy(), state
