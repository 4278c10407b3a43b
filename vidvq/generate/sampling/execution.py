"""Execution of the network of a job that generates. Imports no torch: drivers load this module."""

from dataclasses import dataclass
from typing import Any

from vidvq.formats.execution import Precision, resolve_precision
from vidvq.generate.requests import RequestConfig

_GPU_BATCH = 16


@dataclass(frozen=True)
class GenerationExecution:
    """How samples are generated: everything except the generator and the request that rounding depends on.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: precision of the blocks of the network.
        batch: samples per call of the network.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    batch: int = 1

    def identity(self) -> dict[str, Any]:
        """Return the entries of the plan; none for the default on CPUs."""
        return {} if self == CPU else {"execution": vars(self)}


CPU = GenerationExecution()


def resolve_execution(config: RequestConfig, device: str) -> GenerationExecution:
    """Decide how samples are generated.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        UsageError: the precision is not available on the device.
    """
    return GenerationExecution(device, resolve_precision(config.precision, device), resolve_batch(config.batch, device))


def resolve_batch(asked: int | None, device: str) -> int:
    """Return the samples per call of the network: the number that is asked for, or the default of the device.

    Args:
        asked: a setting; None for the default.
        device: ``cpu`` or ``cuda``.
    """
    return asked or (_GPU_BATCH if device == "cuda" else 1)
