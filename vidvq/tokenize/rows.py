"""The rows of a plan of tokens of raw video."""

from dataclasses import dataclass

from vidvq.jobs.rows import VideoRow


@dataclass(frozen=True, kw_only=True)
class PlannedSample(VideoRow):
    """One token sample: a fresh start of the stream, or an item that cannot become one.

    Attributes:
        begin_s: start of the sample, from the video's first frame (seconds), to find a moment by.
        until_s: its end (seconds).
    """

    begin_s: float | None = None
    until_s: float | None = None
