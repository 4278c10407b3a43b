"""A video's timeline is counted from what is in the file, and what is not there is said."""

import http.server
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from vidvq.video import VideoError
from vidvq.video import probe as probe_module
from vidvq.video.limits import Limits
from vidvq.video.packets import Packets
from vidvq.video.probe import probe
from vidvq.video.stream import open_video

DEMO = Path(__file__).parents[3] / "vidvq/demo/videos"
VIDEOS = sorted(path for path in DEMO.glob("*/*") if path.suffix in {".mp4", ".mkv", ".webm", ".avi"})
FRAMES = {
    "bikes.mp4": 94,
    "cup.webm": 168,
    "box.mp4": 204,
    "carphone.mp4": 120,
    "phone.mkv": 41,
    "portrait_man.mp4": 72,
    "portrait_woman.mp4": 144,
    "tree.avi": 68,
    "vtest.avi": 80,
}


def reason_of(path: Path, limits: Limits | None = None) -> str:
    with pytest.raises(VideoError) as error:
        probe(path, limits or Limits())
    assert "\n" not in error.value.detail
    return error.value.reason


def cut(source: Path, target: Path, share: float) -> Path:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def test_every_demo_video_is_here():
    assert {path.name for path in VIDEOS} == set(FRAMES)


@pytest.mark.parametrize("path", VIDEOS, ids=lambda path: path.name)
def test_the_timeline_is_that_of_the_decoded_frames(path):
    info = probe(path, Limits())
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = [frame.pts for frame in container.decode(stream)]
        assert list(info.pts) == decoded
        assert info.time_base == stream.time_base
    assert info.num_frames == FRAMES[path.name]
    assert not info.torn


def test_frames_out_of_order_in_the_file_are_in_order_in_the_timeline(tmp_path, make_video):
    path = make_video(tmp_path / "b.mp4", 20, codec_options={"x264-params": "bframes=3:b-adapt=0:scenecut=0"})
    with av.open(str(path)) as container:
        coded = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert coded != sorted(coded), "the file has no B-frames; the test shows nothing"
    info = probe(path, Limits())
    steps = {b - a for a, b in zip(info.pts, info.pts[1:], strict=False)}
    assert (info.num_frames, len(steps), info.fps) == (20, 1, 25.0)


def test_one_frame_is_a_video(tmp_path, make_video):
    info = probe(make_video(tmp_path / "one.mp4", 1), Limits())
    assert (info.num_frames, info.torn) == (1, False)


def test_sound_alone_is_no_video(tmp_path, make_audio):
    assert reason_of(make_audio(tmp_path / "a.mp4")) == "no_video_stream"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"#EXTM3U\n", "not_a_video"),
        (b"once upon a time", "not_a_video"),
        (b"\0\0\0\x20ftypisom" + b"\0" * 500, "unreadable"),
        (b"\x1a\x45\xdf\xa3" + b"\xff" * 500, "unreadable"),
        (b"RIFF\xff\xff\xff\xffAVI LIST", "unreadable"),
        (b"FLV\x01\x05" + b"\0" * 20, None),
        ((b"\x47" + b"\xff" * 187) * 5, None),
        (b"OggS" + b"\0" * 100, None),
    ],
)
def test_what_only_looks_like_a_video_fails_with_a_reason(tmp_path, content, reason):
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    assert reason_of(path) in ({reason} if reason else {"unreadable", "no_video_stream"})


def test_the_reason_does_not_depend_on_the_name_of_a_copy(tmp_path):
    details: set[str] = set()
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / name).write_bytes(b"\0\0\0\x20ftypisom" + b"\0" * 500)
        with pytest.raises(VideoError, match="mov container cannot be opened: ") as error:
            probe(tmp_path / name, Limits())
        details.add(error.value.detail)
    assert len(details) == 1


def test_an_mp4_cut_before_its_index_is_unreadable(tmp_path, make_video):
    whole = make_video(tmp_path / "w.mp4")
    assert reason_of(cut(whole, tmp_path / "cut.mp4", 0.5)) in {"unreadable", "no_video_stream"}


@pytest.mark.parametrize("name", ["train/carphone.mp4", "train/tree.avi", "heldout/cup.webm", "train/phone.mkv"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_ends_early_is_torn_and_gives_the_frames_that_are_there(tmp_path, name, share):
    source = DEMO / name
    info = probe(cut(source, tmp_path / f"cut{source.suffix}", share), Limits())
    assert info.torn
    assert info.num_frames > 0
    if source.suffix != ".mp4":  # an mp4's index still counts what was lost
        assert info.num_frames < FRAMES[source.name]


def test_a_live_recording_without_a_length_is_not_torn(tmp_path, make_video):
    path = make_video(tmp_path / "live.mkv", container_options={"live": "1"})
    assert not probe(path, Limits()).torn
    data = (DEMO / "train/tree.avi").read_bytes()
    (tmp_path / "pipe.avi").write_bytes(data[:4] + b"\xff" * 4 + data[8:])
    assert not probe(tmp_path / "pipe.avi", Limits()).torn


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(max_pixels=32 * 64 - 1), "limits.max_pixels=2047"),
        (Limits(max_frames=23), "limits.max_frames=23"),
        (Limits(max_bytes=100), "limits.max_bytes=100"),
    ],
)
def test_a_video_over_a_limit_is_too_large_and_says_which(tmp_path, make_video, limits, said):
    path = make_video(tmp_path / "v.mp4", 24)
    with pytest.raises(VideoError, match=said) as error:
        probe(path, limits)
    assert error.value.reason == "too_large"


def test_a_video_at_its_limits_passes(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 24)
    limits = Limits(max_pixels=32 * 64, max_frames=24, max_bytes=path.stat().st_size)
    assert probe(path, limits).num_frames == 24


def trusted(pts: list[int], keys: set[int], depth: int, name: str = "matroska,webm", codec: str = "h264") -> bool:
    packets = Packets(
        pts=np.array(pts),
        keys=np.array([index in keys for index in range(len(pts))]),
        begins_with_key=0 in keys,
        has_b_pictures=False,
        smallest=100,
        last_ends=None,
        by_dts=False,
        edits_overlap=False,
    )
    context = SimpleNamespace(name=codec, field_order=1, reorder_depth=depth)
    stream = SimpleNamespace(codec_context=context, time_base=Fraction(1, 25))
    return packets.are_trusted(SimpleNamespace(format=SimpleNamespace(name=name)), stream)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("pts", "keys", "depth", "expected"),
    [
        ([0, 1, 2, 3], {0}, 0, True),
        ([0, 2, 1, 4, 3], {0}, 1, True),
        ([0, 2, 1, 4, 3], {0}, 0, False),
        ([0, 4, 2, 1, 3], {0}, 2, True),
        ([0, 4, 2, 1, 3], {0}, 1, False),
        # no keyframe first, or frames before the first one
        ([0, 1, 2, 3], {1}, 0, False),
        ([2, 0, 1, 5, 3, 4], {0, 3}, 2, False),
        ([0, 3, 1, 2, 6, 4, 5], {0, 4}, 2, True),
        # a frame of the first group after the keyframe of the second
        ([0, 1, 4, 3, 5], {0, 3}, 1, False),
        # one time twice, and one far away
        ([0, 1, 1, 2], {0}, 0, False),
        ([*range(10), 900, *range(11, 50)], {0}, 2, False),
    ],
)
def test_times_that_fit_the_order_of_the_codec_are_trusted(pts, keys, depth, expected):
    assert trusted(pts, keys, depth) == expected


@pytest.mark.parametrize(("name", "expected"), [("matroska,webm", True), ("mpegts", False), ("nut", False)])
def test_a_long_pause_is_trusted_unless_it_may_be_another_recording(name, expected):
    assert trusted([0, 1, 2, 253, 254], {0}, 0, name) == expected
    assert trusted([0, 1, 2, 252, 253], {0}, 0, name) == (name != "nut")


def test_frames_with_decoding_times_alone_have_those(tmp_path, make_video, monkeypatch):
    """As in Matroska with codecs of Video for Windows."""
    pts, real = [0, 40, 120, 121, 500, 900], probe_module.decode
    path = make_video(tmp_path / "v.nut", 6, codec="mpeg4", pts=pts, time_base=Fraction(1, 1000))
    monkeypatch.setattr(Packets, "are_in_order", False)
    monkeypatch.setattr(
        probe_module, "decode", lambda *given, **rest: (replace(one, pts=None) for one in real(*given, **rest))
    )
    info = probe(path, Limits())
    assert [tick * info.time_base for tick in info.pts] == [Fraction(tick, 1000) for tick in pts]


def test_uneven_frame_times_are_kept(tmp_path, make_video):
    pts = [0, 40, 120, 121, 500, 900]
    info = probe(make_video(tmp_path / "v.mkv", 6, pts=pts, time_base=Fraction(1, 1000)), Limits())
    assert [tick * info.time_base for tick in info.pts] == [Fraction(tick, 1000) for tick in pts]


def test_a_playlist_named_as_a_video_fetches_nothing(tmp_path):
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for name in ("a.mp4", "a.m3u8", "a.ts"):
            path = tmp_path / name
            path.write_text(f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{server.server_port}/{name}\n#EXT-X-ENDLIST\n")
            with pytest.raises(VideoError, match="not_a_video"):
                open_video(path, 1 << 20)
    finally:
        server.shutdown()
    assert asked == []


@pytest.mark.parametrize("name", ["-i.mp4", "http:x.mp4", "concat:a.mp4", "%03d.mp4", "a|b.mp4"])
def test_a_file_name_is_only_a_name(tmp_path, make_video, name):
    plain = make_video(tmp_path / "plain.mp4", 5)
    odd = tmp_path / name
    plain.rename(odd)
    assert probe(odd, Limits()).num_frames == 5
