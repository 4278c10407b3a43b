"""Encoding of streams: any number of complete groups, in calls of one shape."""

from functools import partial

import torch
from torch import Tensor

from vidvq.model.calls import Call, Past, copy_past, run_in_blocks, run_network, split_past
from vidvq.model.config import TokenizerConfig
from vidvq.model.encoder import Encoder
from vidvq.model.groups import replicate_first_frame
from vidvq.model.pixels import normalize
from vidvq.model.quantize import SpatiotemporalQuantizer
from vidvq.model.step_shape import StepShape
from vidvq.model.stream_state import StreamState
from vidvq.model.tiles import Tiles


class StreamEncoder:
    """Maps frames of streams to codes.

    Args:
        config: architecture of the tokenizer.
        encoder: network that maps frames to latents.
        quantizer: quantizer of the latents.

    Attributes:
        call: maps ``first``, frames ``b c (g r) h w`` and their past to codes ``b g lh lw`` and the past of the next
            frames. Replaced by its compiled or captured form.
    """

    def __init__(self, config: TokenizerConfig, encoder: Encoder, quantizer: SpatiotemporalQuantizer) -> None:
        self._config, self._encoder, self._quantizer = config, encoder, quantizer
        self.call: Call = self.encode_call

    def tiles(self, height: int, width: int) -> Tiles:
        """Return the tiling of a frame of ``height`` x ``width`` latents."""
        size = self._config.tile // self._config.spatial_factor
        return Tiles.cover((height, width), size, self._encoder.receptive_radius)

    def encode(self, frames: Tensor, state: StreamState | None, shape: StepShape) -> tuple[Tensor, StreamState]:
        """Encode the next groups of a batch of streams.

        Args:
            frames: ``b c t h w``, uint8 or float in [-1, 1]: complete groups, after frame 0 if ``state`` is None.
            state: state after the previous groups; None at the start of the streams.
            shape: streams and groups of a call.

        Returns:
            Codes ``b g lh lw`` int64, and the state after the last group.
        """
        b, h, w = frames.shape[0], *frames.shape[3:]
        r, s = self._config.temporal_factor, self._config.spatial_factor
        tiles = self.tiles(h // s, w // s)
        parts, start = [], 0
        while start < frames.shape[2]:
            first = state is None
            piece = frames[:, :, start : start + shape.num_frames(r, first)]
            start += piece.shape[2]
            piece = replicate_first_frame(piece, r) if first else piece
            groups = piece.shape[2] // r
            if groups < shape.groups:
                missing = piece[:, :, -1:].expand(-1, -1, (shape.groups - groups) * r, -1, -1)
                piece = torch.cat([piece, missing], dim=2)
            codes, past = self._encode_windows(tiles.split(piece, s), state, tiles, shape.streams)
            parts.append(codes[:, :groups])
            state = StreamState("encode", (b, h, w), past, self._config, ended=groups < shape.groups)
        assert state is not None
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], state

    def _encode_windows(
        self, windows: Tensor, state: StreamState | None, tiles: Tiles, streams: int
    ) -> tuple[Tensor, Past]:
        """Encode the groups of one call for all windows ``(b n) c t h w`` to codes ``b g lh lw`` and their past."""
        first, past = state is None, state.past if state else None
        if len(tiles.spans) == 1:
            return run_in_blocks(partial(self.call, first), windows, past, streams)
        if streams == 1 and not self._quantizer.num_state_tensors and self.call == self.encode_call:
            # Margins are cropped before the search, whose sums are rounded by the number of latents.
            latents, past = run_in_blocks(self._encode_latents, windows, past, streams)
            kept = [
                self._quantizer.encode(tiles.crop(window, index), first)[0]
                for index, window in enumerate(latents.split(1))
            ]
        else:
            codes, past = run_in_blocks(partial(self.call, first), windows, past, streams)
            kept = [tiles.crop(window, index) for index, window in enumerate(codes.split(1))]
        return tiles.merge(kept), past

    def encode_call(self, first: bool, frames: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """See :attr:`call`, which starts as this method."""
        cached, quantizer_state = split_past(past, self._quantizer.num_state_tensors)
        latents, cached = self._encode_latents(frames, cached)
        codes, quantizer_state = self._quantizer.encode(latents, first, quantizer_state)
        return codes, copy_past((*cached, *quantizer_state), latents.shape[2])

    def _encode_latents(self, frames: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Map frames ``b c (g r) h w``, uint8 or in [-1, 1], to latents ``b d g lh lw``."""
        video = normalize(frames) if frames.dtype == torch.uint8 else frames
        return run_network(self._encoder, video.to(self._encoder.head.weight.dtype), past)
