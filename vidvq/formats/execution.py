"""Execution of the networks of a job, as plans, tokenizer cards and `decode.json` record it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from vidvq.errors import UsageError

Precision = Literal["fp32", "tf32", "bf16"]
# Pixels of one call that fit a GPU of 40 GB with the largest configuration.
MAX_PIXELS = 1 << 27


@dataclass(frozen=True)
class Execution:
    """How samples are encoded or decoded: everything except the weights that rounding depends on.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: precision of the networks: ``fp32``, ``tf32`` or ``bf16``.
        compiled: whether the networks are compiled.
        streams: streams per call of the encoder or decoder.
        groups: groups of each stream per call.
        max_pixels: pixels of a call, above which streams and then groups are halved.
        gpu: name of the kind of GPU; ``any`` if the kinds may differ; None on CPUs, and in plans of older versions.
        kernels: ``triton``; None for the kernels of torch.
    """

    device: str
    precision: Precision
    compiled: bool
    streams: int
    groups: int
    max_pixels: int
    gpu: str | None = None
    kernels: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields for plans and cards."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def is_default(self) -> bool:
        """Whether this is the execution on CPUs with one group per call, which plans and cards do not record."""
        return (self.device, self.precision, self.compiled, self.groups) == ("cpu", "fp32", False, 1)


ANY_GPU = "any"
CPU = Execution("cpu", "fp32", False, 1, 1, MAX_PIXELS)


def resolve_precision(asked: Precision | None, device: str) -> Precision:
    """Return the precision of the networks: the one that is asked for, or the default of the device.

    Args:
        asked: a setting; None for the default.
        device: ``cpu`` or ``cuda``.

    Raises:
        UsageError: the precision is not available on the device.
    """
    if device == "cpu" and asked not in (None, "fp32"):
        raise UsageError(f"precision={asked} needs a GPU; on CPUs the precision is fp32")
    return asked or ("fp32" if device == "cpu" else "bf16")
