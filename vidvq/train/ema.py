"""Exponential moving average of the weights, which checkpoints contain."""

import torch
from torch import Tensor, nn

from vidvq.model import VideoTokenizer
from vidvq.train.engine import gather_full, local_shard, local_shard_of

_EARLY = 10


class WeightAverage:
    """Moving average of the inference tensors: encoder, decoder and codebooks.

    Under ZeRO 3 each rank averages its shard of the weights. The decay after ``n`` updates is
    ``min(decay, (1 + n) / (10 + n))``, so that the initial weights are quickly forgotten.

    Args:
        tokenizer: the trained tokenizer.
        decay: decay per update.

    Attributes:
        decay: decay per update.
        updates: number of updates so far.
    """

    def __init__(self, tokenizer: VideoTokenizer, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._tokenizer = tokenizer
        self._average = {name: local.detach().float().clone() for name, _, local in self._current()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (_EARLY + self.updates))
        for name, _, local in self._current():
            self._average[name].lerp_(local.detach().float(), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the complete averaged tensors by name. Collective: call on every rank."""
        return {
            name: gather_full(tensor, self._average[name]) if isinstance(tensor, nn.Parameter) else self._average[name]
            for name, tensor, _ in self._current()
        }

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Load the tensors that :meth:`state_dict` returned after ``updates`` updates, on any number of ranks."""
        self.updates = updates
        for name, tensor, _ in self._current():
            whole = tensors[name]
            self._average[name].copy_(local_shard_of(tensor, whole) if isinstance(tensor, nn.Parameter) else whole)

    def _current(self) -> list[tuple[str, Tensor, Tensor]]:
        """Return name, module tensor and local shard of each averaged tensor."""
        kept = self._tokenizer.inference_state_dict().keys()
        weights = [(name, weight, local_shard(weight)) for name, weight in self._tokenizer.named_parameters()]
        buffers = [(name, buffer, buffer) for name, buffer in self._tokenizer.named_buffers() if name in kept]
        return weights + buffers
