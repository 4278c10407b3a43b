"""Stream copy: clips of copied packets, where a cut allows independent decoding."""

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from vidvq.video.container import VideoError
from vidvq.video.packets import REORDER_FRAMES
from vidvq.video.pictures import VideoPacket, is_hidden
from vidvq.video.probe import VideoInfo
from vidvq.video.stream import numbered_packets, one_line, open_video, video_stream


def copy_packets(path: Path, info: VideoInfo, indices: Sequence[int]) -> bytes:
    """Copy frames of a video to Matroska, without decoding or encoding.

    Args:
        info: its timeline.
        indices: consecutive indices of the frames.

    Raises:
        VideoError: ``not_on_keyframes`` if the first frame is not a keyframe, or a frame depends on one outside;
            ``not_copyable`` if packets do not correspond to frames one to one, or cannot be written to Matroska.
    """
    first, last = indices[0], indices[-1]
    if list(indices) != list(range(first, last + 1)):
        raise VideoError("not_on_keyframes", "needs every frame once; leave out clip.fps")
    if first not in info.keyframes:
        raise VideoError("not_on_keyframes", f"frame {first} is not a keyframe to begin with; change clip.num_frames")
    buffer = io.BytesIO()
    try:
        with open_video(path, info.max_pixels) as source:
            stream = video_stream(source)
            packets = _of_frames(source, stream, info, first, last)
            with av.open(buffer, mode="w", format="matroska", options={"fflags": "+bitexact"}) as container:
                # Opaque skips the search for an encoder, which for AV1 has another name than the decoder.
                copy = container.add_stream_from_template(stream, opaque=True)  # pyright: ignore[reportUnknownMemberType]
                for packet, (pts, dts) in zip(packets, _clock(packets, info.pts[first]), strict=True):
                    packet.pts, packet.dts, packet.stream = pts, dts, copy
                    container.mux(packet)  # pyright: ignore[reportUnknownMemberType]
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError("not_copyable", f"its packets cannot be copied: {one_line(error)}") from error
    return buffer.getvalue()


def _of_frames(
    source: InputContainer, stream: VideoStream, info: VideoInfo, first: int, last: int
) -> list[VideoPacket]:
    """Packets of frames ``first`` to ``last`` in decoding order, with the times of their frames."""
    wanted = {info.pts[index] for index in range(first, last + 1)}
    packets: list[VideoPacket] = []
    missing = set(wanted)
    for packet, tick in _timed(source, stream, info, first):
        if not packets and tick != info.pts[first]:
            continue
        if tick not in wanted and not is_hidden(info.codec, packet):
            break
        packet.pts = tick
        packets.append(packet)
        missing.discard(tick)
    # In decoding order, the packets of the clip must be contiguous from its keyframe.
    if missing:
        detail = f"frames {first} to {last} depend on other frames; change clip.num_frames"
        raise VideoError("not_on_keyframes", detail)
    return packets


def _timed(
    source: InputContainer, stream: VideoStream, info: VideoInfo, first: int
) -> "Iterator[tuple[VideoPacket, int | None]]":
    """Packets with the times of their frames (ticks)."""
    if info.packets is None:
        # The index of AVI has decoding times: a seek to the time of a keyframe may lead to the next one.
        if info.seek_points and first >= REORDER_FRAMES:
            source.seek(info.pts[first - REORDER_FRAMES], stream=stream)
        for _, packet in numbered_packets(source, stream):
            yield packet, packet.pts
        return
    frame_of = {number: index for index, number in enumerate(info.packets)}
    for number, packet in numbered_packets(source, stream):
        if number not in frame_of and number > info.packets[first]:
            raise VideoError("not_copyable", "has packets without a frame, or two packets for one")
        if number in frame_of:
            yield packet, info.pts[frame_of[number]]


def _clock(packets: list[VideoPacket], origin: int) -> list[tuple[int, int]]:
    """Presentation and decoding times of packets (ticks), the latter generated if invalid in the file."""
    pts = [0 if packet.pts is None else packet.pts - origin for packet in packets]
    dts = [None if packet.dts is None else packet.dts - origin for packet in packets]
    known = [tick for tick in dts if tick is not None]
    whole = len(known) == len(dts) and all(a < b for a, b in pairwise(known))
    if not whole or any(a > b for a, b in zip(known, pts, strict=True)):
        ascending = sorted(pts)
        early = max(tick - shown for tick, shown in zip(ascending, pts, strict=True))
        known = [tick - early for tick in ascending]
    return list(zip(pts, known, strict=True))
