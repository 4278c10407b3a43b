"""The exponential moving average of the weights, which is what gets saved."""

import torch
from torch import Tensor, nn

from vidvq.model import VideoTokenizer
from vidvq.train.engine import local_weight, whole_weight

_EARLY = 10


class WeightAverage:
    """Averages what inference needs: the networks' weights and the codebooks that belong to them.

    Under ZeRO 3 each rank averages its share of the weights. The decay is ``min(decay, (1 + n) / (10 + n))`` after
    ``n`` updates, so that the first weights are soon forgotten.
    """

    def __init__(self, tokenizer: VideoTokenizer, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._tokenizer = tokenizer
        self._average = {name: local.detach().float().clone() for name, _, local in self._present()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (_EARLY + self.updates))
        for name, _, local in self._present():
            self._average[name].lerp_(local.detach().float(), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors by name, whole; every rank calls it."""
        return {
            name: whole_weight(tensor, self._average[name]) if isinstance(tensor, nn.Parameter) else self._average[name]
            for name, tensor, _ in self._present()
        }

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Go on from tensors that :meth:`state_dict` returned after ``updates`` updates, on any number of ranks."""
        self.updates = updates
        for name, _, _ in self._present():
            average, given = self._average[name], tensors[name].flatten().to(self._average[name].device)
            if average.numel() != given.numel() or average.ndim != tensors[name].ndim:
                start = average.numel() * torch.distributed.get_rank()
                given = given[start : start + average.numel()]
                given = nn.functional.pad(given, (0, average.numel() - len(given)))
            average.copy_(given.view_as(average))

    def _present(self) -> list[tuple[str, Tensor, Tensor]]:
        """Name, tensor of the module, and what this rank has of it."""
        kept = self._tokenizer.inference_state_dict().keys()
        weights = [(name, weight, local_weight(weight)) for name, weight in self._tokenizer.named_parameters()]
        buffers = [(name, buffer, buffer) for name, buffer in self._tokenizer.named_buffers() if name in kept]
        return weights + buffers
