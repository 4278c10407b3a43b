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


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a tensor on a device, which does not wait for the work that is queued there."""
    # From pageable memory, CUDA would wait for its own buffers to be free.
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
