"""Clips whose packets are copied as they are, where the cut falls so that they decode alone."""

import io
from collections.abc import Sequence
from pathlib import Path

import av
import av.error

from vidvq.video.container import VideoError
from vidvq.video.probe import VideoInfo, open_video


def copy_packets(path: Path, info: VideoInfo, indices: Sequence[int]) -> bytes:
    """The frames ``indices`` of a video as matroska, not one of them decoded or encoded.

    Raises:
        VideoError: ``not_on_keyframes``: the first frame is no keyframe, or a frame needs one outside;
            ``decode_error``: the packets cannot be read or written.
    """
    wanted = {info.pts[index] for index in indices}
    first = info.pts[indices[0]]
    if len(wanted) != len(indices) or wanted != set(info.pts[indices[0] : indices[-1] + 1]):
        raise VideoError("not_on_keyframes", "needs every frame once; leave out clip.fps")
    packets: list[av.Packet] = []
    buffer = io.BytesIO()
    try:
        with open_video(path) as source:
            stream = source.streams.video[0]
            source.seek(first, stream=stream)
            for packet in source.demux(stream):
                if (packet.pts == first and packet.is_keyframe and not packets) or (packets and packet.pts in wanted):
                    packets.append(packet)
                elif packets:
                    break
            # In order of decoding, the clip's packets must come one behind the other from its keyframe on.
            if {packet.pts for packet in packets} != wanted or len(packets) != len(wanted):
                which = f"frames {indices[0]} to {indices[-1]}"
                raise VideoError("not_on_keyframes", f"{which} do not decode alone; change clip.num_frames")
            with av.open(buffer, mode="w", format="matroska", options={"fflags": "+bitexact"}) as container:
                copy = container.add_stream_from_template(stream)
                for packet in packets:
                    assert packet.pts is not None and packet.dts is not None
                    packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, copy
                    container.mux(packet)
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError("decode_error", f"its packets cannot be copied: {' '.join(str(error).split())}") from error
    return buffer.getvalue()
