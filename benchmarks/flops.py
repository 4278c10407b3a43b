"""FLOP counting; a multiply-add counts as two operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _addmm_in_place(_: Any, left: tuple[int, ...], right: tuple[int, ...], **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def count_gflop(call: Callable[[], object]) -> float:
    """Count the GFLOP of convolutions and matrix products in a call, including a backward pass inside the call."""
    # PyTorch counts torch.addmm, but not its in-place variant.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_in_place}) as counter:
        call()
    return counter.get_total_flops() / 1e9
