"""Floating-point operations of a call; a multiply and an add count as two."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _addmm_in_place(_: Any, left: tuple[int, ...], right: tuple[int, ...], **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def count_gflop(call: Callable[[], object]) -> float:
    """GFLOP of the convolutions and matrix products in a call, its backward pass included where it has one."""
    # torch counts torch.addmm, and misses it in place.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_in_place}) as counter:
        call()
    return counter.get_total_flops() / 1e9
