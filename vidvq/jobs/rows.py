"""The rows of plans, for the two kinds of input that a stage can have: videos, and clip shards."""

from dataclasses import dataclass

from vidvq.corpus.source import Source
from vidvq.formats.rows import Int32, PlanRow
from vidvq.redact import redact


@dataclass(frozen=True, kw_only=True)
class VideoRow(PlanRow):
    """One item cut from a video: frames ``first`` to ``first + num_frames`` of its sampled timeline.

    Attributes:
        source: the video, as listed; its range is that of the list, not of the item.
        sha256: SHA-256 of the video (hex); "" if it could not be read.
        clip_index: index of the item among those of its source, from 0.
        first: first frame.
    """

    source: Source
    sha256: str = ""
    clip_index: Int32 = 0
    first: int = 0
    num_frames: int = 0

    @property
    def origin(self) -> str:
        """The uri of the video, without credentials."""
        return redact(self.source.uri)


@dataclass(frozen=True, kw_only=True)
class ClipRow(PlanRow):
    """One clip of a clip shard.

    Attributes:
        clip_shard: file name of the clip shard.
        clip_shard_sha256: its SHA-256 (hex); "" if the shard no longer holds any clip.
    """

    clip_shard: str
    clip_shard_sha256: str

    @property
    def origin(self) -> str:
        """The file name of the clip shard."""
        return self.clip_shard
