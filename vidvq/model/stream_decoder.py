"""Decoding of streams: any number of groups, in calls of one shape."""

from functools import partial

import torch
from torch import Tensor

from vidvq.model.calls import Call, Past, copy_past, run_in_blocks, run_network, split_past
from vidvq.model.config import TokenizerConfig
from vidvq.model.encoder import Decoder
from vidvq.model.groups import merge_first_group
from vidvq.model.quantize import SpatiotemporalQuantizer
from vidvq.model.step_shape import StepShape
from vidvq.model.stream_state import StreamState
from vidvq.model.tiles import Tiles


class StreamDecoder:
    """Maps codes of streams to frames.

    Args:
        config: architecture of the tokenizer.
        decoder: network that maps latents to frames.
        quantizer: quantizer of the latents.

    Attributes:
        call: maps ``first``, codes ``b g lh lw`` and their past to frames ``b c t h w`` in [-1, 1] and the past of the
            next codes. Replaced by its compiled or captured form.
    """

    def __init__(self, config: TokenizerConfig, decoder: Decoder, quantizer: SpatiotemporalQuantizer) -> None:
        self._config, self._decoder, self._quantizer = config, decoder, quantizer
        self._scale = config.spatial_factor * config.decoder.upscale
        self.call: Call = self.decode_call

    def tiles(self, height: int, width: int) -> Tiles:
        """Return the tiling of a frame of ``height`` x ``width`` latents."""
        return Tiles.cover((height, width), self._config.tile // self._scale, self._decoder.receptive_radius)

    def decode(self, codes: Tensor, state: StreamState | None, shape: StepShape) -> tuple[Tensor, StreamState]:
        """Decode the next groups of a batch of streams.

        Args:
            codes: ``b g lh lw`` int64, from the first group if ``state`` is None.
            state: state after the previous groups; None at the start of the streams.
            shape: streams and groups of a call.

        Returns:
            Frames ``b c t h w`` in [-1, 1], and the state after the last group.
        """
        b, h, w = codes.shape[0], *codes.shape[2:]
        tiles, parts = self.tiles(h, w), []
        for piece in codes.split(shape.groups, dim=1):
            first, past, groups = state is None, state.past if state else None, piece.shape[1]
            if groups < shape.groups:
                piece = torch.cat([piece, piece[:, -1:].expand(-1, shape.groups - groups, -1, -1)], dim=1)
            frames, past = self._decode_tiles(piece, first, past, tiles, shape.streams)
            parts.append(frames[:, :, : self._num_frames(groups, first)])
            state = StreamState("decode", (b, h, w), past, self._config, ended=groups < shape.groups)
        assert state is not None
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0], state

    def rest(self, state: StreamState, shape: StepShape) -> Tensor:
        """Decode the groups that :meth:`decode` still holds: none, because it decodes each at once.

        Args:
            state: state after the last group.
            shape: streams and groups of a call.

        Returns:
            Frames ``b c t h w`` in [-1, 1].
        """
        return self._no_frames(state)

    def decode_call(self, first: bool, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """See :attr:`call`, which starts as this method."""
        cached, quantizer_state = split_past(past, self._quantizer.num_state_tensors)
        latents, quantizer_state = self._quantizer.lookup(x, first, quantizer_state)
        frames, cached = run_network(self._decoder, latents.to(self._dtype), cached)
        return self._finish(frames, first), copy_past((*cached, *quantizer_state), x.shape[1])

    @property
    def _dtype(self) -> torch.dtype:
        return self._decoder.head.weight.dtype

    def _decode_tiles(
        self, x: Tensor, first: bool, past: Past | None, tiles: Tiles, streams: int
    ) -> tuple[Tensor, Past]:
        """Decode the groups of one call, tile by tile: frames ``b c t h w``, and the past of the next groups."""
        frames, past = run_in_blocks(partial(self.call, first), tiles.split(x), past, streams)
        if len(tiles.spans) == 1:
            return frames, past
        kept = [tiles.crop(window, index, self._scale) for index, window in enumerate(frames.split(1))]
        return tiles.merge(kept), past

    def _finish(self, frames: Tensor, first: bool) -> Tensor:
        frames = merge_first_group(frames, self._config.temporal_factor) if first else frames
        return frames.float().clamp(-1, 1)

    def _num_frames(self, groups: int, first: bool) -> int:
        return StepShape(groups=groups).num_frames(self._config.temporal_factor, first)

    def _no_frames(self, state: StreamState) -> Tensor:
        b, h, w = state.shape
        return torch.zeros(b, 3, 0, h * self._scale, w * self._scale, device=state.past[0].device, dtype=torch.float32)
