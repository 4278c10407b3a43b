"""Frames to codes, group by group, in memory that does not grow with the video."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import pack
from torch.nn import functional as F

from vidvq.model import Tokenizer
from vidvq.model.pixels import to_video


@dataclass(frozen=True)
class Step:
    """What a stream wants encoded next.

    Attributes:
        frames: ``t h w c`` uint8: a stream's first frame, or some behind it, the last group of which may be short; all
            of a video where the tokenizer has no streams.
        state: what the step before returned, None at the start.
    """

    frames: np.ndarray
    state: Any = None


Stream = Generator[Step, tuple[np.ndarray, Any], np.ndarray]


def has_streams(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer encodes in steps, or whole videos alone."""
    return type(tokenizer).encode_step is not Tokenizer.encode_step


def stream(tokenizer: Tokenizer, chunks: Iterable[np.ndarray], dtype: type[np.unsignedinteger] = np.uint32) -> Stream:
    """Yield one step after another, take its codes and state, and return the codes ``lt lh lw`` of the whole.

    Args:
        tokenizer: whose; one that has no streams gets the whole as one step.
        chunks: frames ``t h w c`` uint8; all but the last are whole groups, behind the first frame.
        dtype: that codes are kept in from the first on: of hours there are many.
    """
    if not has_streams(tokenizer):
        codes, _ = yield Step(np.concatenate(list(chunks)))
        return codes.astype(dtype)
    state: Any = None
    parts = []
    for chunk in chunks:
        frames = chunk
        if state is None:
            codes, state = yield Step(frames[:1])
            parts.append(codes.astype(dtype))
            frames = frames[1:]
        if len(frames):
            codes, state = yield Step(frames, state)
            parts.append(codes.astype(dtype))
    return pack(parts, "* h w")[0]


@torch.inference_mode()
def encode_step(tokenizer: Tokenizer, step: Step) -> tuple[np.ndarray, Any]:
    """Codes ``g lh lw`` of one step, and the state behind it."""
    if not has_streams(tokenizer):
        return tokenizer.encode(to_video(step.frames).to(tokenizer.device))[0].cpu().numpy(), None
    codes, state = tokenizer.encode_step(to_groups(tokenizer, step), step.state)
    return codes[0].cpu().numpy(), state


def encode_stream(tokenizer: Tokenizer, chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Codes ``lt lh lw`` of one stream by itself, the same as of the whole video at once; see :func:`stream`."""
    steps = stream(tokenizer, chunks)
    try:
        step = next(steps)
        while True:
            step = steps.send(encode_step(tokenizer, step))
    except StopIteration as end:
        return end.value


def to_groups(tokenizer: Tokenizer, step: Step) -> torch.Tensor:
    """The pixels of a step, ``1 c t h w``; the last frame repeated to fill the last group, the borders the codes."""
    video = to_video(step.frames).to(tokenizer.device)
    group = 1 if step.state is None else tokenizer.temporal_factor
    t, h, w = video.shape[2:]
    s = tokenizer.spatial_factor
    missing = (0, -w % s, 0, -h % s, 0, -t % group)
    return F.pad(video, missing, mode="replicate") if any(missing) else video
