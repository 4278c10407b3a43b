"""The timeline of a video stream from its packets, without decoding, and whether it can be trusted."""

from array import array
from dataclasses import dataclass

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vidvq.video.container import VideoError
from vidvq.video.pictures import has_hidden_frames, is_b_picture, is_hidden
from vidvq.video.stream import demuxer, one_line

# Demuxers whose packets may be trusted; and those of recordings, in which a longer pause (seconds) starts another one.
_TRUSTED = {"mov", "matroska", "avi", "flv", "asf", "mpegts", "mpeg"}
RECORDED = {"mpegts", "mpeg"}
# Demuxers that can seek to a keyframe.
_SEEKABLE = {"mov", "matroska", "avi"}
LONGEST_PAUSE_S = 10
# Maximum distance of a frame from its position in display order: that of the reorder buffers of codecs.
REORDER_FRAMES = 32
# Smaller MPEG-4 packets have no picture: they are placeholders for one packed into the packet before.
_NO_PICTURE_BYTES = 8
# Field orders of libav for progressive video: unknown, progressive.
_NO_FIELDS = (0, 1)
# Codecs with B-frames that :func:`is_b_picture` does not detect.
_OTHER_B_CODECS = {"hevc", "vc1", "wmv3", "rv30", "rv40"}
_UNKNOWN = -(1 << 63)


@dataclass(frozen=True)
class Packets:
    """Packets of a video stream with a shown frame, in file order.

    Attributes:
        pts: presentation times (ticks), int64.
        keys: whether each packet is a keyframe, bool.
        begins_with_key: whether the first packet of the stream, shown or not, is a keyframe.
        has_b_pictures: whether one of the first packets with ascending times has a B-picture.
        smallest: size of the smallest packet (bytes).
        last_ends: end of the last frame in display order (ticks); None if unknown.
        by_dts: whether ``pts`` are decoding times, because the container stores no others.
        edits_overlap: whether a frame of one edit of the file is shown after one of the next edit.
    """

    pts: np.ndarray
    keys: np.ndarray
    begins_with_key: bool
    has_b_pictures: bool
    smallest: int
    last_ends: int | None
    by_dts: bool
    edits_overlap: bool

    @classmethod
    def read(cls, container: InputContainer, stream: VideoStream, max_frames: int) -> "Packets":
        """Read all packets of a file; of a truncated file, those before the end.

        Raises:
            VideoError: ``unreadable``, ``encrypted``, or ``too_large`` (more than ``max_frames``).
        """
        pts, keys = array("q"), bytearray()
        # AVI stores only decoding times, in decoding order; frames are shown at these times.
        by_dts = _is_out_of_order_avi(container, stream)
        begins_with_key, smallest = None, 1 << 62
        last_pts, last_ends = _UNKNOWN, None
        context = stream.codec_context
        hidden = has_hidden_frames(context.name)
        has_b_pictures = edits_overlap = False
        edit_begins = _UNKNOWN
        try:
            for packet in container.demux(stream):
                if not (size := packet.size):
                    continue
                is_key = packet.is_keyframe
                if begins_with_key is None:
                    begins_with_key = is_key
                if is_key and packet.has_sidedata("encryption_info"):
                    raise VideoError("encrypted", "has encrypted frames; decrypt it first")
                if packet.is_discard or (hidden and is_hidden(context.name, packet)):
                    # An edit of an edit list begins with a keyframe, which is discarded if it is before the edit.
                    edit_begins = last_pts if is_key else edit_begins
                    continue
                tick = packet.dts if by_dts else packet.pts
                edits_overlap = edits_overlap or (tick is not None and tick < edit_begins)
                if tick is None:
                    tick = _UNKNOWN
                elif tick > last_pts:
                    if len(pts) < REORDER_FRAMES and last_pts == (pts[-1] if pts else _UNKNOWN):
                        has_b_pictures = has_b_pictures or is_b_picture(context, packet)
                    last_pts, last_ends = tick, tick + (packet.duration or 0)
                pts.append(tick)
                keys.append(is_key)
                if size < smallest:
                    smallest = size
                if len(pts) > max_frames:
                    raise VideoError("too_large", f"has over limits.max_frames={max_frames} frames")
        except av.error.FFmpegError as error:
            if not pts:
                raise VideoError("unreadable", f"no packet can be read: {one_line(error)}") from error
            # The file is truncated; the packets before are valid.
        if not pts:
            raise VideoError("unreadable", "its video stream has no frames")
        return cls(
            pts=np.frombuffer(pts, np.int64),
            keys=np.frombuffer(keys, np.bool_),
            begins_with_key=bool(begins_with_key),
            has_b_pictures=has_b_pictures,
            smallest=smallest,
            last_ends=last_ends,
            by_dts=by_dts,
            edits_overlap=edits_overlap,
        )

    @property
    def _last_keys(self) -> np.ndarray:
        """Index of the last keyframe up to each packet; -1 for none."""
        return np.maximum.accumulate(np.where(self.keys, np.arange(len(self.pts)), -1))

    @property
    def _leading(self) -> np.ndarray:
        """Whether each packet is shown before the keyframe that precedes it."""
        return (self._last_keys >= 0) & (self.pts < self.pts[self._last_keys])

    @property
    def open_groups(self) -> bool:
        """Whether frames stored after a keyframe are shown before it."""
        return bool(self._leading.any())

    @property
    def are_in_order(self) -> bool:
        """Whether all packets have times, strictly ascending."""
        return bool(self.pts[0] != _UNKNOWN and (np.diff(self.pts) > 0).all())

    @property
    def _overlaps_a_keyframe(self) -> bool:
        """Whether a frame stored before a keyframe is shown after it, as at the seam of videos that were joined."""
        latest = np.maximum.accumulate(self.pts)
        return bool((self.keys[1:] & (latest[:-1] > self.pts[1:])).any())

    def timeline(self) -> "array[int]":
        """All times (ticks), ascending."""
        return array("q", np.sort(self.pts).tobytes())

    def keyframes(self) -> tuple[int, ...]:
        """Indices in the timeline of the keyframes at which decoding can start."""
        closed = self.keys.copy()
        closed[self._last_keys[self._leading]] = False
        return tuple(self._indices(closed).tolist())

    def seek_points(self, container: InputContainer) -> "array[int]":
        """Indices in the timeline of all keyframes, those of open groups too; empty if a seek may lead elsewhere."""
        name = demuxer(container.format.name)
        # AVI has empty chunks for dropped frames. After a seek to a chunk of another stream, FFmpeg counts them twice.
        drops_frames = name == "avi" and self.pts.max() >= len(self.pts) and len(container.streams) > 1
        if name not in _SEEKABLE or drops_frames:
            return array("q")
        return array("q", self._indices(self.keys).tobytes())

    def _indices(self, some: np.ndarray) -> np.ndarray:
        """Indices in the timeline of some packets, ascending; int64."""
        return np.searchsorted(np.sort(self.pts), np.sort(self.pts[some]))

    def are_trusted(self, container: InputContainer, stream: VideoStream) -> bool:
        """Whether the decoder outputs one frame per packet, in order of presentation time."""
        name, codec = demuxer(container.format.name), stream.codec_context
        if name not in _TRUSTED or (codec.name == "h264" and codec.field_order not in _NO_FIELDS):
            return False
        if _is_out_of_order_avi(container, stream):
            return False
        if codec.name == "mpeg4" and self.smallest < _NO_PICTURE_BYTES:
            return False
        if not self.begins_with_key or self._leading[self._last_keys == np.argmax(self.keys)].any():
            return False
        if self._overlaps_a_keyframe or self.edits_overlap:
            return False
        order = np.argsort(self.pts, kind="stable")
        steps = np.diff(self.pts[order])
        if self.pts[order[0]] == _UNKNOWN or not (steps > 0).all():
            return False
        assert stream.time_base is not None
        if name in RECORDED and len(steps) and steps.max() * stream.time_base > LONGEST_PAUSE_S:
            return False
        late = order - np.arange(len(order))
        if not late.any() and (self.has_b_pictures or (codec.name in _OTHER_B_CODECS and codec.reorder_depth)):
            return False
        return bool(late.max() <= codec.reorder_depth and late.min() >= -REORDER_FRAMES)


def _is_out_of_order_avi(container: InputContainer, stream: VideoStream) -> bool:
    return container.format.name == "avi" and stream.codec_context.reorder_depth > 0
