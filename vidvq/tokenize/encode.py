"""Frames to codes, group by group, in memory that does not grow with the video."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from einops import pack
from torch.nn import functional as F

from vidvq.model import Tokenizer
from vidvq.model.pixels import to_video


@torch.inference_mode()
def encode_stream(tokenizer: Tokenizer, chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Codes ``lt lh lw`` of one stream, the same as of the whole video at once.

    Args:
        tokenizer: whose; one that has no streams encodes the whole.
        chunks: frames ``t h w c`` uint8; all but the last are whole groups, behind the first frame.
    """
    if type(tokenizer).encode_step is Tokenizer.encode_step:
        whole = np.concatenate(list(chunks))
        return tokenizer.encode(to_video(whole).to(tokenizer.device))[0].cpu().numpy()
    state: Any = None
    parts = []
    for chunk in chunks:
        frames = chunk
        if state is None:
            codes, state = tokenizer.encode_step(_fill(tokenizer, frames[:1], 1))
            parts.append(codes[0].cpu().numpy())
            frames = frames[1:]
        if len(frames):
            codes, state = tokenizer.encode_step(_fill(tokenizer, frames, tokenizer.temporal_factor), state)
            parts.append(codes[0].cpu().numpy())
    return pack(parts, "* h w")[0]


def _fill(tokenizer: Tokenizer, frames: np.ndarray, group: int) -> torch.Tensor:
    """The last frame repeated to fill the last group, the borders to fill the last codes."""
    video = to_video(frames).to(tokenizer.device)
    t, h, w = video.shape[2:]
    s = tokenizer.spatial_factor
    missing = (0, -w % s, 0, -h % s, 0, -t % group)
    return F.pad(video, missing, mode="replicate") if any(missing) else video
