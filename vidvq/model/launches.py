"""Counts of kernel launches, reads by the host and bytes copied, for tests and benchmarks; valid without a GPU."""

import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ALLOCATES = ("empty", "new_empty", "detach", "lift_fresh", "alias")
_READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select")
# A mask as an index is searched for its positions, whose number the host reads.
_INDEXED = ("index", "index_put", "index_put_")
_COPIES = ("_to_copy", "copy_")


class LaunchCounter(TorchDispatchMode):
    """Counts the operators inside a ``with`` block.

    Attributes:
        kernels: number of operators by name, without views and allocations.
        reads: number of values that the host reads; on a GPU each read waits for the device.
        constants: number of tensors made from Python values; on a GPU each of them waits for the device as well.
        where: number of reads and constants by calling function.
        bytes_to_device: bytes copied from the host to another device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.reads = self.constants = 0
        self.where: Counter[str] = Counter()
        self.bytes_to_device = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator and run it."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _READS or (name in _INDEXED and any(map(_is_mask, args[1]))):
            self.reads += 1
            self._note()
        if name == "lift_fresh":
            self.constants += 1
            self._note()
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
            self._note()

    def _note(self) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        self.where[f"{frames[-3].filename.rpartition('/')[2]}: {frames[-3].name}"] += 1


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple | list) and out else out
