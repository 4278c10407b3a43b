"""Clips out of one video: runs in a worker of its own, so that a decoder that dies takes nothing else along."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vidvq.config import to_dict
from vidvq.formats.clip_shard import ClipInfo, clip_files
from vidvq.formats.commit import Outcome
from vidvq.shard.config import ClipPolicy
from vidvq.video import VideoError
from vidvq.video.decode import (
    DecoderName,
    FrameReader,
    decoder_version,
    decoders_for,
    fit_size,
    open_reader,
    sample_timeline,
)
from vidvq.video.encode import encode_mp4
from vidvq.video.probe import Limits, VideoInfo, probe


@dataclass(frozen=True)
class CutJob:
    """Clips of one video, in order; travels to a worker. ``rows`` are rows of the plan; ``decoders`` None: by codec."""

    uri: str
    rows: tuple[dict[str, Any], ...]
    policy: ClipPolicy
    limits: Limits
    decoders: tuple[DecoderName, ...] | None = None


Cut = tuple[str, dict[str, bytes] | Outcome, int]
"""A clip's key, its files or why there are none, and its number of frames."""


def cut_clips(job: CutJob) -> list[Cut]:
    """Decode, sample, scale and encode the clips of one video, in one pass over it."""
    path = Path(job.uri)
    try:
        _refuse_changed(path, job.rows[0])
        info = probe(path, job.limits)
        video = _Video(path, info, job)
    except VideoError as error:
        return [(row["key"], Outcome(row["key"], error.reason, error.detail), 0) for row in job.rows]
    return [video.cut(row) for row in job.rows]


class _Video:
    def __init__(self, path: Path, info: VideoInfo, job: CutJob) -> None:
        self.path, self.info, self.job = path, info, job
        self.size = fit_size(info.height, info.width, job.policy.short_side, job.policy.multiple)
        self.indices, self.times = sample_timeline(info, job.policy.fps)
        self.readers: dict[DecoderName, FrameReader] = {}

    def cut(self, row: dict[str, Any]) -> Cut:
        window = slice(row["first"], row["first"] + row["num_frames"])
        failure: VideoError | None = None
        for decoder in self.job.decoders or decoders_for(self.info):
            try:
                if decoder not in self.readers:
                    self.readers[decoder] = open_reader(self.path, self.info, self.size, decoder)
                frames = self.readers[decoder].read(self.indices[window])
            except VideoError as error:
                failure = error
                continue
            pts = tuple(self.times[window])
            info = self._describe(row, pts, decoder)
            media = encode_mp4(frames, pts, self.info.time_base, self.job.policy.crf, info.duration)
            return row["key"], clip_files(media, info), len(pts)
        assert failure is not None
        return row["key"], Outcome(row["key"], failure.reason, failure.detail), 0

    def _describe(self, row: dict[str, Any], pts: tuple[int, ...], decoder: DecoderName) -> ClipInfo:
        # A clip lasts until the frame after it; at the end of the video, as long as its own frames on average.
        after = row["first"] + row["num_frames"]
        length = len(pts)
        if after < len(self.times):
            end = self.times[after]
        elif length > 1:
            end = pts[length - 1] + (pts[length - 1] - pts[0]) // (length - 1)
        else:
            end = pts[0] + self.info.tick_per_frame
        duration = max(end - pts[0], 1)
        return ClipInfo(
            source=row["uri"],
            clip_index=row["clip_index"],
            time_base=str(self.info.time_base),
            pts=pts,
            duration=duration,
            fps=round(float(len(pts) / (duration * Fraction(self.info.time_base))), 6),
            height=self.size.height,
            width=self.size.width,
            decoder=decoder_version(decoder),
            policy=to_dict(self.job.policy),
        )


def _refuse_changed(path: Path, row: dict[str, Any]) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise VideoError("unreadable", f"cannot be opened: {error.strerror}") from error
    if (status.st_size, status.st_mtime_ns) != (row["size"], row["mtime_ns"]):
        raise VideoError("changed_since_plan", "is not the file that was planned; restore it, or shard it anew")
