"""Replay of network calls as CUDA graphs: one launch per call instead of one per kernel."""

from functools import cached_property
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidvq.errors import UsageError, is_gpu_full
from vidvq.model.calls import Call, Past

# The first calls compile, select kernels and allocate their workspaces, none of which a graph may record.
WARMUP_CALLS = 3


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor
    past: Past


# Whether the input starts a stream, then the shape and type of each tensor.
_Key = tuple[object, ...]


class GraphMemory:
    """Memory pool shared by the graphs of one tokenizer, which are replayed one after another.

    Results are copied out before the next replay. Memory is reused within a stream only, so all graphs are recorded on
    one stream.
    """

    def __init__(self) -> None:
        self._recorded: list[dict[_Key, _Graph]] = []

    def graphs(self) -> dict[_Key, _Graph]:
        """Return the dictionary for the graphs of one more call."""
        self._recorded.append({})
        return self._recorded[-1]

    def clear(self) -> None:
        """Delete all graphs and free their memory."""
        torch.cuda.synchronize()
        for graphs in self._recorded:
            graphs.clear()
        # Without graphs, a pool cannot be used again.
        self.__dict__.pop("pool", None)
        torch.cuda.empty_cache()

    @cached_property
    def pool(self) -> Any:
        """Handle of the pool."""
        return torch.cuda.graph_pool_handle()

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """Stream on which all graphs are recorded, on the device that is current at first use."""
        try:
            return torch.cuda.Stream()
        except RuntimeError as error:
            if torch.cuda.is_available():
                raise
            raise UsageError(
                "capture=True records CUDA graphs, but torch finds no CUDA device; leave it out"
            ) from error


class CapturedCall:
    """Records a call for each shape of its input, and replays it. Used on CUDA devices in inference only.

    Args:
        call: function of ``first``, the input and its past; returns the output and the past of the next input.
        memory: memory pool and stream, shared with other calls.

    Attributes:
        warmup_s: time spent on compiling and recording so far (seconds).
    """

    def __init__(self, call: Call, memory: GraphMemory) -> None:
        self._call, self._memory = call, memory
        self._graphs = memory.graphs()
        self.warmup_s = 0.0

    def __call__(self, first: bool, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Run the call; the results are new tensors."""
        with torch.cuda.device_of(x):
            return self._replay(first, (x, *(past or ())))

    def _replay(self, first: bool, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Past]:
        key = (first, *((tensor.shape, tensor.dtype) for tensor in inputs))
        recorded = self._graphs.get(key)
        if recorded is None:
            started = monotonic()
            recorded = self._graphs[key] = self._record_or_make_room(first, inputs)
            self.warmup_s += monotonic() - started
        for static, tensor in zip(recorded.inputs, inputs, strict=True):
            static.copy_(tensor)
        recorded.graph.replay()
        return recorded.output.clone(), tuple(tensor.clone() for tensor in recorded.past)

    def _record_or_make_room(self, first: bool, inputs: tuple[Tensor, ...]) -> _Graph:
        try:
            return self._record(first, inputs)
        except RuntimeError as error:
            if not is_gpu_full(error):
                raise
        # Outside the block, whose exception holds tensors. Each shape has a graph, and there may be many shapes.
        self._memory.clear()
        return self._record(first, inputs)

    # Outside inference mode, whose tensors a later call outside of it could not write to.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _record(self, first: bool, examples: tuple[Tensor, ...]) -> _Graph:
        inputs = tuple(tensor.clone() for tensor in examples)
        arguments = (first, inputs[0], inputs[1:] or None)
        # Recording requires a separate stream, which must wait for the copies above.
        stream = self._memory.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_CALLS):
                self._call(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory.pool, stream=stream):
            output, past = self._call(*arguments)
        return _Graph(graph, inputs, output, past)
