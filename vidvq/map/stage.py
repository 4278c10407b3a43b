"""`vidvq map` as a stage of the corpus job."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidvq.formats.clip_shard import ClipInfo
from vidvq.formats.columns import FOLDER, PREFIX, column_files
from vidvq.jobs.clip_functions import ClipFunction, ClipFunctionStage
from vidvq.map.config import MapConfig
from vidvq.map.function import FunctionSource, find_function


@dataclass(frozen=True, kw_only=True)
class MapStage(ClipFunctionStage):
    """Runs a user's function over clips and writes its results as columns."""

    config: MapConfig
    source: FunctionSource
    name = "map"
    prefix = PREFIX
    config_type = MapConfig

    @classmethod
    def open(cls, inputs: list[str], config: MapConfig, **options: Any) -> "MapStage":
        """Build the stage for a job; the option is ``function``."""
        clips = cls.require_clips(inputs)
        return cls(clips=clips, config=config, source=find_function(options["function"], config.arguments))

    @classmethod
    def default_out(cls, inputs: list[str], **options: Any) -> Path:
        """The directory ``columns/NAME`` in the clip directory, with the name of the function."""
        return cls.require_clips(inputs) / FOLDER / options["function"].rpartition(":")[2]

    def identity(self) -> dict[str, Any]:
        """Name and hash of the function, its version and its arguments."""
        function = {"name": self.source.name, "sha256": self.source.sha256}
        return {"function": function, "version": self.config.version, "arguments": self.config.arguments}

    def function(self) -> ClipFunction:
        """Build the user's function."""
        columns_of = self.source.build(self.config.arguments)

        def make(frames: np.ndarray, info: ClipInfo) -> dict[str, bytes]:
            return column_files(columns_of(frames, info))

        return make
