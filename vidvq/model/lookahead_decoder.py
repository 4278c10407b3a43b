"""Decoding of streams by a decoder with lookahead, whose groups wait for the latents of later ones."""

from dataclasses import replace

import torch
from torch import Tensor

from vidvq.model.calls import Past, own_past, run_network, split_past
from vidvq.model.step_shape import StepShape
from vidvq.model.stream_decoder import StreamDecoder
from vidvq.model.stream_state import StreamState


class LookaheadDecoder(StreamDecoder):
    """Maps codes of streams to the frames whose later groups are known.

    The past of a stream has the latents ``b d g h w`` of the groups that wait between its cached frames and the state
    of the quantizer. The call maps latents ``b d (g + lookahead) h w``, instead of codes.
    """

    def decode(self, codes: Tensor, state: StreamState | None, shape: StepShape) -> tuple[Tensor, StreamState]:
        """Decode the groups before the last ``lookahead`` ones; see :meth:`StreamDecoder.decode`."""
        return self._decode_waiting(self._append(codes, state), shape)

    def rest(self, state: StreamState, shape: StepShape) -> Tensor:
        """Decode the groups that wait, as if the streams ended with them; see :meth:`StreamDecoder.rest`."""
        return self._decode_waiting(state, shape, ends=True)[0]

    def decode_call(self, first: bool, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """See :attr:`call`, which starts as this method."""
        frames, after = run_network(self._decoder, x, past)
        return self._finish(frames, first), own_past(after, x.shape[2] - self._config.decoder.lookahead)

    def _append(self, codes: Tensor, state: StreamState | None) -> StreamState:
        """Append the latents of codes ``b g h w`` to those that wait."""
        cached, waiting, known = self._split(state)
        latents, known = self._quantizer.lookup(codes, state is None, known)
        waiting = (torch.cat([*waiting, latents], dim=2),)
        b, _, h, w = codes.shape
        starts = state is None or state.starts
        return StreamState("decode", (b, h, w), (*cached, *waiting, *known), self._config, starts=starts)

    def _decode_waiting(self, state: StreamState, shape: StepShape, ends: bool = False) -> tuple[Tensor, StreamState]:
        """Decode the groups that wait, as far as the latents of the groups after them are known.

        Args:
            state: state with latents that wait.
            shape: streams and groups of a call.
            ends: whether the streams end with them; copies of the last ones then take the place of later groups.

        Returns:
            Frames ``b c t h w``, and the state with the latents that are left.
        """
        cached, (line,), known = self._split(state)
        tiles, lookahead = self.tiles(*line.shape[3:]), self._config.decoder.lookahead
        groups, left = shape.groups, line.shape[2]
        if ends:
            line = torch.cat([line, *[line[:, :, -1:]] * (-left % groups + lookahead)], dim=2)
        parts, first = [self._no_frames(state)], state.starts
        while line.shape[2] >= groups + lookahead:
            x = line[:, :, : groups + lookahead].to(self._dtype)
            frames, cached = self._decode_tiles(x, first, None if first else cached, tiles, shape.streams)
            parts.append(frames[:, :, : self._num_frames(min(groups, left), first)])
            line, left, first = line[:, :, groups:], left - groups, False
        # A copy: the rest of a long line should not hold all of it.
        past = (*cached, line.clone(), *known)
        return torch.cat(parts, dim=2), replace(state, past=past, starts=first)

    def _split(self, state: StreamState | None) -> tuple[Past, Past, Past]:
        """Split the past of a stream into cached frames, waiting latents ``b d g h w`` and state of the quantizer."""
        if state is None:
            return (), (), ()
        past, known = split_past(state.past, self._quantizer.num_state_tensors)
        assert past is not None
        return past[:-1], past[-1:], known
