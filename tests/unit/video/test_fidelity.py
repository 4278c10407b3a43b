"""What comes out of a video is what it shows: compared, frame by frame, with what the ffmpeg program makes of it."""

import json
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from tests.helpers.oddities import shown
from vidvq.corpus.frames import sample_video
from vidvq.corpus.source import source_at
from vidvq.shard import cut
from vidvq.shard.config import ClipPolicy, ShardConfig
from vidvq.shard.cut import CutJob, cut_clips
from vidvq.shard.probe import _windows, probe_clips
from vidvq.video import VideoError
from vidvq.video.decode import decode_clip, decoders_for, open_reader
from vidvq.video.encode import encode_ffv1, encode_mp4, encode_npy
from vidvq.video.geometry import fit_size
from vidvq.video.limits import Limits
from vidvq.video.probe import VideoInfo, probe
from vidvq.video.remux import copy_packets
from vidvq.video.sampling import sample_timeline
from vidvq.video.scores import luma_score, motion_score

DEMO = Path(__file__).parents[3] / "vidvq/demo/videos"
VIDEO = DEMO / "heldout/bikes.mp4"
NUM_FRAMES = 12
# libav's numbers of matrix, range and transfer curve, and a pixel format.
BT709, BT601, BT2020, UNTAGGED = 1, 6, 9, 2
LIMITED, FULL = 1, 2
PQ, HLG = 16, 18

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return decode_clip(VIDEO.read_bytes(), "bikes")[:NUM_FRAMES]


def write(
    path: Path,
    frames: np.ndarray,
    *,
    matrix: int = UNTAGGED,
    colour_range: int = 0,
    transfer: int = 2,
    pixels: str = "yuv420p",
    aspect: Fraction | None = None,
    turn: int = 0,
    pts: list[int] | None = None,
    codec: str = "libx264",
) -> Path:
    """A video of real frames with the tags given, and with the numbers that the tags speak of."""
    with av.open(str(path), "w") as container:
        options = {"crf": "8"} if codec == "libx264" else {"x265-params": "log-level=none"}
        stream = cast(VideoStream, container.add_stream(codec, rate=25, options=options))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        context = stream.codec_context
        context.time_base = stream.time_base = Fraction(1, 100)
        context.colorspace, context.color_range, context.color_trc = matrix, colour_range, transfer
        if aspect:
            context.sample_aspect_ratio = aspect
        if turn:
            stream.set_display_rotation(turn)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pixels,
                dst_colorspace=BT601 if matrix == UNTAGGED else matrix,
                dst_color_range=colour_range or LIMITED,
            )
            frame.pts, frame.time_base = pts[index] if pts else index * 4, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def ours(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    info = probe(path, Limits())
    target = fit_size(*info.shown_size, None, 1, size, "stretch")
    (decoder,) = decoders_for(info)
    return open_reader(path, info, target, decoder).read(list(range(info.num_frames)))


def by_ffmpeg(path: Path, height: int, width: int, *filters: str) -> np.ndarray:
    chain = ",".join([*filters, f"scale={width}:{height}:flags=bicubic", "format=rgb24"])
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        str(path),
        "-vf",
        chain,
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
        "-",
    ]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def differ(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean(axis=(1, 2, 3)).max())


TAGS = [
    {},
    {"matrix": BT601, "colour_range": LIMITED},
    {"matrix": BT709, "colour_range": LIMITED},
    {"matrix": BT709, "colour_range": FULL},
    {"matrix": BT2020, "colour_range": LIMITED},
    {"matrix": BT709, "colour_range": LIMITED, "pixels": "yuv420p10le"},
    {"matrix": BT601, "colour_range": FULL, "pixels": "yuv444p"},
]


@pytest.mark.parametrize("tags", TAGS, ids=str)
def test_colours_come_out_as_they_went_in_whatever_the_tags(frames, tmp_path, tags):
    path = write(tmp_path / "v.mp4", frames, **tags)
    assert differ(ours(path), frames) < 3.0
    wrong = dict(tags) | {"matrix": BT709 if tags.get("matrix") != BT709 else BT601}
    other = write(tmp_path / "w.mp4", frames, **wrong)
    assert differ(ours(other), frames) < 3.0
    if tags.get("pixels") != "yuv420p10le":
        return
    assert not probe(path, Limits()).is_plain


@needs_ffmpeg
@pytest.mark.parametrize("tags", TAGS, ids=str)
@pytest.mark.parametrize("size", [None, (96, 128)], ids=["whole", "scaled"])
def test_each_frame_is_ffmpegs_frame(frames, tmp_path, tags, size):
    path = write(tmp_path / "v.mp4", frames, **tags)
    height, width = size or frames.shape[1:3]
    assert differ(ours(path, size), by_ffmpeg(path, height, width)) < 0.8


@needs_ffmpeg
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_video_that_was_held_sideways_comes_out_upright(frames, tmp_path, turn):
    path = write(tmp_path / "v.mp4", frames, turn=turn)
    height, width = frames.shape[1:3]
    shown = (height, width) if turn == 180 else (width, height)
    info = probe(path, Limits())
    assert info.quarter_turns and info.shown_size == shown
    assert differ(ours(path), by_ffmpeg(path, *shown)) < 0.8
    assert differ(ours(path), np.rot90(frames, info.quarter_turns, axes=(1, 2))) < 3.0
    assert decoders_for(info, "decord") == ("pyav",)


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(4, 3), 427), (Fraction(1, 2), 160), (Fraction(1), 320)])
def test_pixels_come_out_square(frames, tmp_path, aspect, width):
    path = write(tmp_path / "v.mp4", frames[:, :240, :320], aspect=aspect)
    assert ours(path).shape[1:3] == (240, width)
    assert probe(path, Limits()).pixel_aspect == aspect


@needs_ffmpeg
@pytest.mark.parametrize("pixels", ["gray", "gray10le"])
@pytest.mark.parametrize(("colour_range", "expected"), [("tv", [0, 130, 255]), ("pc", [16, 128, 235])])
@pytest.mark.parametrize("size", [None, (30, 40)])
def test_gray_video_has_the_range_of_its_tag(pixels, colour_range, expected, size, tmp_path):
    luma = np.repeat(np.array([16, 128, 235], np.uint8), 30)[None].repeat(60, axis=0)
    raw = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", "90x60", "-color_range", colour_range, "-i", "-"]
    coded = ["-c:v", "ffv1", "-pix_fmt", pixels, "-color_range", colour_range, str(tmp_path / "v.mkv")]
    subprocess.run(["ffmpeg", "-v", "error", *raw, *coded], input=luma.tobytes(), check=True)
    (frame,) = ours(tmp_path / "v.mkv", size)
    height, width = frame.shape[:2]
    levels = frame[height // 2, [width // 6, width // 2, -width // 6]]
    assert np.abs(levels.T.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", ["v.mp4", "v.hevc"])
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_is_refused_by_name_and_never_passed_off_as_sdr(frames, tmp_path, transfer, name):
    path = write(tmp_path / name, frames, matrix=BT2020, transfer=transfer, pixels="yuv420p10le", codec="libx265")
    with pytest.raises(VideoError, match="hdr: has (PQ|HLG) brightness"):
        probe(path, Limits())


@needs_ffmpeg
def test_a_varying_frame_rate_is_sampled_by_time_as_ffmpeg_does(frames, tmp_path):
    pts = [0, 1, 2, 3, 4, 5, 40, 80, 82, 84, 120, 160]
    path = write(tmp_path / "v.mkv", frames, pts=pts)
    info = probe(path, Limits())
    indices, times = sample_timeline(info, 10)
    assert [float(time * info.time_base) for time in times] == [index / 10 for index in range(len(times))]
    read = open_reader(path, info, fit_size(*info.shown_size, None, 1), "pyav").read(indices)
    # ffmpeg's round=up gives each tick the frame that is on screen then.
    theirs = by_ffmpeg(path, *frames.shape[1:3], "fps=10:round=up")
    count = min(len(read), len(theirs))
    assert count >= 16 and abs(len(read) - len(theirs)) <= 1
    assert differ(read[:count], theirs[:count]) < 0.8


@needs_ffmpeg
@pytest.mark.parametrize("fps", [29.97, 1000])
def test_a_rate_above_that_of_the_ticks_of_a_file_has_a_time_for_each_frame(fps, make_video, tmp_path):
    path = make_video(tmp_path / "v.avi", NUM_FRAMES)
    assert probe(path, Limits()).time_base == Fraction(1, 25)
    config = ShardConfig(clip=ClipPolicy(num_frames=9, min_frames=1, fps=fps, short_side=None))
    cuts = cut_clips(CutJob(tuple(probe_clips(source_at(str(path)), config)), config)).cuts
    clips = [json.loads((cut.files or {})["json"]) for cut in cuts]
    times = [tick * Fraction(clip["time_base"]) for clip in clips for tick in clip["pts"]]
    rate = Fraction(fps).limit_denominator(1000)
    assert times == [times[0] + index / rate for index in range(round(NUM_FRAMES / 25 * rate))]
    info = probe(path, Limits(), fps)
    indices, _ = sample_timeline(info, fps)
    read = open_reader(path, info, fit_size(*info.shown_size, None, 1), "pyav").read(indices)
    theirs = by_ffmpeg(path, *read.shape[1:3], f"setpts=PTS-STARTPTS,fps={rate}:round=up")
    assert len(theirs) >= len(times) - 1 and differ(read[: len(times) - 1], theirs[: len(times) - 1]) < 0.1


@pytest.mark.parametrize(
    ("fit", "size", "expected"),
    [
        ("crop", (64, 64), (64, 114, 64, 64)),
        ("pad", (64, 64), (36, 64, 64, 64)),
        ("stretch", (64, 64), (64, 64, 64, 64)),
    ],
)
def test_a_fixed_size_is_cropped_padded_or_stretched(fit, size, expected):
    found = fit_size(360, 640, None, 8, size, fit)
    assert (found.scaled_height, found.scaled_width, found.height, found.width) == expected
    framed = found.crop_or_pad(np.full((2, found.scaled_height, found.scaled_width, 3), 200, np.uint8))
    assert framed.shape == (2, 64, 64, 3)
    black = (framed == 0).all(axis=3)[0]
    assert black.mean() == ((64 - 36) / 64 if fit == "pad" else 0)
    assert (black == black[::-1, ::-1]).all()


@pytest.mark.parametrize(("fit", "shape"), [("crop", (96, 168)), ("pad", (96, 176)), ("stretch", (96, 168))])
def test_a_short_side_is_fitted_to_the_multiple(fit, shape):
    found = fit_size(360, 640, 96, 8, None, fit)
    assert (found.height, found.width) == shape


@pytest.mark.parametrize("shape", [(64, 96), (63, 95)])
def test_every_encoding_has_exactly_the_frames_and_what_is_lossless_has_their_values(frames, shape):
    for count in (1, 2, 9, 12):
        clip = np.ascontiguousarray(frames[:count, : shape[0], : shape[1]])
        pts = tuple(range(0, 40 * count, 40))
        for media in (encode_ffv1(clip, pts, Fraction(1, 1000)), encode_npy(clip)):
            assert (decode_clip(media, "clip") == clip).all()
        for fast_decode in (False, True):
            media = encode_mp4(clip, pts, Fraction(1, 1000), crf=12, fast_decode=fast_decode)
            lossy = decode_clip(media, "clip")
            assert lossy.shape == clip.shape and differ(lossy, clip) < 5
            assert media == encode_mp4(clip, pts, Fraction(1, 1000), crf=12, fast_decode=fast_decode)
            # x264 stores its options.
            assert (b" cabac=0 " in media, b" deblock=0:" in media) == (fast_decode, fast_decode)
        assert encode_ffv1(clip, pts, Fraction(1, 1000)) == encode_ffv1(clip, pts, Fraction(1, 1000))


def test_what_is_encoded_says_its_colours(frames):
    import io

    with av.open(io.BytesIO(encode_mp4(frames, tuple(range(len(frames))), Fraction(1, 25), crf=17))) as container:
        frame = next(container.decode(video=0))
        assert frame.colorspace in (5, BT601) and frame.color_range == LIMITED, "two names of one matrix"


def test_packets_are_copied_where_the_cut_falls_on_keyframes(tmp_path, make_video):
    options = {"g": "10", "bf": "2", "b_strategy": "0", "sc_threshold": "0", "flags": "+cgop"}
    path = make_video(tmp_path / "v.mp4", 40, codec_options=options)
    info = probe(path, Limits())
    assert info.keyframes == (0, 10, 20, 30)
    whole = open_reader(path, info, fit_size(*info.shown_size, None, 1), "pyav").read(list(range(40)))
    for first, last in ((0, 10), (10, 30), (30, 40)):
        copied = decode_clip(copy_packets(path, info, range(first, last)), "copy")
        assert (copied == whole[first:last]).all()
    for first, last in ((5, 15), (0, 6), (10, 28)):
        with pytest.raises(VideoError, match="not_on_keyframes"):
            copy_packets(path, info, range(first, last))


def test_scores_tell_dark_from_light_and_still_from_moving(frames):
    assert luma_score(np.zeros_like(frames)) == 0 and luma_score(np.full_like(frames, 255)) == pytest.approx(1)
    assert 0.2 < luma_score(frames) < 0.8
    assert motion_score(frames[:1]) == motion_score(np.repeat(frames[:1], 5, axis=0)) == 0
    assert motion_score(frames) > 0.003
    noise = np.random.default_rng(0).normal(0, 3, frames.shape)
    noisy = np.clip(frames[:1] + noise, 0, 255).astype(np.uint8)
    assert motion_score(noisy) < motion_score(frames) / 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoding": "copy"},
        {"encoding": "copy", "short_side": None, "fps": 10},
        {"encoding": "copy", "short_side": None, "stride": 4},
        {"size": (64, 60), "multiple": 8},
        {"min_frames": 40},
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(ValueError):
        ClipPolicy(**wrong)


@needs_ffmpeg
@pytest.mark.parametrize("fps", [10, 15, 20, 24, 30])
def test_a_rate_is_sampled_alike_in_a_container_with_one_tick_per_frame(tmp_path, make_video, fps):
    path = make_video(tmp_path / "v.avi", 50, codec="mpeg4", codec_options={"q:v": "2"})
    assert probe(path, Limits()).tick_per_frame == 1
    info = probe(path, Limits(), fps)
    indices, times = sample_timeline(info, fps)
    assert [time * info.time_base for time in times] == [Fraction(index, fps) for index in range(2 * fps)]
    theirs = by_ffmpeg(path, info.height, info.width, f"fps={fps}:round=up")
    read = open_reader(path, info, fit_size(*info.shown_size, None, 1), "pyav").read(indices)
    count = min(len(read), len(theirs))
    assert count >= 2 * fps - 1 and shown(read[:count]) == shown(theirs[:count])


def test_shards_and_tokens_of_a_range_have_the_same_frames(tmp_path, make_video):
    source = replace(source_at(str(make_video(tmp_path / "v.mp4", 24))), start_s=0.28, end_s=0.56)
    config = ShardConfig(clip=ClipPolicy(min_frames=1))
    assert [(row.first, row.num_frames) for row in probe_clips(source, config)] == [(7, 7)]
    assert sample_video(source, config.clip, config.limits, False).ranges == [(7, 14)]


def test_groups_of_pictures_are_joined_up_to_the_length_of_a_clip():
    info = VideoInfo("mov", "h264", 8, 8, Fraction(1, 25), range(100), False, False, (0, 5, 9, 30, 32, 60, 61, 90))
    policy = ClipPolicy(num_frames=33, encoding="copy", short_side=None)
    assert list(_windows(0, 100, policy, info)) == [(0, 32), (32, 29), (61, 29), (90, 10)]
    assert list(_windows(1, 62, policy, info)) == [(5, 27), (32, 29)]
    assert list(_windows(0, 100, replace(policy, num_frames=9), info)) == [(0, 9), (30, 2), (60, 1)]
    assert list(_windows(0, 100, replace(policy, num_frames=10), info)) == [(0, 9), (30, 2), (60, 1), (90, 10)]
    all_keys = replace(info, pts=range(1_000_000), keyframes=tuple(range(1_000_000)))
    assert len(list(_windows(0, 1_000_000, policy, all_keys))) == -(-1_000_000 // 33)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (slice(None), ""),
        (slice(0, 8), "not_on_keyframes: its copy decodes to 8 of 9 frames"),
        (slice(None, None, -1), "not_copyable: its copy does not decode to the same frames"),
    ],
)
def test_a_copy_that_shows_other_frames_is_refused(tmp_path, make_video, monkeypatch, change, reason):
    path = make_video(tmp_path / "v.mkv", 9)
    config = ShardConfig(clip=ClipPolicy(encoding="copy", short_side=None))
    frames = decode_clip(path.read_bytes(), "v")[change]
    other = encode_ffv1(frames, tuple(range(len(frames))), Fraction(1, 25))
    monkeypatch.setattr(cut, "copy_packets", lambda *_: other)
    (found,) = cut_clips(CutJob(tuple(probe_clips(source_at(str(path)), config)), config)).cuts
    assert f"{found.reason}: {found.detail}" == (reason or ": ")


def test_frames_without_a_keyframe_are_not_said_to_be_too_few(tmp_path, make_video):
    path = make_video(tmp_path / "v.mkv", 9, codec="mpeg2video", codec_options={"g": "3", "bf": "2"})
    config = ShardConfig(clip=ClipPolicy(num_frames=9, min_frames=8, encoding="copy", short_side=None))
    (row,) = probe_clips(replace(source_at(str(path)), start_s=0.04), config)
    assert row.reason == "not_on_keyframes"
