"""What `vidvq decode` can be told."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field


@dataclass(frozen=True)
class DecodeConfig:
    """`vidvq decode`.

    Attributes:
        format: ``mp4`` (a file per clip, H.264) or ``png`` (a folder of lossless frames per clip).
        key: decode this one clip alone.
        crf: x264's quality for mp4, 0 (lossless) to 51 (worst).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    format: Literal["mp4", "png"] = "mp4"
    key: str | None = None
    crf: Annotated[int, Field(ge=0, le=51)] = 17
