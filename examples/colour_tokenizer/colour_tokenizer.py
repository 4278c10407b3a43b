"""Example tokenizer for vidvq: the mean colour of each block of 4x8x8 pixels, in 16 levels per channel.

`pip install ./examples/colour_tokenizer` makes it the tokenizer `colour` of every command; without installation,
`--checkpoint examples/colour_tokenizer/colour_tokenizer.py:ColourTokenizer` does the same.
"""

import torch
from einops import reduce, repeat
from torch import Tensor

from vidvq.codebook import Codebook
from vidvq.errors import UsageError
from vidvq.model import StreamState, Tokenizer

_LEVELS = 16


class ColourTokenizer(Tokenizer):
    """Encodes each block as one of 4096 colours. A real tokenizer loads weights from the path after `@`."""

    temporal_factor = 4
    spatial_factor = 8
    supports_streaming = True
    # Part of the fingerprint: increase it when the code gives other codes.
    version = "1"

    def __init__(self) -> None:
        super().__init__()
        # Moves with the tokenizer and tells its device.
        self.register_buffer("places", torch.tensor([_LEVELS**2, _LEVELS, 1]))

    @property
    def codebooks(self) -> list[Codebook]:
        """One codebook for all groups."""
        return [Codebook("joint", _LEVELS**3, 0)]

    @property
    def device(self) -> torch.device:
        """Device of the tokenizer, which has no parameters."""
        return self.places.device

    def encode(self, video: Tensor) -> Tensor:
        """Encode video `b c t h w` in [-1, 1] of any length and size to codes `b lt lh lw`."""
        video = self._as_tensor(video, "video")
        self._check_video(video)
        return self._encode(self.pad(video), first=True)

    def decode(self, codes: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Decode codes `b lt lh lw` to video `b c t h w`."""
        codes = self._as_codes(codes)
        self._check_codes(codes, first=True)
        t, h, w = self.crop_size(codes.shape[1:], num_frames, size)
        return self._decode(codes, first=True)[:, :, :t, :h, :w]

    def encode_step(self, frames: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Encode the next groups of streams. Groups are independent, so that the state holds no frames."""
        return self._encode(frames, first=state is None), self._next_state("encode", frames, state)

    def decode_step(self, codes: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Decode the next groups of streams."""
        self._check_codes(codes, first=state is None)
        return self._decode(codes, first=state is None), self._next_state("decode", codes, state)

    def _encode(self, video: Tensor, first: bool) -> Tensor:
        if first:
            # Frame 0 is a group of its own.
            video = torch.cat([repeat(video[:, :, :1], "b c 1 h w -> b c r h w", r=4), video[:, :, 1:]], dim=2)
        means = reduce(video.float(), "b c (t r) (h s) (w s2) -> b t h w c", "mean", r=4, s=8, s2=8)
        levels = ((means + 1) / 2 * (_LEVELS - 1)).round().long().clamp(0, _LEVELS - 1)
        return (levels * self.places).sum(dim=-1)

    def _decode(self, codes: Tensor, first: bool) -> Tensor:
        levels = codes[..., None] // self.places % _LEVELS
        video = repeat(levels / (_LEVELS - 1) * 2 - 1, "b t h w c -> b c (t r) (h s) (w s2)", r=4, s=8, s2=8)
        return video[:, :, 3:] if first else video

    def _next_state(self, kind: str, given: Tensor, state: StreamState | None) -> StreamState:
        shape = (given.shape[0], given.shape[-2], given.shape[-1])
        if state is not None and (state.kind, state.shape) != (kind, shape):
            raise UsageError(f"the state is of {state.kind} {state.shape}, not of {kind} {shape}")
        return StreamState(kind, shape, past=(), config="colour")
