"""Example stage for vidvq: measures the brightness of each clip, as columns.

`pip install ./examples/brightness_stage` adds the command `vidvq brightness CLIPS`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vidvq.formats.clip_shard import ClipInfo
from vidvq.formats.columns import PREFIX, column_files
from vidvq.jobs import ClipFunction, ClipFunctionConfig, ClipFunctionStage

# Share of each channel in the brightness of a pixel: red, green, blue (ITU-R BT.709).
_LUMA = np.array([0.2126, 0.7152, 0.0722])


@dataclass(frozen=True, kw_only=True)
class BrightnessConfig(ClipFunctionConfig):
    """Settings of `vidvq brightness`.

    Attributes:
        dark: the brightness below which a pixel counts as dark (0 to 1).
    """

    dark: Annotated[float, Field(ge=0, le=1)] = 0.1


@dataclass(frozen=True, kw_only=True)
class BrightnessStage(ClipFunctionStage):
    """Measure the brightness of clips: the column `brightness`, and the share of dark pixels, `dark_share`."""

    config: BrightnessConfig
    name = "brightness"
    prefix = PREFIX
    config_type = BrightnessConfig

    @classmethod
    def default_out(cls, inputs: list[str], **options: Any) -> Path:
        """The directory in which `where` finds the columns."""
        return cls.require_clips(inputs) / "columns" / cls.name

    def identity(self) -> dict[str, Any]:
        """Everything that the results depend on except the clips. Increase the version when the code changes."""
        return {"version": 1, "dark": self.config.dark}

    def function(self) -> ClipFunction:
        """Build the function that measures one clip; load a model here, once per worker."""
        dark = self.config.dark

        def measure(frames: np.ndarray, info: ClipInfo) -> dict[str, bytes]:
            luma = frames @ _LUMA / 255
            return column_files({"brightness": float(luma.mean()), "dark_share": float((luma < dark).mean())})

        return measure
