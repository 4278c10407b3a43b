"""What the stages of the pipeline ask of a tokenizer, whoever made it."""

from abc import abstractmethod
from dataclasses import dataclass
from math import log2
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError


@dataclass(frozen=True)
class Codebook:
    """A codebook's name (``spatial``, ``temporal`` or ``joint``), size, and start in a flat vocabulary."""

    name: str
    size: int
    offset: int


class Tokenizer(nn.Module):
    """Video to a grid of codes and back. Frame 0 is a group of its own; later groups have ``temporal_factor`` frames.

    Attributes:
        temporal_factor, spatial_factor: frames, and pixels in height and width, per code.
    """

    temporal_factor: int
    spatial_factor: int

    @property
    @abstractmethod
    def codebooks(self) -> list[Codebook]:
        """The codebooks, in the order of their offsets in a flat vocabulary."""

    @property
    def device(self) -> torch.device:
        """Of the networks' weights."""
        return next(self.parameters()).device

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Video ``b c t h w`` in [-1, 1], any number of frames and any size, to codes ``b lt lh lw`` int64."""

    @abstractmethod
    def decode(self, codes: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Codes ``b lt lh lw`` to video ``b c t h w`` in [-1, 1], cut to as many frames and pixels as are asked for."""

    def encode_step(self, frames: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Encode the next frames of a stream.

        Raises:
            ValueError: this kind of tokenizer needs whole videos.
        """
        raise UsageError(f"a {type(self).__name__} encodes whole clips and has no streams; cut the video into clips")

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The grid of codes ``lt lh lw`` that a video of this size becomes."""
        if min(num_frames, height, width) < 1:
            raise UsageError(f"a video of {num_frames} frames of {height}x{width} must have at least 1 of each")
        s = self.spatial_factor
        return 1 + -(-(num_frames - 1) // self.temporal_factor), -(-height // s), -(-width // s)

    def bits_per_pixel(self, num_frames: int, height: int, width: int) -> float:
        """Bits of all codes of a video over its pixels, each codebook counted by log2 of its size."""
        lt, lh, lw = self.latent_shape(num_frames, height, width)
        first, later = self.codebooks[0], self.codebooks[-1]
        return lh * lw * (log2(first.size) + (lt - 1) * log2(later.size)) / (num_frames * height * width)

    def _pad(self, video: Tensor) -> Tensor:
        """Repeat the last frame to fill the last group, and the borders to fill the last codes."""
        t, h, w = video.shape[2:]
        lt, lh, lw = self.latent_shape(t, h, w)
        missing = (
            1 + (lt - 1) * self.temporal_factor - t,
            lh * self.spatial_factor - h,
            lw * self.spatial_factor - w,
        )
        return F.pad(video, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else video

    def _kept(self, codes: Tensor, num_frames: int | None, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """Frames, height and width to keep of what codes ``b lt lh lw`` become."""
        lt, lh, lw = codes.shape[1:]
        frames = 1 + (lt - 1) * self.temporal_factor
        keep_t = frames if num_frames is None else num_frames
        keep_h, keep_w = size or (lh * self.spatial_factor, lw * self.spatial_factor)
        if self.latent_shape(keep_t, keep_h, keep_w) != (lt, lh, lw):
            raise UsageError(
                f"num_frames={keep_t} of {keep_h}x{keep_w} do not become a grid of {lt}x{lh}x{lw} codes; "
                f"the whole grid is {frames} of {lh * self.spatial_factor}x{lw * self.spatial_factor}"
            )
        return keep_t, keep_h, keep_w

    def _check_video(self, video: Tensor, anywhere: bool = False) -> None:
        if video.ndim != 5 or video.shape[1] != 3:
            raise UsageError(f"video has shape {tuple(video.shape)}; it must be b 3 t h w")
        if not video.is_floating_point():
            raise UsageError(f"video is {video.dtype}; it must be float in [-1, 1] (uint8 frames: x / 127.5 - 1)")
        if 0 in video.shape:
            raise UsageError(f"video has shape {tuple(video.shape)}; it must not be empty")
        if not anywhere:
            self._check_device(video, "video")
        # A compiled step cannot branch on values.
        if torch.compiler.is_compiling():
            return
        low, high = (float(value) for value in torch.aminmax(video))
        # NaN fails both comparisons, and so is refused here too.
        if not (low >= -1.001 and high <= 1.001):
            raise UsageError(f"video has values from {low:g} to {high:g}; they must be in [-1, 1]")

    def _check_device(self, tensor: Tensor, name: str) -> None:
        if tensor.device != self.device:
            raise UsageError(f"{name} is on {tensor.device}, the tokenizer on {self.device}; move one to the other")

    def _check_codes(self, codes: Tensor, first: bool) -> None:
        if codes.ndim != 4 or codes.is_floating_point() or 0 in codes.shape:
            raise UsageError(f"codes are {codes.dtype} {tuple(codes.shape)}; they must be integers, b lt lh lw")
        self._check_device(codes, "codes")
        if torch.compiler.is_compiling():
            return
        books = self.codebooks
        spans = [(codes[:, :1], books[0]), (codes[:, 1:], books[-1])] if first else [(codes, books[-1])]
        for part, book in spans:
            if part.numel() and not 0 <= int(part.min()) <= int(part.max()) < book.size:
                worst = int(part.min()) if int(part.min()) < 0 else int(part.max())
                raise UsageError(
                    f"code {worst} is out of range; the {book.name} codebook has codes 0 to {book.size - 1}"
                )
