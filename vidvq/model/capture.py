"""Replay of network calls as CUDA graphs: one launch per call instead of one per kernel."""

from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

import torch
from torch import Tensor

Call = Callable[[bool, Tensor, "tuple[Tensor, ...] | None"], "tuple[Tensor, tuple[Tensor, ...]]"]
# The first calls compile, select kernels and allocate their workspaces, none of which a graph may record.
WARMUP_CALLS = 3


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor
    past: tuple[Tensor, ...]


class CapturedCall:
    """Records a call for each shape of its input, and replays it. Used on CUDA devices in inference only.

    Args:
        call: function of ``first``, the input and the cached frames; returns the output and the new cached frames.

    Attributes:
        warmup_s: time that compiling and recording have taken so far (seconds).
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._graphs: dict[tuple[object, ...], _Graph] = {}
        self.warmup_s = 0.0

    def __call__(self, first: bool, x: Tensor, past: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the call; the results are new tensors."""
        given = (x, *(past or ()))
        key = (first, *((tensor.shape, tensor.dtype) for tensor in given))
        recorded = self._graphs.get(key)
        if recorded is None:
            started = monotonic()
            recorded = self._graphs[key] = self._record(first, given)
            self.warmup_s += monotonic() - started
        for static, tensor in zip(recorded.inputs, given, strict=True):
            static.copy_(tensor)
        recorded.graph.replay()
        return recorded.output.clone(), tuple(tensor.clone() for tensor in recorded.past)

    def _record(self, first: bool, given: tuple[Tensor, ...]) -> _Graph:
        inputs = tuple(tensor.clone() for tensor in given)
        arguments = (first, inputs[0], inputs[1:] or None)
        # Recording requires a stream of its own, which must not overtake the copies above.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_CALLS):
                self._call(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, past = self._call(*arguments)
        return _Graph(graph, inputs, output, past)
