"""Copying of batches to the device, overlapped with computation."""

import torch
from torch import Tensor


class DeviceCopier:
    """Copies tensors to a device, on a separate stream for CUDA devices.

    Args:
        device: device to copy to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Tensor) -> Tensor:
        """Return a copy of a batch on the device. A copy from pinned memory overlaps with work queued before."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        copied.record_stream(current)
        return copied
