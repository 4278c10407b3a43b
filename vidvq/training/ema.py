"""Exponential moving average of the weights, which checkpoints contain."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch import _foreach_lerp_ as foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]

from vidvq.training.engine import gather_full, local_shard, local_shard_of

# Speed at which the initial weights are forgotten (updates); see WeightAverage.
_EARLY = 10


class WeightAverage:
    """Exponential moving average of the weights of a module, and of some of its buffers.

    Under ZeRO 3 each rank averages its shard of the weights. The decay of update ``n`` is
    ``min(decay, (1 + n) / (10 + n))``, so that the initial weights are quickly forgotten.

    Args:
        module: trained module.
        decay: decay per update (0 to below 1).
        buffers: names of the buffers to average.
        frozen: prefixes of the names of tensors that training does not change; their average keeps every bit.

    Attributes:
        decay: decay per update.
        updates: number of updates so far.
    """

    def __init__(
        self, module: nn.Module, decay: float, buffers: Collection[str] = (), frozen: tuple[str, ...] = ()
    ) -> None:
        self.decay, self.updates, self._frozen = decay, 0, frozen
        # Listed once, because a walk over the modules takes as long as the update itself.
        self._tensors: list[tuple[str, Tensor]] = list(module.named_parameters())
        self._tensors += [(name, buffer) for name, buffer in module.named_buffers() if name in buffers]
        self._average = {name: local.detach().float().clone() for name, _, local in self._current()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (_EARLY + self.updates))
        # Interpolating a tensor with itself would change the sign of its zeros, and so its fingerprint.
        current = [entry for entry in self._current() if not entry[0].startswith(self._frozen)]
        averages = [self._average[name] for name, _, _ in current]
        foreach_lerp_(averages, [local.detach().float() for _, _, local in current], 1 - decay)

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
        return [
            (name, tensor, local_shard(tensor) if isinstance(tensor, nn.Parameter) else tensor)
            for name, tensor in self._tensors
        ]
