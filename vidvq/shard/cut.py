"""Cutting the clips of one video. Runs in a separate process, so that a crash of a decoder costs one video."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np

from vidvq.config import to_dict
from vidvq.corpus.fetch import as_video_error, local_file
from vidvq.formats.clip_shard import ClipInfo, clip_files
from vidvq.shard.config import FilterPolicy, ShardConfig
from vidvq.shard.rows import PlannedClip
from vidvq.video import VideoError
from vidvq.video.decode import DecoderName, FrameReader, decode_clip, decoder_version, decoders_for, open_reader
from vidvq.video.encode import encode_ffv1, encode_mp4, encode_npy
from vidvq.video.probe import VideoInfo, probe
from vidvq.video.remux import copy_packets
from vidvq.video.sampling import clip_times, sample_timeline
from vidvq.video.scores import luma_score, motion_score


@dataclass(frozen=True)
class CutJob:
    """Clips of one video to cut; sent to a worker.

    Attributes:
        rows: the clips, in order.
        decoders: decoders to try, in order; None chooses by codec.
    """

    rows: tuple[PlannedClip, ...]
    config: ShardConfig
    decoders: tuple[DecoderName, ...] | None = None


@dataclass(frozen=True)
class Cut:
    """The outcome of one clip: its files, or why there are none.

    Attributes:
        files: content by extension; None if there is no clip.
        num_frames: length of the clip (frames).
        verdict: ``failed`` or ``filtered``; "" for a clip.
        detail: the reason as a sentence.
        from_nvdec: whether NVDEC decoded it.
    """

    key: str
    files: dict[str, bytes] | None
    num_frames: int = 0
    verdict: str = ""
    reason: str = ""
    detail: str = ""
    from_nvdec: bool = False


@dataclass(frozen=True)
class CutResult:
    """The outcomes of one job in order, and the time it took (seconds)."""

    cuts: list[Cut]
    seconds: float


def cut_clips(job: CutJob) -> CutResult:
    """Decode, sample, scale and encode the clips of one video, in one pass over it."""
    began = monotonic()
    return CutResult(_cut_all(job), monotonic() - began)


def _cut_all(job: CutJob) -> list[Cut]:
    try:
        row = job.rows[0]
        with local_file(row.source, job.config.limits, job.config.lists.allow_private, row.sha256) as path:
            video = _Video(path, probe(path, job.config.limits, job.config.clip.fps), job)
            return [_cut(video, row) for row in job.rows]
    except Exception as error:  # noqa: BLE001 (counted and named, by as_video_error)
        return [_failed(row, error) for row in job.rows]


def _cut(video: "_Video", row: PlannedClip) -> Cut:
    try:
        return video.cut(row)
    except Exception as error:  # noqa: BLE001 (counted and named, by as_video_error)
        return _failed(row, error)


def _failed(row: PlannedClip, raised: Exception) -> Cut:
    error = as_video_error(raised)
    return Cut(row.key, None, verdict="failed", reason=error.reason, detail=error.detail)


def _filter_reason(frames: np.ndarray, filters: FilterPolicy) -> tuple[str, str] | None:
    """Reason and detail of the first filter that drops the clip; None if it passes."""
    if filters.min_luma and (luma := luma_score(frames)) < filters.min_luma:
        return "too_dark", f"has a brightness of {luma:.4f}; filters.min_luma={filters.min_luma:g}"
    if filters.min_motion and (motion := motion_score(frames)) < filters.min_motion:
        return "static", f"has a motion of {motion:.5f}; filters.min_motion={filters.min_motion:g}"
    return None


class _Video:
    def __init__(self, path: Path, info: VideoInfo, job: CutJob) -> None:
        self.path, self.info, self.job = path, info, job
        self.policy = job.config.clip
        self.size = self.policy.frame_size(info)
        self.indices, self.times = sample_timeline(info, self.policy.fps)
        self.readers: dict[DecoderName, FrameReader] = {}

    def cut(self, row: PlannedClip) -> Cut:
        window = slice(row.first, row.first + row.num_frames)
        failure: VideoError | None = None
        for decoder in self.job.decoders or decoders_for(self.info, self.policy.decoder):
            try:
                if decoder not in self.readers:
                    self.readers[decoder] = open_reader(self.path, self.info, self.size, decoder)
                frames = self.readers[decoder].read(self.indices[window])
            except VideoError as error:
                failure = error
                continue
            info = self._describe(row, decoder)
            if verdict := _filter_reason(frames, self.job.config.filters):
                return Cut(row.key, None, 0, "filtered", *verdict)
            extension, media = self._encode(frames, info.pts, info.duration, self.indices[window])
            from_nvdec = self.readers[decoder].decoder == "nvdec"
            return Cut(row.key, clip_files(media, extension, info), info.num_frames, from_nvdec=from_nvdec)
        assert failure is not None
        raise failure

    def _encode(
        self, frames: np.ndarray, pts: tuple[int, ...], duration: int, indices: Sequence[int]
    ) -> tuple[str, bytes]:
        time_base = self.info.time_base
        if self.policy.encoding == "ffv1":
            return "mkv", encode_ffv1(frames, pts, time_base, duration)
        if self.policy.encoding == "frames":
            return "npy", encode_npy(frames)
        if self.policy.encoding in {"h264", "h264-fastdecode"}:
            fast_decode = self.policy.encoding == "h264-fastdecode"
            return "mp4", encode_mp4(frames, pts, time_base, self.policy.crf, duration, fast_decode)
        turned = self.info.quarter_turns or self.info.mirrored
        shown = self.info.shown_size
        if turned or self.info.is_interlaced or shown != (self.size.height, self.size.width):
            detail = "is to be turned, mirrored, scaled, cropped or deinterlaced, which clip.encoding='copy' cannot do"
            if any(side % self.policy.multiple for side in shown):
                detail += (
                    f"; its size is cropped by clip.multiple={self.policy.multiple}, and is not with clip.multiple=1"
                )
            raise VideoError("not_as_shown", detail)
        media = copy_packets(self.path, self.info, indices)
        try:
            copied = decode_clip(media, "its copy")
        except VideoError as error:
            raise VideoError("not_copyable", error.detail) from error
        if len(copied) != len(pts):
            raise VideoError("not_on_keyframes", f"its copy decodes to {len(copied)} of {len(pts)} frames")
        if not np.array_equal(copied, frames):
            raise VideoError("not_copyable", "its copy does not decode to the same frames")
        return "mkv", media

    def _describe(self, row: PlannedClip, decoder: DecoderName) -> ClipInfo:
        pts, duration, fps = clip_times(self.info, self.times, row.first, row.num_frames)
        return ClipInfo(
            source=row.source.uri,
            clip_index=row.clip_index,
            time_base=str(self.info.time_base),
            pts=pts,
            duration=duration,
            fps=fps,
            height=self.size.height,
            width=self.size.width,
            decoder=decoder_version(decoder),
            policy=to_dict(self.policy),
            carried=json.loads(row.source.carried) if row.source.carried else {},
            retimed=self.info.retimed,
        )
