"""Decoding of streams by a decoder with lookahead, whose groups wait for the latents of later ones."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vidvq.model.calls import Past, copy_past, run_in_blocks, run_network, split_past
from vidvq.model.step_shape import StepShape
from vidvq.model.stream_decoder import StreamDecoder
from vidvq.model.stream_state import StreamState


class LookaheadDecoder(StreamDecoder):
    """Maps codes of streams to the frames of all groups whose later groups have arrived.

    The past of a stream also has the latents ``b d g h w`` of the waiting groups, after the cached frames. The call
    maps latents ``b d (g + lookahead) h w``, instead of codes.
    """

    def decode(self, codes: Tensor, state: StreamState | None, shape: StepShape) -> tuple[Tensor, StreamState]:
        """Decode the groups before the last ``lookahead`` ones; see :meth:`StreamDecoder.decode`."""
        return self._decode_waiting(self._append(codes, state, shape.streams), shape)

    def rest(self, state: StreamState, shape: StepShape) -> Tensor:
        """Decode the waiting groups, as if the streams ended with them; see :meth:`StreamDecoder.rest`."""
        return self._decode_waiting(state, shape, ends=True)[0]

    def decode_call(self, first: bool, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """See :attr:`call`, which starts as this method."""
        frames, after = run_network(self._decoder, x, past)
        return self._finish(frames, first), copy_past(after, x.shape[2] - self._config.decoder.lookahead)

    def _append(self, codes: Tensor, state: StreamState | None, streams: int) -> StreamState:
        """Append the latents of codes ``b g h w`` to the waiting ones."""
        cached, waiting, quantizer_state = self._split(state)
        parts = [*waiting]
        # Group by group and in calls of one batch size, because products of other shapes round differently.
        for group in codes.split(1, dim=1):
            lookup = partial(self._lookup, state is None and not parts)
            latents, quantizer_state = run_in_blocks(lookup, group, quantizer_state, streams)
            parts.append(latents)
        waiting = torch.cat(parts, dim=2)
        b, _, h, w = codes.shape
        starts = state is None or state.starts
        return StreamState("decode", (b, h, w), (*cached, waiting, *quantizer_state), self._config, starts=starts)

    def _lookup(self, first: bool, codes: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        return self._quantizer.lookup(codes, first, past or ())

    def _decode_waiting(self, state: StreamState, shape: StepShape, ends: bool = False) -> tuple[Tensor, StreamState]:
        """Decode the waiting groups whose later groups have arrived.

        Args:
            state: state with waiting latents.
            shape: streams and groups of a call.
            ends: whether the streams end with the waiting groups; copies of the last latents then stand in for later
                ones.

        Returns:
            Frames ``b c t h w``, and the state with the latents that still wait.
        """
        cached, (waiting,), quantizer_state = self._split(state)
        tiles, lookahead = self.tiles(*waiting.shape[3:]), self._config.decoder.lookahead
        groups, left = shape.groups, waiting.shape[2]
        if ends:
            waiting = torch.cat([waiting, *[waiting[:, :, -1:]] * (-left % groups + lookahead)], dim=2)
        parts, first = [self._no_frames(state)], state.starts
        while waiting.shape[2] >= groups + lookahead:
            x = waiting[:, :, : groups + lookahead].to(self._dtype)
            frames, cached = self._decode_tiles(x, first, None if first else cached, tiles, shape.streams)
            parts.append(frames[:, :, : self._num_frames(min(groups, left), first)])
            waiting, left, first = waiting[:, :, groups:], left - groups, False
        # A copy, because a view would keep all latents of a long stream alive.
        past = (*cached, waiting.clone(), *quantizer_state)
        return torch.cat(parts, dim=2), replace(state, past=past, starts=first)

    def _split(self, state: StreamState | None) -> tuple[Past, Past, Past]:
        """Split the past of a stream into cached frames, waiting latents ``b d g h w`` and state of the quantizer."""
        if state is None:
            return (), (), ()
        past, quantizer_state = split_past(state.past, self._quantizer.num_state_tensors)
        assert past is not None
        return past[:-1], past[-1:], quantizer_state
