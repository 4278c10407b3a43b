"""FLOP counting; a multiply-add counts as two operations."""

from collections.abc import Callable

from vidvq.train.throughput import count_flops


def count_gflop(call: Callable[[], object]) -> float:
    """Count the GFLOP of convolutions and matrix products in a call, including a backward pass inside the call."""
    return count_flops(call) / 1e9
