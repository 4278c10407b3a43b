"""What the packets of a video stream tell without being decoded, and whether it can be trusted."""

from array import array
from dataclasses import dataclass

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vidvq.video.container import VideoError
from vidvq.video.pictures import is_b_picture, is_hidden, may_hide
from vidvq.video.stream import demuxer, one_line

# Demuxers whose packets may be trusted, and those of recordings, where so long a pause (s) is another recording.
_TRUSTED = {"mov", "matroska", "avi", "flv", "asf", "mpegts", "mpeg"}
RECORDED = {"mpegts", "mpeg"}
LONGEST_PAUSE_S = 10
# A frame may be shown as many frames after its place in the file as a run of B-frames is long.
_REORDER_FRAMES = 32
# A packet of MPEG-4 so small holds no picture: it stands for one that came packed in the packet before.
_NO_PICTURE_BYTES = 8
# libav's numbers of the field order: unknown, and frames that are not of fields.
_NO_FIELDS = (0, 1)
# Codecs with pictures to be shown before others that came sooner, which :func:`is_b_picture` does not know.
_OTHER_B_CODECS = {"hevc", "vc1", "wmv3", "rv30", "rv40"}
_UNKNOWN = -(1 << 63)


@dataclass(frozen=True)
class Packets:
    """Of the packets of a video stream, in their order in the file, those that hold a frame to show.

    Attributes:
        pts: their presentation times.
        keys: which of them are keyframes.
        begins_with_key: the very first packet is one, shown or not.
        has_b_pictures: among the first, in order of their times, is one that is to be shown before another.
        smallest: bytes of the smallest.
        last_ends: when the last frame to be shown ends, ticks.
        by_dts: the times are decoding times, since the container stores no others.
    """

    pts: np.ndarray
    keys: np.ndarray
    begins_with_key: bool
    has_b_pictures: bool
    smallest: int
    last_ends: int | None
    by_dts: bool

    @classmethod
    def read(cls, container: InputContainer, stream: VideoStream, max_frames: int) -> "Packets":
        """Read all packets of a file; of a torn file, those before the tear.

        Raises:
            VideoError: ``unreadable``, ``encrypted``, or ``too_large``: over ``max_frames``.
        """
        pts, keys = array("q"), bytearray()
        # AVI stores frames in order of decoding and no other time; those are the times that frames are shown at.
        by_dts = _is_out_of_order_avi(container, stream)
        begins_with_key, smallest = None, 1 << 62
        last_pts, last_ends = _UNKNOWN, None
        context = stream.codec_context
        hidden = may_hide(context.name)
        has_b_pictures = False
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
                    continue
                tick = packet.dts if by_dts else packet.pts
                if tick is None:
                    tick = _UNKNOWN
                elif tick > last_pts:
                    if len(pts) < _REORDER_FRAMES and last_pts == (pts[-1] if pts else _UNKNOWN):
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
            # A torn tail: what came before it is whole.
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
        )

    @property
    def _last_keys(self) -> np.ndarray:
        """For each packet, the index of the last keyframe among those up to it, -1 for none."""
        return np.maximum.accumulate(np.where(self.keys, np.arange(len(self.pts)), -1))

    @property
    def _leading(self) -> np.ndarray:
        """Which packets are shown before the keyframe that they come behind."""
        return (self._last_keys >= 0) & (self.pts < self.pts[self._last_keys])

    @property
    def open_groups(self) -> bool:
        """Frames are stored behind a keyframe and shown before it."""
        return bool(self._leading.any())

    @property
    def are_in_order(self) -> bool:
        """Each has a time, and it is after that of the one before."""
        return bool(self.pts[0] != _UNKNOWN and (np.diff(self.pts) > 0).all())

    def timeline(self) -> "array[int]":
        """All times, ascending."""
        return array("q", np.sort(self.pts).tobytes())

    def keyframes(self) -> tuple[int, ...]:
        """Places in the timeline of the keyframes that no frame behind them is shown before."""
        closed = self.keys.copy()
        closed[self._last_keys[self._leading]] = False
        return tuple(np.searchsorted(np.sort(self.pts), np.sort(self.pts[closed])).tolist())

    def are_trusted(self, container: InputContainer, stream: VideoStream) -> bool:
        """Whether the decoder will put out one frame for each packet, in order of presentation time."""
        name, codec = demuxer(container.format.name), stream.codec_context
        if name not in _TRUSTED or (codec.name == "h264" and codec.field_order not in _NO_FIELDS):
            return False
        if _is_out_of_order_avi(container, stream):
            return False
        if codec.name == "mpeg4" and self.smallest < _NO_PICTURE_BYTES:
            return False
        if not self.begins_with_key or self._leading[self._last_keys == np.argmax(self.keys)].any():
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
        return bool(late.max() <= codec.reorder_depth and late.min() >= -_REORDER_FRAMES)


def _is_out_of_order_avi(container: InputContainer, stream: VideoStream) -> bool:
    return container.format.name == "avi" and stream.codec_context.reorder_depth > 0
