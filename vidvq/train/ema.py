"""The exponential moving average of the weights, which is what gets saved."""

import torch
from torch import Tensor

from vidvq.model import VideoTokenizer

_EARLY = 10


class WeightAverage:
    """Averages what inference needs: the networks' weights and the codebooks that belong to them.

    The decay is ``min(decay, (1 + n) / (10 + n))`` after ``n`` updates, so that the first weights are soon forgotten.
    """

    def __init__(self, tokenizer: VideoTokenizer, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._average = {name: tensor.detach().float().clone() for name, tensor in self._of(tokenizer).items()}

    @torch.no_grad()
    def update(self, tokenizer: VideoTokenizer) -> None:
        """Take the present weights into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (_EARLY + self.updates))
        for name, tensor in self._of(tokenizer).items():
            self._average[name].lerp_(tensor.detach().float(), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors, by the names of :meth:`VideoTokenizer.inference_state_dict`."""
        return dict(self._average)

    def load_state_dict(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Go on from tensors that :meth:`state_dict` returned after ``updates`` updates."""
        self.updates = updates
        for name, average in self._average.items():
            average.copy_(tensors[name])

    @staticmethod
    def _of(tokenizer: VideoTokenizer) -> dict[str, Tensor]:
        return tokenizer.inference_state_dict()
