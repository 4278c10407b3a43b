"""What `vidvq tokenize` can be told."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from vidvq.runtime import RuntimeConfig


@dataclass(frozen=True)
class TokenizeConfig:
    """`vidvq tokenize`.

    Attributes:
        max_failed: the share of clips that may fail before the exit code says so.
        runtime: where it runs; changes nothing in the output.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
