"""State of a batch of streams between two steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vidvq.arguments import as_integer
from vidvq.errors import UsageError


@dataclass(frozen=True)
class StreamState:
    """State of a batch of streams between two steps. Immutable: each step returns a new state.

    Attributes:
        kind: ``encode`` or ``decode``.
        shape: batch size, height and width of the input of a step.
        past: cached frames of each layer, then waiting latents of a decoder with lookahead, then the state of the
            quantizer. The first axis is the batch: ``n`` rows per stream, one per tile.
        config: config of the tokenizer that created the state; other tokenizers reject it.
        ended: whether the last step was shorter than the step shape; the streams cannot continue.
        starts: whether a decoder with lookahead has not decoded frame 0 yet.
    """

    kind: str
    shape: tuple[int, int, int]
    past: tuple[Tensor, ...]
    config: object
    ended: bool = False
    starts: bool = True

    def select(self, index: int) -> "StreamState":
        """Return the state of one stream of the batch, as views of the batch's tensors.

        Args:
            index: position of the stream in the batch.

        Raises:
            IndexError: ``index`` is out of range.
            UsageError: ``index`` is not an integer.
        """
        batch, index = self.shape[0], as_integer("index", index)
        if not 0 <= index < batch:
            raise IndexError(f"index={index} must be from 0 to {batch - 1}, the streams of the batch")
        rows = (len(tensor) // batch for tensor in self.past)
        past = tuple(tensor[index * n : (index + 1) * n] for tensor, n in zip(self.past, rows, strict=True))
        return replace(self, shape=(1, *self.shape[1:]), past=past)

    @staticmethod
    def stack(states: "Sequence[StreamState | None]") -> "StreamState | None":
        """Combine the states of single streams into the state of a batch.

        Args:
            states: one state per slot; None marks an empty slot, which is filled with zeros.

        Returns:
            The state of the batch; None if every slot is empty.

        Raises:
            UsageError: one is not a state, the states differ in kind, size or tokenizer, or some are those of ended
                streams.
        """
        known = [state for state in states if state is not None]
        if not known:
            return None
        for state in known:
            check_state(state)
        first = known[0]
        if any(_signature(state) != _signature(first) for state in known):
            shapes = sorted({(state.kind, *state.shape) for state in known})
            raise UsageError(
                f"states of {shapes} cannot be stacked; a batch has streams of one kind, size and config, none of them "
                "ended or all, with as many latents waiting"
            )
        empty = tuple(torch.zeros_like(tensor) for tensor in first.past)
        pasts = [empty if state is None else state.past for state in states]
        past = tuple(torch.cat(tensors) for tensors in zip(*pasts, strict=True))
        return replace(first, shape=(len(states) * first.shape[0], *first.shape[1:]), past=past)


def check_state(state: Any) -> None:
    """Check a state that a step returned.

    Raises:
        UsageError: it is not a :class:`StreamState`.
    """
    if not isinstance(state, StreamState):
        raise UsageError(
            f"the state is a {type(state).__name__}; it must be a vidvq.model.StreamState, the second result of a step"
        )


def _signature(state: StreamState) -> tuple[object, ...]:
    # Includes shapes: with lookahead, the number of waiting latents differs at the start of a stream.
    shapes = [tensor.shape[1:] for tensor in state.past]
    return state.kind, state.shape, state.config, state.ended, state.starts, shapes
