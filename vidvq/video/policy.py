"""Settings for the sampling and scaling of frames."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from vidvq.video.geometry import Fit, FrameSize, fit_size
from vidvq.video.probe import VideoInfo


@dataclass(frozen=True)
class VideoPolicy:
    """Sampling and scaling of the frames of a video.

    Attributes:
        fps: rate to sample at, by time (frames per second, 0.00001 to 1000); None keeps every frame of the source.
        short_side: length to scale the short side to (pixels); None keeps the source's size.
        multiple: height and width are rounded to a multiple of this (pixels).
        size: ``[height, width]`` for every video (pixels), instead of ``short_side``.
        fit: how to reach an aspect ratio that is not the source's: ``crop`` around the centre, ``pad`` with black, or
            ``stretch``.
    """

    fps: Annotated[float, Field(ge=0.00001, le=1000)] | None = None
    short_side: Annotated[int, Field(ge=8)] | None = 256
    multiple: Annotated[int, Field(ge=1)] = 2
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    fit: Fit = "crop"

    def frame_size(self, info: VideoInfo) -> FrameSize:
        """Size of the frames of a video, with this policy.

        Raises:
            VideoError: ``too_small`` or ``too_large``.
        """
        return fit_size(*info.shown_size, self.short_side, self.multiple, self.size, self.fit, info.max_side)
