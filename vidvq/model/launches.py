"""Counts of what a device is asked for: kernels, reads by the host and bytes copied. They need no device to be true."""

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ALLOCATES = ("empty", "new_empty", "detach", "lift_fresh", "alias")
_COPIES = ("_to_copy", "copy_")


class LaunchCounter(TorchDispatchMode):
    """Counts the operators inside a ``with`` block; the counts are read after it.

    Attributes:
        kernels: number of operators by name, without views and allocations.
        reads: number of times that the host reads a value; on a GPU each of them waits for the device.
        bytes_to_device: bytes copied from the host to another device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.reads = 0
        self.bytes_to_device = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator and run it."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero"):
            self.reads += 1
        if name in _COPIES:
            target, source = (args[0], args[1]) if name == "copy_" else (out, args[0])
            self._copy(source, target)
        returns = func._schema.returns
        is_view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        if not is_view and isinstance(_first(out), Tensor) and not name.startswith(_ALLOCATES):
            self.kernels[name] += 1
        return out

    def _copy(self, source: Any, target: Tensor) -> None:
        if not isinstance(source, Tensor) or source.device.type == target.device.type:
            return
        if source.device.type == "cpu":
            self.bytes_to_device += source.nbytes
        elif target.device.type == "cpu":
            self.reads += 1


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple | list) and out else out
