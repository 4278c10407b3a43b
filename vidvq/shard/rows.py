"""The plan rows of `vidvq shard`."""

from dataclasses import dataclass, replace
from typing import Self

from vidvq.formats.rows import Int32
from vidvq.jobs.rows import VideoRow


@dataclass(frozen=True, kw_only=True)
class PlannedClip(VideoRow):
    """One clip to cut, or an item that cannot become a clip.

    Attributes:
        verdict: "" for a clip to cut; else ``failed`` or ``filtered``, as decided by probing.
    """

    num_frames: Int32 = 0
    verdict: str = ""

    @property
    def outcome(self) -> str:
        """The verdict."""
        return self.verdict

    def leave_out(self, reason: str, detail: str) -> Self:
        """A copy of the row that is filtered for a reason."""
        return replace(self, verdict="filtered", reason=reason, detail=detail)
