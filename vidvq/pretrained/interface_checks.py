"""Checks of a tokenizer against the rules of :class:`vidvq.model.Tokenizer`: what it declares, and what it returns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from vidvq.codebook import Codebook, codebook_spans
from vidvq.errors import UsageError, is_out_of_memory
from vidvq.model import StreamState, Tokenizer
from vidvq.model.pixels import MAX_PIXEL
from vidvq.model.stream_state import check_state
from vidvq.user_code import error_line


def check_declaration(tokenizer: Any) -> None:
    """Check the class and the attributes of a tokenizer.

    Raises:
        UsageError: a rule is broken; the message names the rule and the value.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise UsageError(f"it is a {type(tokenizer).__name__}; it must be a subclass of vidvq.model.Tokenizer")
    for name, smallest in {"temporal_factor": 1, "spatial_factor": 1, "upscale": 1, "lookahead": 0}.items():
        value = getattr(tokenizer, name, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            raise UsageError(f"{name}={value!r} must be an integer, {smallest} or more")
    try:
        books = tokenizer.codebooks
    except Exception as error:
        raise UsageError(f"codebooks raised {error_line(error)}") from error
    _check_codebooks(books)
    try:
        device: Any = tokenizer.device
    except StopIteration:
        raise UsageError("it has no parameters; define the property device") from None
    if not isinstance(device, torch.device):
        raise UsageError(f"device={device!r} must be a torch.device")
    for name in ("encode_step", "decode_step"):
        if tokenizer.supports_streaming and getattr(type(tokenizer), name) is getattr(Tokenizer, name):
            raise UsageError(f"supports_streaming is True, but {name} is not implemented")


def _check_codebooks(books: Any) -> None:
    if not isinstance(books, list) or not 1 <= len(books) <= 2 or not all(isinstance(b, Codebook) for b in books):
        raise UsageError(f"codebooks={books!r} must be a list of one or two vidvq.codebook.Codebook")
    offset = 0
    for book in books:
        if not isinstance(book.size, int) or book.size < 1 or book.offset != offset or not book.name:
            raise UsageError(
                f"codebook {book} must have a name, an integer size of 1 or more, and the offset {offset}, the sum of "
                "the sizes before it"
            )
        offset += book.size
    if len(books) == 2 and books[0].name == books[1].name:
        raise UsageError(f"both codebooks have the name {books[0].name!r}; names must differ")


def check_codes(tokenizer: Tokenizer, codes: Any, shape: Sequence[int], first: bool = True) -> None:
    """Check codes that a tokenizer returned.

    Args:
        shape: the shape ``b lt lh lw`` that they must have.
        first: whether they start with frame 0.

    Raises:
        UsageError: a rule is broken.
    """
    if not isinstance(codes, Tensor):
        raise UsageError(f"codes are a {type(codes).__name__}; they must be an int64 tensor")
    if codes.dtype != torch.int64 or tuple(codes.shape) != tuple(shape):
        raise UsageError(
            f"codes are {str(codes.dtype).removeprefix('torch.')} {tuple(codes.shape)}; they must be int64 "
            f"{tuple(shape)}, b lt lh lw"
        )
    for book, frames in codebook_spans(tokenizer.codebooks, first):
        part = codes[:, frames]
        if part.numel() and not 0 <= int(part.min()) <= int(part.max()) < book.size:
            raise UsageError(
                f"codes are {int(part.min())} to {int(part.max())}; those of the {book.name} codebook must be 0 to "
                f"{book.size - 1}"
            )


def check_video(video: Any, shape: Sequence[int]) -> None:
    """Check video ``b c t h w`` that a tokenizer returned.

    Raises:
        UsageError: it is not of the shape, not float, or not in [-1, 1].
    """
    if not isinstance(video, Tensor):
        raise UsageError(f"the video is a {type(video).__name__}; it must be a tensor")
    if not video.is_floating_point() or tuple(video.shape) != tuple(shape):
        raise UsageError(
            f"the video is {str(video.dtype).removeprefix('torch.')} {tuple(video.shape)}; it must be float "
            f"{tuple(shape)}, b c t h w"
        )
    if not video.numel():
        return
    low, high = (float(value) for value in torch.aminmax(video))
    if not (low >= -MAX_PIXEL and high <= MAX_PIXEL):
        raise UsageError(f"the video has values from {low:g} to {high:g}; they must be in [-1, 1]")


def guard_calls(tokenizer: Tokenizer, name: str) -> None:
    """Check everything that a tokenizer returns from now on, and report its exceptions in one line.

    Args:
        tokenizer: the tokenizer; its methods are replaced on the instance.
        name: name in error messages.
    """
    encode, decode = tokenizer.encode, tokenizer.decode
    encode_step, decode_step, decode_rest = tokenizer.encode_step, tokenizer.decode_step, tokenizer.decode_rest

    @wraps(encode)
    def checked_encode(video: Any) -> Tensor:
        with _errors_of(name, "encode"):
            codes = encode(video)
            check_codes(tokenizer, codes, (len(video), *tokenizer.latent_shape(*video.shape[2:])))
        return codes

    @wraps(decode)
    def checked_decode(codes: Any, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        with _errors_of(name, "decode"):
            video = decode(codes, num_frames, size)
            check_video(video, (len(codes), 3, *tokenizer.crop_size(codes.shape[1:], num_frames, size)))
        return video

    @wraps(encode_step)
    def checked_encode_step(frames: Any, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        with _errors_of(name, "encode_step"):
            codes, after = _pair("codes", encode_step(frames, state))
            b, _, t, h, w = frames.shape
            groups = tokenizer.latent_shape(t, h, w)[0] if state is None else t // tokenizer.temporal_factor
            s = tokenizer.spatial_factor
            check_codes(tokenizer, codes, (b, groups, h // s, w // s), first=state is None)
            check_state(after)
        return codes, after

    @wraps(decode_step)
    def checked_decode_step(codes: Any, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        with _errors_of(name, "decode_step"):
            video, after = _pair("video", decode_step(codes, state))
            b, groups, lh, lw = codes.shape
            r = tokenizer.temporal_factor
            frames = groups * r - (r - 1 if state is None else 0)
            _check_step(tokenizer, video, (b, lh, lw), frames)
            check_state(after)
        return video, after

    @wraps(decode_rest)
    def checked_decode_rest(state: StreamState) -> Tensor:
        with _errors_of(name, "decode_rest"):
            video = decode_rest(state)
            _check_step(tokenizer, video, state.shape, frames=0)
        return video

    tokenizer.encode, tokenizer.decode = checked_encode, checked_decode
    tokenizer.encode_step, tokenizer.decode_step = checked_encode_step, checked_decode_step
    tokenizer.decode_rest = checked_decode_rest


def _check_step(tokenizer: Tokenizer, video: Any, grid: tuple[int, int, int], frames: int) -> None:
    """Check frames that a step returned for codes of the shape ``b lh lw``; with lookahead there may be any number."""
    b, lh, lw = grid
    scale = tokenizer.spatial_factor * tokenizer.upscale
    check_video(video, (b, 3, video.shape[2] if tokenizer.lookahead else frames, lh * scale, lw * scale))


def _pair(what: str, returned: Any) -> tuple[Any, Any]:
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise UsageError(f"a {type(returned).__name__} is returned; it must be a tuple of {what} and a StreamState")
    return returned


@contextmanager
def _errors_of(name: str, method: str) -> Iterator[None]:
    """Put the tokenizer and the method in front of the message of an exception."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"tokenizer {name}, {method}: {error}") from error
    except Exception as error:
        # Reported by the command line.
        if is_out_of_memory(error):
            raise
        raise UsageError(f"tokenizer {name}, {method} raised {error_line(error)}") from error
