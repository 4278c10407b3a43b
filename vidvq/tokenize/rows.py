"""The plan rows of `vidvq tokenize` over raw video."""

from dataclasses import dataclass

from vidvq.jobs.rows import VideoRow


@dataclass(frozen=True, kw_only=True)
class PlannedSample(VideoRow):
    """One token sample, which starts at a restart of the stream; or an item that cannot become a sample.

    Attributes:
        begin_s: start of the sample, from the first frame of the video (seconds). Used to find a time in the tokens.
        until_s: end of the sample (seconds).
    """

    begin_s: float | None = None
    until_s: float | None = None
