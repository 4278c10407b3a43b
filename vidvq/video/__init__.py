"""Pixels in and out of containers. Videos are hostile input; nothing here imports torch or Ray.

At this boundary a video is ``t h w c`` uint8 RGB.
"""

from vidvq.video.container import VideoError

__all__ = ["VideoError"]
