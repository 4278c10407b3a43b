"""What `vidvq export` can be told."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vidvq.errors import UsageError


@dataclass(frozen=True)
class ExportConfig:
    """`vidvq export`.

    Attributes:
        order: ``raster`` (``t h w``) or ``temporal`` (``h w t``: all times of one place first).
        specials: ``clip`` (a start and an end around each clip), ``group`` (those, and a start before each latent
            time; raster order alone) or ``none``.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    order: Literal["raster", "temporal"] = "raster"
    specials: Literal["none", "clip", "group"] = "clip"

    def __post_init__(self) -> None:
        if self.specials == "group" and self.order != "raster":
            raise UsageError("specials=group needs order=raster; in temporal order the groups lie interleaved")
