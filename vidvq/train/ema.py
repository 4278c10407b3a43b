"""The exponential moving average of the weights, which checkpoints hold."""

import torch
from torch import Tensor, nn

from vidvq.model import VideoTokenizer
from vidvq.train.engine import local_part, local_weight, whole_weight

_EARLY = 10


class WeightAverage:
    """Averages the tensors of inference: the weights of encoder and decoder, and the codebooks.

    Under ZeRO 3 each rank averages its shard of the weights. The decay is ``min(decay, (1 + n) / (10 + n))`` after
    ``n`` updates, so that the initial weights are soon forgotten.
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
        """The complete averaged tensors by name; every rank calls it."""
        return {
            name: whole_weight(tensor, self._average[name]) if isinstance(tensor, nn.Parameter) else self._average[name]
            for name, tensor, _ in self._current()
        }

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Load what :meth:`state_dict` returned after ``updates`` updates, on any number of ranks."""
        self.updates = updates
        for name, tensor, _ in self._current():
            whole = tensors[name]
            self._average[name].copy_(local_part(tensor, whole) if isinstance(tensor, nn.Parameter) else whole)

    def _current(self) -> list[tuple[str, Tensor, Tensor]]:
        """Name, the module's tensor, and this rank's part of it."""
        kept = self._tokenizer.inference_state_dict().keys()
        weights = [(name, weight, local_weight(weight)) for name, weight in self._tokenizer.named_parameters()]
        buffers = [(name, buffer, buffer) for name, buffer in self._tokenizer.named_buffers() if name in kept]
        return weights + buffers
