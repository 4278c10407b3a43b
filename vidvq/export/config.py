"""Settings of `vidvq export`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vidvq.errors import UsageError


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `vidvq export`.

    Attributes:
        order: order of the ids of a clip: ``raster`` (``t h w``) or ``temporal`` (``h w t``, all times of one position
            first).
        specials: special tokens: ``clip`` (a start and an end token around each clip), ``group`` (in addition a start
            token before each latent frame; raster order only) or ``none``.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    order: Literal["raster", "temporal"] = "raster"
    specials: Literal["none", "clip", "group"] = "clip"

    def __post_init__(self) -> None:
        if self.specials == "group" and self.order != "raster":
            raise UsageError("specials=group needs order=raster; temporal order interleaves the groups")
