"""Caps on a single video."""

from dataclasses import asdict, dataclass
from typing import Any

from vidvq.errors import UsageError
from vidvq.video.geometry import MAX_SIDE

# The operating system has no timers beyond some centuries.
MAX_DEADLINE_S = 1e9


@dataclass(frozen=True)
class Limits:
    """Caps on a single video, each checked before memory is allocated for it; beyond one, the video is a failed item.

    Attributes:
        max_pixels: maximum width times height of a frame (pixels).
        max_frames: maximum number of frames.
        max_bytes: maximum size of the file (bytes).
        deadline_s: time limit (seconds): for the decode of one source within one shard by `vidvq shard`, for each step
            of the decode by `vidvq tokenize`. The decoding process is killed when it is exceeded.
        download_deadline_s: time limit of the download of one video, and of each read of a remote list or tar
            (seconds); not part of ``deadline_s``.
        allow_denied: whether a source that the server denies (HTTP 401 or 403) always counts as failed. Otherwise the
            job stops if the newest sources that need credentials are denied, and so is the last one that was served.
        max_gap_s: maximum time for which ``fps`` repeats one frame (seconds). A longer pause is a gap that no clip
            crosses; None for no maximum.
        max_side: maximum length that a side of a frame is scaled up to (pixels).
    """

    max_pixels: int = 8192 * 4320
    max_frames: int = 1_080_000
    max_bytes: int = 64 << 30
    deadline_s: float = 600.0
    download_deadline_s: float = 3600.0
    allow_denied: bool = False
    max_gap_s: float | None = 60.0
    max_side: int = MAX_SIDE

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is None or name == "allow_denied":
                continue
            if not value > 0:
                raise UsageError(f"{name}={value} must be more than 0")
            if name.endswith("deadline_s") and value > MAX_DEADLINE_S:
                raise UsageError(f"{name}={value:g} must be at most {MAX_DEADLINE_S:g} (seconds)")

    def identity(self) -> dict[str, Any]:
        """The limits that decide what is planned, as plans keep them: the newer ones only if they are not default."""
        kept = asdict(self)
        del kept["download_deadline_s"], kept["allow_denied"]
        for name in ("max_gap_s", "max_side"):
            if kept[name] == getattr(Limits, name):
                del kept[name]
        return kept
