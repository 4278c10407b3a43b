"""Frames: the very ones asked for, by either decoder, from anywhere in the file."""

import gc
import io
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.oddities import ffmpeg
from vidvq.video import VideoError, decode, stream
from vidvq.video.decode import DecoderName, decode_clip, decoder_version, decoders_for, open_reader
from vidvq.video.encode import encode_mp4
from vidvq.video.geometry import fit_size
from vidvq.video.limits import Limits
from vidvq.video.probe import VideoInfo, _with_parts, probe
from vidvq.video.sampling import clip_times, frames_between, gapless_ranges, overlaps, sample_timeline

DEMO = Path(__file__).parents[3] / "vidvq/demo/videos"
VIDEOS = sorted(path for path in DEMO.glob("*/*") if path.suffix in {".mp4", ".mkv", ".webm", ".avi"})
B_FRAMES = {"x264-params": "bframes=3:b-adapt=0:keyint=12:scenecut=0", "crf": "10"}
# name of the file, codec, its options: with and without B-frames, seekable and not
KINDS = [
    ("b.mp4", "libx264", B_FRAMES),
    ("b.mkv", "libx264", B_FRAMES),
    ("b.ts", "libx264", B_FRAMES),
    ("open-gop.mp4", "libx264", {"x264-params": B_FRAMES["x264-params"] + ":open-gop=1", "crf": "10"}),
    ("mpeg4.avi", "mpeg4", {"g": "12", "q:v": "2"}),
    ("b-mpeg4.mp4", "mpeg4", {"g": "12", "bf": "2", "q:v": "2"}),
    ("vp9.webm", "libvpx-vp9", {"g": "12", "crf": "10", "deadline": "realtime"}),
    ("one-key.mp4", "libx264", {"g": "999", "crf": "10"}),
]
NUM_FRAMES = 48


@pytest.fixture(scope="module", params=KINDS, ids=[kind[0] for kind in KINDS])
def coded(request, tmp_path_factory, make_video) -> Path:
    name, codec, options = request.param
    return make_video(tmp_path_factory.mktemp("coded") / name, NUM_FRAMES, codec=codec, codec_options=options)


def shown(frames: np.ndarray) -> list[int]:
    """Which frames these are, by their bars (see ``make_video``)."""
    bars = frames.reshape(*frames.shape[:2], 8, -1).mean(axis=(1, 3)) > 125
    return [int(index) for index in bars @ (1 << np.arange(8))]


def read(path: Path, indices: list[int], decoder: DecoderName) -> np.ndarray:
    info = probe(path, Limits())
    return open_reader(path, info, fit_size(info.height, info.width, None, 1), decoder).read(indices)


def test_the_test_videos_have_frames_out_of_order(tmp_path, make_video):
    path = make_video(tmp_path / "b.mp4", NUM_FRAMES, codec_options=B_FRAMES)
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert times != sorted(times)


def test_pyav_gives_every_frame_from_wherever_it_starts(coded):
    info = probe(coded, Limits())
    assert info.num_frames == NUM_FRAMES
    reader = open_reader(coded, info, fit_size(info.height, info.width, None, 1), "pyav")
    for first in range(NUM_FRAMES):
        indices = list(range(first, min(first + 4, NUM_FRAMES)))
        assert shown(reader.read(indices)) == indices


@pytest.mark.parametrize(("name", "keys"), [("one-key.mp4", 1), ("false-keys.mov", 1000), ("b.ts", 40)])
def test_far_frames_are_decoded_in_one_pass_if_no_seek_helps(name, keys, make_video, tmp_path, monkeypatch):
    options = {"x264-params": f"keyint={1000 // keys}:scenecut=0", "preset": "superfast"}
    path = make_video(tmp_path / name, 1000, codec_options=options)
    if lies := name == "false-keys.mov":
        if not shutil.which("ffmpeg"):
            pytest.skip("the ffmpeg program is not installed")
        path = path.rename(tmp_path / "source.mov")
        ffmpeg("-i", path, "-c:v", "rpza", tmp_path / name)
        path = tmp_path / name
    info = probe(path, Limits())
    assert len(info.seek_points) == (0 if name == "b.ts" else keys)
    decoded, real = [], stream._decode_packet
    monkeypatch.setattr(stream, "_decode_packet", lambda *given: (found := real(*given), decoded.extend(found))[0])
    reader = open_reader(path, info, fit_size(info.height, info.width, None, 1), "pyav")
    for first in (0, 300, 600, 900):
        assert shown(reader.read([first, first + 1])) == [first % 256, first % 256 + 1]
    # Only a seek tells that a packet is no keyframe.
    assert len(decoded) <= 1000 + lies * 40


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="lists open files through /proc")
def test_a_reader_that_is_no_longer_used_closes_its_file_at_once(coded):
    info = probe(coded, Limits())
    gc.disable()
    try:
        reader = open_reader(coded, info, fit_size(info.height, info.width, None, 1), "pyav")
        for first in (30, 0):
            reader.read([first, first + 1])
        assert [Path(link).resolve() for link in Path("/proc/self/fd").iterdir()].count(coded.resolve()) == 1
        del reader
        assert coded.resolve() not in [Path(link).resolve() for link in Path("/proc/self/fd").iterdir()]
    finally:
        gc.enable()


def test_where_decord_is_trusted_it_gives_every_frame_from_wherever_it_starts(coded):
    info = probe(coded, Limits())
    if "decord" not in decoders_for(info, "decord"):
        assert coded.name in {"b.ts", "open-gop.mp4", "b-mpeg4.mp4"}
        return
    reader = open_reader(coded, info, fit_size(info.height, info.width, None, 1), "decord")
    for first in (0, 1, 11, 12, 13, 30, 47, 5):
        indices = list(range(first, min(first + 4, NUM_FRAMES)))
        assert shown(reader.read(indices)) == indices


def test_a_seek_that_leads_beyond_the_wanted_frame_is_not_used(tmp_path, make_video, monkeypatch):
    monkeypatch.setattr(decode, "REORDER_FRAMES", -20)
    assert shown(read(make_video(tmp_path / "b.mp4", NUM_FRAMES, codec_options=B_FRAMES), [14, 15], "pyav")) == [14, 15]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_frames_may_repeat_and_skip(tmp_path, make_video, decoder):
    path = make_video(tmp_path / "v.mp4", 30, codec_options=B_FRAMES)
    assert shown(read(path, [3, 3, 9, 9, 9, 28], decoder)) == [3, 3, 9, 9, 9, 28]


@pytest.mark.parametrize("path", [path for path in VIDEOS if path.suffix != ".mkv"], ids=lambda path: path.name)
def test_decord_and_pyav_see_the_same_picture(path):
    info = probe(path, Limits())
    size = fit_size(info.height, info.width, 64, 8)
    middle = info.num_frames // 2
    indices = [0, 1, 5, middle, middle + 1, info.num_frames - 1]
    decord, pyav = (open_reader(path, info, size, name).read(indices).astype(float) for name in ("decord", "pyav"))
    off_by_one = open_reader(path, info, size, "pyav").read([index - 1 if index else 1 for index in indices])
    difference = np.abs(decord - pyav).mean(axis=(1, 2, 3))
    assert difference.max() < 2.5, difference
    assert np.abs(decord - off_by_one).mean() > np.abs(decord - pyav).mean()


@pytest.mark.parametrize(
    ("change", "decoders"),
    [
        ({}, ("decord", "pyav")),
        ({"codec": "hevc"}, ("pyav",)),
        ({"open_groups": True}, ("pyav",)),
        ({"seek_points": ()}, ("pyav",)),
        ({"is_plain": False}, ("pyav",)),
        ({"container": "matroska,webm"}, ("decord", "pyav")),
    ],
)
def test_decord_is_tried_only_where_its_seeks_are_exact(change, decoders):
    info = replace(timeline([0, 1, 2]), **{"seek_points": (0,)} | change)
    assert decoders_for(info, "decord") == decoders
    assert decoders_for(info) == ("pyav",)


def test_every_demo_video_but_hevc_may_go_to_decord():
    assert [path.name for path in VIDEOS if "decord" not in decoders_for(probe(path, Limits()), "decord")] == [
        "phone.mkv"
    ]


def test_a_clip_names_its_decoder_and_version():
    assert decoder_version("pyav") == f"pyav {av.__version__}"
    assert decoder_version("decord").startswith("decord 0.")


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_damaged_tail_is_an_error_and_not_a_made_up_picture(tmp_path, decoder):
    data = (DEMO / "train/carphone.mp4").read_bytes()
    path = tmp_path / "torn.mp4"
    path.write_bytes(data[: len(data) * 6 // 10])
    info = probe(path, Limits())
    size = fit_size(info.height, info.width, None, 1)
    with pytest.raises(VideoError) as error:
        open_reader(path, info, size, decoder).read([0, 10, 110, 119])
    assert error.value.reason == "decode_error"


def test_a_frame_that_is_not_there_is_counted_and_named(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 10)
    with pytest.raises(VideoError, match="2 of 3 frames cannot be decoded \\(first: 10\\)"):
        read(path, [9, 10, 11], "pyav")


@pytest.mark.parametrize(
    ("given", "short_side", "multiple", "expected"),
    [
        ((144, 176), None, 1, (144, 176, 144, 176)),
        ((144, 176), 32, 8, (32, 39, 32, 32)),
        ((360, 640), 128, 8, (128, 228, 128, 224)),
        ((640, 360), 128, 8, (228, 128, 224, 128)),
        ((100, 100), 50, 3, (50, 50, 48, 48)),
        ((7, 9), 14, 2, (14, 18, 14, 18)),
    ],
)
def test_the_short_side_is_scaled_and_both_are_cropped(given, short_side, multiple, expected):
    size = fit_size(*given, short_side, multiple)
    assert (size.scaled_height, size.scaled_width, size.height, size.width) == expected


def test_a_video_smaller_than_a_multiple_is_too_small():
    with pytest.raises(VideoError, match="too_small: is 6x100 pixels; a side must be at least 8"):
        fit_size(100, 6, None, 8)


def test_the_crop_is_of_the_centre():
    frames = np.zeros((1, 10, 12, 3), np.uint8)
    frames[:, 1:9, 2:10] = 255
    assert fit_size(10, 12, None, 8).crop_or_pad(frames).min() == 255


def timeline(pts: list[int], time_base: Fraction = Fraction(1, 100)) -> VideoInfo:
    return VideoInfo("mov", "h264", 8, 8, time_base, tuple(pts), torn=False, open_groups=False)


@pytest.mark.parametrize(
    ("pts", "fps", "indices", "times"),
    [
        ([0, 10, 20, 30], None, [0, 1, 2, 3], [0, 10, 20, 30]),
        ([0, 10, 20, 30], 10, [0, 1, 2, 3], [0, 10, 20, 30]),
        ([0, 10, 20, 30], 5, [0, 2], [0, 20]),
        ([0, 10, 20, 30], 20, [0, 0, 1, 1, 2, 2, 3, 3], [0, 5, 10, 15, 20, 25, 30, 35]),
        # 3.6 and 3.2 frames
        ([0, 10, 20, 30], 9, [0, 1, 2, 3], [0, 11, 22, 33]),
        ([0, 10, 20, 30], 8, [0, 1, 2], [0, 13, 25]),
        ([50, 60, 70, 80], 10, [0, 1, 2, 3], [50, 60, 70, 80]),
        # a frame stays on screen until the next one
        ([0, 10, 50, 60], 10, [0, 1, 1, 1, 1, 2, 3], [0, 10, 20, 30, 40, 50, 60]),
        ([0, 2, 4, 6, 30, 40, 50], 10, [0, 3, 3, 4, 5, 6], [0, 10, 20, 30, 40, 50]),
        ([7], None, [0], [7]),
    ],
)
def test_frames_are_sampled_by_time(pts, fps, indices, times):
    assert [*map(list, sample_timeline(timeline(pts), fps))] == [indices, times]


def test_a_time_beyond_what_a_fraction_of_a_tick_can_say_is_refused():
    assert list(_with_parts(timeline([0, 1 << 50]), 1 << 10).pts) == [0, 1 << 60]
    for pts in ([0, 1 << 60], [-(1 << 60), 0]):
        with pytest.raises(VideoError, match="too_large: has a time of "):
            _with_parts(timeline(pts), 3)


def test_the_last_sample_of_a_variable_rate_lasts_as_long_as_the_others():
    info = replace(timeline([0, 10, 30, 40, 60]), last=17)
    for fps, last in ((None, 17), (10, 10)):
        times = sample_timeline(info, fps)[1]
        pts, duration, _ = clip_times(info, times, 0, len(times))
        assert pts[-1] + last == duration


@pytest.mark.parametrize(
    ("pts", "held", "fps", "max_gap_s", "shown"),
    [
        # ticks of a hundredth of a second; a frame held too long stays for the usual time
        ([0, 10, 20, 620, 630], 0, 10, 1, [[0, 1, 2], [3, 4]]),
        ([0, 10, 20, 120, 130], 0, 10, 1, [[0, 1, 2, *[2] * 9, 3, 4]]),
        ([0, 10, 20, 620, 630], 0, 10, None, [[0, 1, *[2] * 60, 3, 4]]),
        # the last frame, and a still picture
        ([0, 10, 20], 9000, 10, 1, [[0, 1, 2]]),
        ([0], 9000, 10, 1, [[0] * 10]),
        # two frames far apart
        ([0, 9000], 0, 10, 1, [[0] * 10, [1] * 10]),
        # a slow clock repeats no frame
        ([0, 200, 400, 600], 0, 0.5, 1, [[0, 1, 2, 3]]),
    ],
)
def test_no_frame_is_held_over_a_gap(pts, held, fps, max_gap_s, shown):
    info = replace(timeline(pts), held=held, max_gap_s=max_gap_s)
    indices, _ = sample_timeline(info, fps)
    assert [list(indices[begin:end]) for begin, end in gapless_ranges(info, fps)] == shown
    assert gapless_ranges(info, None) == [(0, len(pts))]


def test_frames_in_a_gap_do_not_count():
    late = 10 << 36
    info = replace(timeline([0, 10, 20, late, late + 10]), max_gap_s=1, max_frames=5)
    indices, times = sample_timeline(info, 10)
    assert len(indices) == len(times) > 1 << 36 and times[-1] == late + 10
    with pytest.raises(VideoError, match=r"5 frames at fps=10; the cap is limits.max_frames=4"):
        sample_timeline(replace(info, max_frames=4), 10)
    with pytest.raises(VideoError, match="too_large: lasts"):
        sample_timeline(timeline([0, 1 << 60]), 1000)


@pytest.mark.parametrize(
    ("begin", "end", "parts"),
    [(0, 99, [(2, 5), (7, 9)]), (3, 8, [(3, 5), (7, 8)]), (5, 7, []), (4, 5, [(4, 5)]), (9, 9, []), (8, 3, [])],
)
def test_the_parts_of_ranges_in_a_window(begin, end, parts):
    assert list(overlaps([(2, 5), (7, 9)], begin, end)) == parts
    assert list(overlaps([(0, 20)], 8, 3)) == []


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30), Fraction(30000, 1001)], ids=str)
@pytest.mark.parametrize("digits", [3, 6, 17])
def test_a_range_between_the_times_of_two_frames_has_the_first_and_not_the_second(rate, digits):
    info = timeline([700 + round(90_000 * index / rate) for index in range(200)], Fraction(1, 90_000))
    for first in range(170):
        start_s, end_s = (round(float(index / rate), digits) for index in (first, first + 20))
        assert frames_between(info, info.pts, start_s, end_s) == (first, first + 20)
    assert frames_between(info, info.pts, 0.0, float("inf")) == (0, 200)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.floats(0.5, 120, allow_nan=False),
    st.integers(-1000, 1000),
)
def test_at_every_tick_the_frame_on_screen_is_taken(steps, fps, start):
    pts = [start]
    for step in steps:
        pts.append(pts[-1] + step)
    info = timeline(pts)
    indices, times = map(list, sample_timeline(info, fps))
    assert times == sorted(times) and indices == sorted(indices)
    for index, time in zip(indices, times, strict=True):
        assert info.pts[index] <= time
        assert index == len(pts) - 1 or time < info.pts[index + 1]
    seconds = float((pts[-1] - pts[0] + info.tick_per_frame) * info.time_base)
    assert abs(len(times) - seconds * fps) <= 1


def clip(num_frames: int = 5) -> bytes:
    bits = np.arange(num_frames)[:, None] >> np.arange(8) & 1
    frames = np.broadcast_to(np.repeat(bits * 200 + 20, 2, axis=1)[:, None, :, None], (num_frames, 16, 16, 3))
    frames = np.ascontiguousarray(frames, dtype=np.uint8)
    return encode_mp4(frames, tuple(range(num_frames)), Fraction(1, 25), crf=5)


def test_a_clip_in_memory_decodes_whole():
    assert shown(decode_clip(clip(), "a")) == [0, 1, 2, 3, 4]


def npy(shape: tuple[int, ...], dtype: str = "u1") -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(shape, dtype))
    return file.getvalue()


NO_CLIPS = [npy((2, 4, 4)), npy((2, 4, 4, 4)), npy((2, 4, 4, 3), "f4")]


@pytest.mark.parametrize(
    "media", [b"", b"#EXTM3U\nhttp://x/\n", b"\x1a\x45\xdf\xa3", b"\0\0\0\x20ftypisom", clip()[:-200], *NO_CLIPS]
)
def test_a_damaged_clip_is_an_error_that_names_it(media):
    with pytest.raises(VideoError, match="decode_error: some-key"):
        decode_clip(media, "some-key")


def test_a_clip_that_unfolds_beyond_its_json_or_the_limit_ends_early(monkeypatch):
    media = clip()
    assert decode_clip(media, "a", (5, 16, 16)).shape == (5, 16, 16, 3)
    for shape in ((4, 16, 16), (5, 8, 16)):
        with pytest.raises(VideoError, match="decode_error: a has other frames than its JSON says"):
            decode_clip(media, "a", shape)
    with pytest.raises(VideoError, match="too_large: a has 100000 frames"):
        decode_clip(media, "a", (100_000, 1080, 1920))
    large = encode_mp4(np.zeros((1, 2000, 3000, 3), np.uint8), (0,), Fraction(1, 25), 51, 1)
    with pytest.raises(VideoError, match="decode_error: a: "):  # by the decoder, not once the frame is in memory
        decode_clip(large, "a", (5, 16, 16))
    monkeypatch.setattr(decode, "MAX_CLIP_BYTES", 3 * 16 * 16 * 3)
    with pytest.raises(VideoError, match="too_large: a has more than 3 frames"):
        decode_clip(media, "a")


def test_the_header_of_an_npy_clip_takes_no_memory():
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (200_000, 1000, 1000, 3)}
    )
    with pytest.raises(VideoError, match="decode_error: a: its npy header has uint8"):
        decode_clip(file.getvalue() + bytes(100), "a")
