"""Settings of `vidvq map`."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, JsonValue

from vidvq.jobs.clip_functions import ClipFunctionConfig


@dataclass(frozen=True, kw_only=True)
class MapConfig(ClipFunctionConfig):
    """Settings of `vidvq map`.

    Attributes:
        version: version of the function, for what its source file does not determine, such as weights or a library.
        arguments: keyword arguments of the function, class or factory.
    """

    version: Annotated[str, Field(coerce_numbers_to_str=True)] = ""
    arguments: dict[str, JsonValue] = field(default_factory=dict)
