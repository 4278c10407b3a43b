"""Videos of any length to codes and back, in memory that does not grow with the length.

The loops work with every :class:`Tokenizer`: one without streaming gets the whole video in one step.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vidvq.model.interface import StreamState, Tokenizer
from vidvq.model.pixels import to_frames, to_video


def split_steps(tokenizer: Tokenizer, chunks: Iterable[Any]) -> Iterator[Any]:
    """Cut a stream's frames into the steps that encode it: frame 0 alone, then the rest of each chunk.

    Args:
        tokenizer: one without streaming gets all frames in one step.
        chunks: frames ``t h w c`` uint8; frame 0 aside, all chunks but the last are whole groups.
    """
    if not tokenizer.supports_streaming:
        yield torch.cat([torch.as_tensor(chunk) for chunk in chunks])
        return
    first = True
    for chunk in chunks:
        if first:
            yield chunk[:1]
        frames = chunk[1:] if first else chunk
        first = False
        if len(frames):
            yield frames


def to_step(tokenizer: Tokenizer, frames: Any, state: StreamState | None) -> Tensor:
    """Pixels of a step, ``1 c t h w`` on the tokenizer's device, padded as :meth:`Tokenizer.pad` does.

    Args:
        frames: ``t h w c`` uint8, as :func:`split_steps` yields them.
        state: state after the step before; None at the start.
    """
    return tokenizer.pad(to_video(frames).to(tokenizer.device), first=state is None)


@torch.inference_mode()
def encode_frames(
    tokenizer: Tokenizer, frames: Any, state: StreamState | None = None
) -> tuple[Tensor, StreamState | None]:
    """Encode one step of one stream.

    Args:
        frames: ``t h w c`` uint8, as :func:`split_steps` yields them.
        state: state after the step before; None at the start.

    Returns:
        codes ``g lh lw`` int64, and the state for the next step (None without streaming).
    """
    if not tokenizer.supports_streaming:
        return tokenizer.encode(to_video(frames).to(tokenizer.device))[0], None
    codes, after = tokenizer.encode_step(to_step(tokenizer, frames, state), state)
    return codes[0], after


def iter_encode(tokenizer: Tokenizer, chunks: Iterable[Any]) -> Iterator[Tensor]:
    """Encode a video chunk by chunk; concatenated, the codes are those of the whole video at once.

    Args:
        chunks: frames ``t h w c`` uint8; frame 0 aside, all chunks but the last are whole groups.

    Yields:
        codes ``g lh lw`` int64 of one step.
    """
    state: StreamState | None = None
    for frames in split_steps(tokenizer, chunks):
        codes, state = encode_frames(tokenizer, frames, state)
        yield codes


@torch.inference_mode()
def iter_decode(tokenizer: Tokenizer, codes: Any, num_frames: int, size: tuple[int, int]) -> Iterator[Any]:
    """Decode a grid of codes group by group.

    Args:
        codes: ``lt lh lw`` integers, a tensor or a numpy array.
        num_frames, size: frames, and height and width, of the video before padding.

    Yields:
        numpy arrays of frames ``t h w c`` uint8, ``num_frames`` in all.

    Raises:
        ValueError: a video of that size does not become that grid, or a code is out of range.
    """
    left, height, width = tokenizer.crop_size(codes.shape, num_frames, size)
    if not tokenizer.supports_streaming:
        yield to_frames(tokenizer.decode(_to_codes(codes, tokenizer)[None], num_frames, size))
        return
    state: StreamState | None = None
    # One group at a time in int64: an hour of codes is kept as small as it was read.
    for group in codes:
        video, state = tokenizer.decode_step(_to_codes(group, tokenizer)[None, None], state)
        frames = to_frames(video[:, :, :left, :height, :width])
        left -= len(frames)
        yield frames


def _to_codes(codes: Any, tokenizer: Tokenizer) -> Tensor:
    tensor = codes if isinstance(codes, Tensor) else torch.tensor(codes)
    return tensor.to(tokenizer.device, torch.int64)
