"""Encoding and decoding of videos of any length in constant memory.

The functions accept every :class:`Tokenizer`; a tokenizer without streaming processes the whole video in one step.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vidvq.arguments import check_type
from vidvq.errors import UsageError
from vidvq.model.interface import Tokenizer
from vidvq.model.pixels import as_tensor, check_dense, to_frames, to_pixels, to_video
from vidvq.model.step_shape import StepShape
from vidvq.model.stream_state import StreamState


def split_steps(tokenizer: Tokenizer, chunks: Iterable[Any]) -> Iterator[list[Any]]:
    """Split the frames of a stream into encoding steps, independent of the boundaries of the chunks.

    Args:
        tokenizer: the tokenizer; without streaming, all frames form one step.
        chunks: chunks of any number of frames ``t h w c`` uint8.

    Yields:
        The frames of one step of :attr:`Tokenizer.step_shape`, as one or more chunks ``t h w c`` uint8. Joining them
        would copy them. For steps of one group: frame 0, then all complete groups of each chunk.

    Raises:
        UsageError: a chunk is of another type or rank, or its frames are of another size than those before.
    """
    if not tokenizer.supports_streaming:
        if whole := list(_checked(chunks)):
            yield whole
        return
    first, held, shape = True, [], None
    for chunk in _checked(chunks):
        shape = shape or StepShape(groups=groups_per_step(tokenizer, chunk.shape[1:3]))
        held.append(chunk)
        while (count := sum(map(len, held))) >= (wanted := shape.num_frames(tokenizer.temporal_factor, first)):
            # Steps of one group need no buffer: the encoder splits a chunk itself.
            taken = count - count % wanted if shape.groups == 1 and not first else wanted
            step, held = _split(held, taken)
            yield step
            first = False
    if held:
        yield held


def groups_per_step(tokenizer: Tokenizer, size: Sequence[int]) -> int:
    """Return the groups per step for frames of a size before padding (height and width in pixels)."""
    s = tokenizer.spatial_factor
    height, width = (-(-side // s) * s for side in size)
    return tokenizer.shape_for(height, width).groups


def _checked(chunks: Iterable[Any]) -> Iterator[Any]:
    """Yield the chunks that have frames, all of one size."""
    size: tuple[int, ...] = ()
    for chunk in chunks:
        shape = tuple(getattr(chunk, "shape", ()))
        if shape[:1] == (0,):
            continue
        if len(shape) != 4:
            raise UsageError(
                f"a chunk is a {type(chunk).__name__} of shape {shape}; chunks must be tensors or NumPy arrays, t h w 3"
            )
        check_dense(chunk, "video")
        size = size or shape[1:3]
        if shape[1:3] != size:
            raise UsageError(
                f"a chunk has frames of {shape[2]}x{shape[1]}, those before it {size[1]}x{size[0]}; the frames of a "
                "stream must have one size: encode the others as another stream"
            )
        yield chunk


def _split(chunks: list[Any], count: int) -> tuple[list[Any], list[Any]]:
    """Split chunks after ``count`` frames."""
    before: list[Any] = []
    after: list[Any] = []
    for chunk in chunks:
        head, tail = chunk[:count], chunk[count:]
        count -= len(head)
        before += [head] if len(head) else []
        after += [tail] if len(tail) else []
    return before, after


def join_chunks(chunks: Sequence[Any]) -> Any:
    """The frames ``t h w c`` uint8 of one or more chunks; a single one is not copied."""
    return chunks[0] if len(chunks) == 1 else torch.cat([as_tensor(chunk) for chunk in chunks])


def prepare_step(tokenizer: Tokenizer, frames: Any, state: StreamState | None) -> Tensor:
    """Move the frames of a step to the device of the tokenizer, as bytes, and pad them.

    Args:
        tokenizer: the tokenizer.
        frames: frames ``t h w c`` or ``b t h w c`` uint8 of a step of :func:`split_steps`.
        state: state after the previous step; None at the start of a stream.

    Returns:
        Video ``b c t h w``, padded by :meth:`Tokenizer.pad`: uint8 if the tokenizer takes bytes, else in [-1, 1].

    Raises:
        UsageError: wrong type, rank or number of channels.
    """
    pixels = as_tensor(frames).to(tokenizer.device, non_blocking=True)
    video = to_pixels(pixels) if tokenizer.takes_bytes else to_video(pixels)
    return tokenizer.pad(video, first=state is None)


@torch.inference_mode()
def encode_frames(
    tokenizer: Tokenizer, frames: Any, state: StreamState | None = None
) -> tuple[Tensor, StreamState | None]:
    """Encode one step of a stream.

    Args:
        tokenizer: the tokenizer.
        frames: frames ``t h w c`` uint8 of a step of :func:`split_steps`.
        state: state after the previous step; None at the start of a stream.

    Returns:
        Codes ``g lh lw`` int64, and the state for the next step (None without streaming).
    """
    if not tokenizer.supports_streaming:
        return tokenizer.encode(to_video(as_tensor(frames).to(tokenizer.device)))[0], None
    codes, after = tokenizer.encode_step(prepare_step(tokenizer, frames, state), state)
    return codes[0], after


def iter_encode(tokenizer: Tokenizer, chunks: Iterable[Any]) -> Iterator[Tensor]:
    """Encode a video chunk by chunk. The concatenated codes equal those of :meth:`Tokenizer.encode`.

    Args:
        tokenizer: the tokenizer.
        chunks: chunks of any number of frames ``t h w c`` uint8.

    Yields:
        Codes ``g lh lw`` int64 of one step.

    Raises:
        UsageError: a chunk is of another type or rank, or its frames are of another size than those before.
    """
    check_type("tokenizer", tokenizer, Tokenizer)
    check_type("chunks", chunks, Iterable)
    state: StreamState | None = None
    for step in split_steps(tokenizer, chunks):
        codes, state = encode_frames(tokenizer, join_chunks(step), state)
        yield codes


def iter_decode(tokenizer: Tokenizer, codes: Any, num_frames: int, size: tuple[int, int]) -> Iterator[Any]:
    """Decode codes group by group.

    Args:
        tokenizer: the tokenizer.
        codes: ``lt lh lw`` integers; a tensor or a NumPy array.
        num_frames: number of frames of the video before padding.
        size: height and width of the video before padding (pixels).

    Yields:
        NumPy arrays of frames ``t h w c`` uint8, ``num_frames`` in total.

    Raises:
        UsageError: wrong type or rank, a video of that size has codes of another shape, or a code is out of range.
    """
    check_type("tokenizer", tokenizer, Tokenizer)
    for (frames,) in iter_decode_batch(tokenizer, [codes], num_frames, size):
        yield frames


@torch.inference_mode()
def iter_decode_batch(
    tokenizer: Tokenizer, codes: Sequence[Any], num_frames: int, size: tuple[int, int]
) -> Iterator[list[Any]]:
    """Decode the codes of several videos of one length and size, group by group.

    The frames of a video do not depend on the others: :attr:`Tokenizer.decode_shape` determines the videos of a call.

    Args:
        tokenizer: the tokenizer.
        codes: for each video ``lt lh lw`` integers; tensors or NumPy arrays.
        num_frames: number of frames of each video before padding.
        size: height and width of the videos before padding (pixels).

    Yields:
        For each video a NumPy array of frames ``t h w c`` uint8, ``num_frames`` in total.

    Raises:
        UsageError: wrong type or rank, a video of that size has codes of another shape, or a code is out of range.
    """
    grids: list[Any] = sorted({tuple(getattr(one, "shape", ())) for one in codes})
    if len(grids) != 1 or len(grids[0]) != 3:
        raise UsageError(
            f"codes have the shapes {grids}; they must be tensors or NumPy arrays of one shape, lt lh lw for each video"
        )
    for one in codes:
        check_dense(one, "codes")
    left, height, width = tokenizer.crop_size(grids[0], num_frames, size)
    _, lh, lw = grids[0]
    if not tokenizer.supports_streaming:
        yield [to_frames(tokenizer.decode(_to_codes(one, tokenizer)[None], num_frames, size)) for one in codes]
        return
    state: StreamState | None = None
    s = tokenizer.spatial_factor
    groups = tokenizer.shape_for(lh * s, lw * s, kind="decode").groups
    # Convert one step at a time: a long video in int64 takes several times the memory of its stored codes.
    for start in range(0, len(codes[0]), groups):
        part = torch.stack([_to_codes(one[start : start + groups], tokenizer) for one in codes])
        video, state = tokenizer.decode_step(part, state)
        parts = [video]
        if start + groups >= len(codes[0]) and tokenizer.lookahead:
            parts.append(tokenizer.decode_rest(state))
        for video in parts:
            if video.shape[2]:
                frames = [to_frames(one) for one in video[:, :, :left, :height, :width].split(1)]
                left -= len(frames[0])
                yield frames


def count_groups(tokenizer: Tokenizer, available: int, num_frames: int, size: tuple[int, int]) -> int:
    """Return the groups that :func:`decode_start` decodes of a video with ``available`` groups."""
    return min(tokenizer.latent_shape(num_frames, *size)[0] + tokenizer.lookahead, available)


def decode_start(tokenizer: Tokenizer, codes: Sequence[Any], num_frames: int, size: tuple[int, int]) -> list[Any]:
    """Decode the first frames of several videos as :func:`iter_decode_batch` decodes the whole videos.

    A decoder with lookahead also reads the later groups that these frames depend on.

    Args:
        tokenizer: the tokenizer; without streaming, ``num_frames`` must be that of the whole videos.
        codes: for each video ``lt lh lw`` integers; tensors or NumPy arrays. :func:`count_groups` must be the same for
            all of them.
        num_frames: number of frames to return.
        size: height and width of the videos before padding (pixels).

    Returns:
        For each video a NumPy array of frames ``t h w c`` uint8.

    Raises:
        UsageError: wrong type or rank, a video of that size has codes of another shape, or a code is out of range.
    """
    taken = count_groups(tokenizer, len(codes[0]), num_frames, size)
    later = taken > tokenizer.latent_shape(num_frames, *size)[0]
    decoded = StepShape(groups=taken).num_frames(tokenizer.temporal_factor, first=True) if later else num_frames
    steps = iter_decode_batch(tokenizer, [one[:taken] for one in codes], decoded, size)
    videos = zip(*steps, strict=True)
    return [torch.cat([torch.from_numpy(part) for part in parts])[:num_frames].numpy() for parts in videos]


def _to_codes(codes: Any, tokenizer: Tokenizer) -> Tensor:
    return tokenizer._as_codes(codes).to(tokenizer.device)
