"""Reading and writing of video files. Videos are hostile input; nothing here imports torch or Ray.

The interface is frames ``t h w c`` uint8 RGB.
"""

from vidvq.video.container import VideoError

__all__ = ["VideoError"]
