"""The rows of a plan of clips."""

from dataclasses import dataclass, replace
from typing import Self

from vidvq.formats.rows import Int32
from vidvq.jobs.rows import VideoRow


@dataclass(frozen=True, kw_only=True)
class PlannedClip(VideoRow):
    """One clip to cut, or an item that cannot become one.

    Attributes:
        verdict: what was decided without decoding: "" for a clip to cut, else ``failed`` or ``filtered``.
    """

    num_frames: Int32 = 0
    verdict: str = ""

    @property
    def outcome(self) -> str:
        """The verdict."""
        return self.verdict

    def leave_out(self, reason: str, detail: str) -> Self:
        """The same item, no longer to be made and counted as filtered."""
        return replace(self, verdict="filtered", reason=reason, detail=detail)
