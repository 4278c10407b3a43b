"""Copies batches to the device while it computes."""

import torch
from torch import Tensor


class Uploader:
    """Copies tensors to a device; on CUDA devices on a stream of its own.

    Args:
        device: device of the training process.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Tensor) -> Tensor:
        """Return a batch on the device. The copy of pinned memory overlaps with work that is queued already."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        copied.record_stream(current)
        return copied
