"""Replay of network calls as CUDA graphs: one launch per call instead of one per kernel."""

from functools import cached_property
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidvq.model.calls import Call, Past

# The first calls compile, select kernels and allocate their workspaces, none of which a graph may record.
WARMUP_CALLS = 3


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor
    past: Past


class GraphMemory:
    """Memory in which the graphs of one tokenizer work, one after another, instead of each in its own.

    Results are copied out before the next replay. Memory is reused within a stream only, so all are recorded on one.
    """

    @cached_property
    def pool(self) -> Any:
        """Handle of the memory."""
        return torch.cuda.graph_pool_handle()

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """The stream of the recordings, on the device that is current at first use."""
        return torch.cuda.Stream()


class CapturedCall:
    """Records a call for each shape of its input, and replays it. Used on CUDA devices in inference only.

    Args:
        call: function of ``first``, the input and the cached frames; returns the output and the new cached frames.
        shared: what this call shares with others.

    Attributes:
        warmup_s: time that compiling and recording have taken so far (seconds).
    """

    def __init__(self, call: Call, shared: GraphMemory) -> None:
        self._call, self._shared = call, shared
        self._graphs: dict[tuple[object, ...], _Graph] = {}
        self.warmup_s = 0.0

    def __call__(self, first: bool, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Run the call; the results are new tensors."""
        with torch.cuda.device_of(x):
            return self._replay(first, (x, *(past or ())))

    def _replay(self, first: bool, given: tuple[Tensor, ...]) -> tuple[Tensor, Past]:
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

    # Tensors of inference mode could not be written to by a later call outside of it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _record(self, first: bool, given: tuple[Tensor, ...]) -> _Graph:
        inputs = tuple(tensor.clone() for tensor in given)
        arguments = (first, inputs[0], inputs[1:] or None)
        # Recording requires a stream of its own, which must not overtake the copies above.
        stream = self._shared.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_CALLS):
                self._call(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._shared.pool, stream=stream):
            output, past = self._call(*arguments)
        return _Graph(graph, inputs, output, past)
