"""Videos that play and are unusual: each comes out frame for frame as FFmpeg shows it, on one ascending timeline.

``docs/video-support.md`` names each kind and its test.
"""

import io
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.oddities import (
    B_FRAMES,
    X264,
    by_ffmpeg,
    damage,
    ffmpeg,
    opened,
    pack,
    remux,
    shown,
    write_field_pictures,
)
from vidvq.corpus.source import source_at
from vidvq.shard.config import ClipPolicy, ShardConfig
from vidvq.shard.cut import CutJob, cut_clips
from vidvq.shard.probe import probe_clips
from vidvq.video import VideoError
from vidvq.video.decode import decode_clip, open_reader
from vidvq.video.geometry import FrameSize, fit_size, orientation
from vidvq.video.limits import Limits
from vidvq.video.pictures import is_hidden
from vidvq.video.probe import VideoInfo, probe
from vidvq.video.remux import copy_packets
from vidvq.video.sampling import clip_times, gapless_ranges, sample_timeline

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed")
NUM_FRAMES = 60
HEIGHT, WIDTH = 64, 128
ALL = list(range(NUM_FRAMES))


def failed_clips(path: Path, length: int) -> tuple[list[int], list[int]]:
    """The clips of so many frames that cannot be read, and the frames of all others."""
    info, read = opened(path)
    failed, found = [], []
    for first in range(0, info.num_frames, length):
        try:
            found += shown(read(first, min(first + length, info.num_frames)))
        except VideoError as error:
            assert error.reason == "decode_error"
            failed.append(first // length)
    return failed, found


def seconds_apart(info: VideoInfo) -> list[float]:
    return [round(float((b - a) * info.time_base), 3) for a, b in zip(info.pts, info.pts[1:], strict=False)]


def encoded(name: str, *options: object) -> Callable[[Path, Path], Path]:
    def build(master: Path, folder: Path) -> Path:
        ffmpeg("-i", master, *options, folder / name)
        return folder / name

    return build


def repackaged(name: str, codec: tuple[str, ...], *options: object) -> Callable[[Path, Path], Path]:
    """Encoded first, in a container that keeps presentation times, then copied into another."""

    def build(master: Path, folder: Path) -> Path:
        ffmpeg("-i", master, *codec, folder / "first.mkv")
        ffmpeg("-i", folder / "first.mkv", "-c", "copy", *options, folder / name)
        return folder / name

    return build


def _field_pictures(_: Path, folder: Path) -> Path:
    write_field_pictures(folder / "fields.264", NUM_FRAMES)
    ffmpeg("-r", "25", "-f", "h264", "-i", folder / "fields.264", "-c", "copy", folder / "fields.ts")
    return folder / "fields.ts"


def _packed(master: Path, folder: Path) -> Path:
    ffmpeg("-i", master, "-c:v", "mpeg4", "-bf", "1", "-b_strategy", "0", "-q:v", "2", folder / "b.avi")
    return pack(folder / "b.avi", folder / "packed.avi")


def _two_pass_vp8(name: str) -> Callable[[Path, Path], Path]:
    def build(master: Path, folder: Path) -> Path:
        options = "-c:v libvpx -b:v 300k -auto-alt-ref 1 -lag-in-frames 16 -passlogfile".split()
        for number in (1, 2):
            ffmpeg("-i", master, *options, folder / "log", "-pass", number, folder / name)
        with av.open(str(folder / name)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        assert len(packets) > NUM_FRAMES, "no hidden frame; the test shows nothing"
        return folder / name

    return build


def _changed(name: str, change: Callable[[list[av.Packet]], object]) -> Callable[[Path, Path], Path]:
    def build(master: Path, folder: Path) -> Path:
        ffmpeg("-i", master, *X264, *B_FRAMES, folder / "b.mp4")
        return remux(folder / "b.mp4", folder / name, change)

    return build


def _swap(packets: list[av.Packet]) -> None:
    """One time twice, and another not at all."""
    times = sorted(packet.pts for packet in packets)
    moved = next(packet for packet in packets[20:] if packet.pts - packet.dts >= 2 * (times[1] - times[0]))
    moved.pts = times[times.index(moved.pts) - 1]


def _decoding_times(packets: list[av.Packet]) -> None:
    early = packets[0].dts
    for packet in packets:
        packet.dts -= early
        packet.pts = packet.dts


def _stray(packets: list[av.Packet]) -> None:
    step = sorted(packet.pts for packet in packets)[1]
    for index, far in ((22, 900), (31, 700)):
        packets[index].pts += far * step


# Name -> how it is made, and whether a pass of the decoder must tell its timeline.
KINDS: dict[str, tuple[Callable[[Path, Path], Path], bool]] = {
    # Frames without presentation times.
    "h264-b-avi": (encoded("v.avi", *X264, *B_FRAMES), True),
    "h264-avi": (encoded("v.avi", *X264, "-bf", "0"), False),
    "mpeg4-b-avi": (encoded("v.avi", "-c:v", "mpeg4", "-bf", "2", "-q:v", "2"), True),
    "mpeg4-packed-avi": (_packed, True),
    "h264-decoding-times-mp4": (_changed("v.mp4", _decoding_times), True),
    "h264-raw": (encoded("v.264", *X264, *B_FRAMES), True),
    "h264-raw-text-first": (repackaged("v.264", (*X264, *B_FRAMES)), True),
    "hevc-raw": (encoded("v.265", "-c:v", "libx265", "-x265-params", "log-level=none:bframes=3"), True),
    "mpeg4-raw": (encoded("v.m4v", "-c:v", "mpeg4", "-bf", "2", "-q:v", "2", "-f", "m4v"), True),
    "mpeg2-raw": (encoded("v.m2v", "-c:v", "mpeg2video", "-bf", "2", "-q:v", "2"), True),
    # Packets that are not frames.
    "h264-fields-ts": (_field_pictures, True),
    "vp8-hidden-webm": (_two_pass_vp8("v.webm"), False),
    "vp8-hidden-ivf": (_two_pass_vp8("v.ivf"), True),
    "vp9-hidden-webm": (encoded("v.webm", "-c:v", "libvpx-vp9", "-b:v", "300k", "-auto-alt-ref", "1"), False),
    "av1-hidden-mkv": (encoded("v.mkv", "-c:v", "libaom-av1", "-cpu-used", "8", "-b:v", "300k"), False),
    # Times that repeat or are far off.
    "h264-one-time-twice-mp4": (_changed("v.mp4", _swap), True),
    "h264-stray-times-mkv": (_changed("v.mkv", _stray), True),
    # Ordinary, whose packets are trusted.
    "h264-b-mp4": (encoded("v.mp4", *X264, *B_FRAMES), False),
    "h264-b-mkv": (encoded("v.mkv", *X264, *B_FRAMES), False),
    "h264-b-ts": (encoded("v.ts", *X264, *B_FRAMES), False),
    "h264-b-flv": (encoded("v.flv", *X264, *B_FRAMES), False),
    "h264-open-mp4": (encoded("v.mp4", *X264, *B_FRAMES, "-x264-params", "open-gop=1"), False),
    "h264-fragments-mp4": (encoded("v.mp4", *X264, *B_FRAMES, "-movflags", "+frag_keyframe+empty_moov"), False),
    "hevc-open-mp4": (encoded("v.mp4", "-c:v", "libx265", "-x265-params", "log-level=none:keyint=20"), False),
    "mpeg2-b-mpg": (encoded("v.mpg", "-c:v", "mpeg2video", "-bf", "2", "-q:v", "2"), False),
    "wmv2-wmv": (encoded("v.wmv", "-c:v", "wmv2", "-q:v", "2"), False),
    # Other containers.
    "gif": (encoded("v.gif"), True),
    "apng": (encoded("v.apng"), True),
    "y4m": (encoded("v.y4m", "-pix_fmt", "yuv420p"), True),
    "mxf": (encoded("v.mxf", "-c:v", "mpeg2video", "-q:v", "2"), True),
    "dv": (encoded("v.dv", "-s", "720x576", "-pix_fmt", "yuv420p"), True),
    "ogv": (encoded("v.ogv", "-c:v", "libtheora", "-q:v", "9"), True),
    "nut": (encoded("v.nut", "-c:v", "mpeg4", "-q:v", "2"), True),
    "wtv": (encoded("v.wtv", "-c:v", "mpeg2video", "-q:v", "2"), True),
    "vp9-ivf": (encoded("v.ivf", "-c:v", "libvpx-vp9", "-b:v", "300k"), True),
    "av1-obu": (encoded("v.obu", "-c:v", "libaom-av1", "-cpu-used", "8", "-b:v", "300k"), True),
    "rm": (encoded("v.rm", "-s", "176x144", "-c:v", "rv10", "-q:v", "2"), True),
    "f4v": (encoded("v.f4v", *X264, *B_FRAMES), False),
    "3g2": (encoded("v.3g2", *X264, *B_FRAMES), False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_comes_in_its_place(kind, master, tmp_path):
    build, decoded = KINDS[kind]
    path = build(master, tmp_path)
    info, read = opened(path)
    frames = read(0, info.num_frames)
    assert shown(frames) == ALL
    assert (info.packets is not None) == decoded
    assert all(a < b for a, b in zip(info.pts, info.pts[1:], strict=False))
    assert max(seconds_apart(info)) < 0.09, "at 25 frames a second, rounded to what the container can say"
    theirs = by_ffmpeg(path, *frames.shape[1:3], *(["bwdif=send_frame:auto:interlaced"] if info.is_interlaced else []))
    assert theirs.shape == frames.shape
    assert np.abs(frames.astype(int) - theirs).mean(axis=(1, 2, 3)).max() < 1.5
    for first in (NUM_FRAMES - 2, 1, 41):
        _, fresh = opened(path)
        assert np.array_equal(fresh(first, first + 2), frames[first : first + 2]), "wherever reading begins"


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_joined_recordings_are_one_timeline(name, master, tmp_path):
    suffix = Path(name).suffix
    for part, first in (("one", 0), ("two", 30)):
        select = f"select=between(n\\,{first}\\,{first + 29}),setpts=N/25/TB"
        ffmpeg("-i", master, "-vf", select, *X264, "-g", "10", tmp_path / f"{part}{suffix}")
    path = tmp_path / name
    path.write_bytes((tmp_path / f"one{suffix}").read_bytes() + (tmp_path / f"two{suffix}").read_bytes())
    info, read = opened(path)
    assert shown(read(0, info.num_frames)) == ALL
    assert info.retimed
    assert set(seconds_apart(info)) == {0.04}
    assert len(sample_timeline(info, 25)[0]) == NUM_FRAMES


def test_a_seam_at_which_times_overlap_loses_no_frame(master, tmp_path):
    ffmpeg("-i", master, *X264, *B_FRAMES, tmp_path / "v.mp4")
    (tmp_path / "list").write_text("file v.mp4\ninpoint 0.3\noutpoint 0.9\nfile v.mp4\n")
    ffmpeg("-f", "concat", "-i", tmp_path / "list", "-c", "copy", tmp_path / "joined.mp4")
    info, read = opened(tmp_path / "joined.mp4")
    frames = read(0, info.num_frames)
    assert info.retimed and shown(frames)[-NUM_FRAMES:] == ALL
    assert np.array_equal(frames, by_ffmpeg(tmp_path / "joined.mp4", HEIGHT, WIDTH))


def test_a_jump_of_a_recording_is_another_recording(master, tmp_path):
    ffmpeg("-i", master, "-vf", "setpts=PTS+gte(N\\,30)*3600/TB", *X264, "-g", "10", "-fps_mode", "passthrough",
           tmp_path / "jump.ts")  # fmt: skip
    info, read = opened(tmp_path / "jump.ts")
    assert shown(read(0, info.num_frames)) == ALL
    assert info.retimed and set(seconds_apart(info)) == {0.04}


def test_a_pause_is_kept_and_no_frame_is_held_over_a_long_one(master, tmp_path):
    ffmpeg("-i", master, "-vf", "setpts=PTS+gte(N\\,30)*4000000/TB", *X264, "-fps_mode", "passthrough",
           tmp_path / "pause.mkv")  # fmt: skip
    info, read = opened(tmp_path / "pause.mkv")
    assert shown(read(0, info.num_frames)) == ALL
    assert not info.retimed and max(seconds_apart(info)) == pytest.approx(4e6, abs=1)
    indices, times = sample_timeline(info, 25)
    before, after = (list(indices[begin:end]) for begin, end in gapless_ranges(info, 25))
    assert before == list(range(30)) and after == list(range(30, NUM_FRAMES))
    assert len(times) == pytest.approx(4e6 * 25 + NUM_FRAMES, abs=2)
    unlimited = replace(info, max_gap_s=None)
    with pytest.raises(VideoError, match="too_large: lasts 4000002 s by its timestamps, 120000072 frames at fps=30"):
        sample_timeline(unlimited, 30)


@pytest.mark.parametrize("codec", [("-c:v", "mpeg2video", "-bf", "2", "-g", "15", "-q:v", "2"), (*X264, "-g", "20")])
def test_a_recording_that_begins_inside_a_group_begins_at_its_first_whole_frame(codec, master, tmp_path):
    ffmpeg("-i", master, *codec, tmp_path / "whole.ts")
    data = (tmp_path / "whole.ts").read_bytes()
    # In the middle of a packet of the stream, too.
    (tmp_path / "cut.ts").write_bytes(data[: 188 * 3] + data[len(data) // 3 // 188 * 188 :])
    (tmp_path / "half.ts").write_bytes(data[len(data) // 3 + 50 :])
    for name in ("cut.ts", "half.ts"):
        info, read = opened(tmp_path / name)
        frames = shown(read(0, info.num_frames))
        assert frames == ALL[frames[0] :] and 0 < frames[0] <= 40
        assert shown(by_ffmpeg(tmp_path / name, HEIGHT, WIDTH)) == frames


QUARTERS = [(turn, flip) for turn in (0, 90, 180, 270) for flip in (False, True)]


@pytest.mark.parametrize(("turn", "flip"), QUARTERS)
def test_a_picture_is_turned_and_mirrored_as_players_show_it(turn, flip, demo_videos, tmp_path):
    with av.open(str(demo_videos / "heldout/bikes.mp4")) as given, av.open(str(tmp_path / "v.mp4"), "w") as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        copy.set_display_rotation(turn, hflip=flip)
        for number, packet in enumerate(given.demux(stream)):
            if packet.size and number < 12:
                packet.stream = copy
                made.mux(packet)
    info, read = opened(tmp_path / "v.mp4")
    frames = read(0, 8)
    theirs = by_ffmpeg(tmp_path / "v.mp4", *frames.shape[1:3])[:8]
    assert np.abs(frames.astype(int) - theirs).mean(axis=(1, 2, 3)).max() < 0.8
    if turn or flip:
        with pytest.raises(VideoError, match="not_as_shown"):
            refuse_copy(tmp_path / "v.mp4", info)


def refuse_copy(path: Path, info: VideoInfo) -> None:
    from vidvq.shard.config import ClipPolicy, ShardConfig
    from vidvq.shard.cut import CutJob, _Video

    policy = ClipPolicy(encoding="copy", short_side=None, multiple=1)
    video = _Video(path, info, CutJob((), ShardConfig(clip=policy)))
    video._encode(np.zeros((1, 1, 1, 3), np.uint8), (0,), 1, range(1))


def test_a_mirror_in_matroska_is_undone(master, tmp_path):
    ffmpeg("-i", master, *X264, tmp_path / "v.mp4")
    remuxed = tmp_path / "v.mkv"
    with av.open(str(tmp_path / "v.mp4")) as given, av.open(str(remuxed), "w") as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        copy.set_display_rotation(0, hflip=True)
        for packet in given.demux(stream):
            if packet.size:
                packet.stream = copy
                made.mux(packet)
    info, read = opened(remuxed)
    assert info.mirrored
    assert shown(read(0, info.num_frames)[:, :, ::-1]) == ALL


@pytest.mark.parametrize(("angle", "turns"), [(3, 0), (44, 0), (46, 1), (89, 1), (91, 1), (100, 1), (179, 2), (-89, 3)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_any_angle_is_taken_to_the_nearest_quarter_turn(angle, turns, mirrored):
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    mirror = -1 if mirrored else 1
    matrix = [round(value * 65536) for value in (mirror * cos, -sin, 0, mirror * sin, cos, 0, 0, 0, 16384)]
    assert orientation(tuple(matrix)) == (turns, mirrored)


@pytest.mark.parametrize(("tag", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_frames_with_the_exif_of_a_camera_are_read_and_turned(tmp_path, tag, turns):
    exif = Image.Exif()
    exif[0x0112] = tag
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        for index in range(3):
            jpeg = io.BytesIO()
            Image.new("RGB", (WIDTH, HEIGHT), (80 * index, 0, 0)).save(jpeg, "JPEG", exif=exif.tobytes())
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    info, read = opened(tmp_path / "v.avi")
    assert (info.quarter_turns, info.mirrored, info.num_frames) == (turns, False, 3)
    assert np.abs(read(0, 3).mean((1, 2))[:, 0] - [0, 80, 160]).max() < 4


def test_cover_art_is_never_the_video(master, tmp_path):
    ffmpeg("-i", master, "-frames:v", 1, "-c:v", "mjpeg", "-s", "640x320", tmp_path / "cover.jpg")
    inputs = ("-i", tmp_path / "cover.jpg", "-i", master, "-map", 0, "-map", 1)
    ffmpeg(*inputs, "-c:v:0", "copy", "-c:v:1", "libx264", "-disposition:v:0", "attached_pic", tmp_path / "v.mkv")
    info, read = opened(tmp_path / "v.mkv")
    assert shown(read(0, info.num_frames)) == ALL


def test_of_two_videos_the_default_one_is_taken_else_the_larger(master, tmp_path):
    two = ("-i", master, "-map", "0:v", "-map", "0:v", "-c:v", "ffv1", "-s:v:0", "64x32", "-s:v:1", "128x64")
    ffmpeg(*two, "-disposition:v:0", "0", "-disposition:v:1", "0", tmp_path / "none.nut")
    ffmpeg(*two, "-disposition:v:0", "default", "-disposition:v:1", "0", tmp_path / "first.mkv")
    assert [probe(tmp_path / name, Limits()).height for name in ("none.nut", "first.mkv")] == [64, 32]


def test_sound_with_a_cover_is_no_video(master, make_audio, tmp_path):
    ffmpeg("-i", master, "-frames:v", 1, "-c:v", "mjpeg", tmp_path / "cover.jpg")
    make_audio(tmp_path / "sound.mp4")
    ffmpeg("-i", tmp_path / "sound.mp4", "-i", tmp_path / "cover.jpg", "-map", 0, "-map", 1, "-c", "copy",
           "-disposition:v:0", "attached_pic", tmp_path / "song.mp4")  # fmt: skip
    with pytest.raises(VideoError, match="no_video_stream: .* has no video stream but cover art"):
        probe(tmp_path / "song.mp4", Limits())


DAMAGED = {
    "mjpeg.avi": (("-c:v", "mjpeg", "-q:v", "2"), 3),
    "h264.mp4": ((*X264, "-g", "10", "-bf", "2"), 10),
    "mpeg4.avi": (("-c:v", "mpeg4", "-q:v", "2", "-g", "10"), 10),
    "mpeg2.mkv": (("-c:v", "mpeg2video", "-q:v", "2", "-g", "10", "-bf", "2"), 10),
    "av1.mp4": (("-c:v", "libaom-av1", "-cpu-used", "8", "-b:v", "300k", "-g", "10"), 10),
    "vp9.webm": (("-c:v", "libvpx-vp9", "-b:v", "300k", "-g", "10"), 10),
    "h264-b.avi": ((*X264, *B_FRAMES, "-g", "10"), 10),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_costs_the_clips_that_hold_it(name, master, tmp_path):
    codec, reach = DAMAGED[name]
    path = tmp_path / name
    ffmpeg("-i", master, *codec, path)
    before, read = opened(path)
    whole = read(0, before.num_frames)
    damage(path, 22, 3)
    info, _ = opened(path)
    assert info.num_frames == NUM_FRAMES
    lost = []
    for index in reversed(ALL):
        try:
            reader = open_reader(path, info, fit_size(*info.shown_size, None, 1), "pyav")
            assert np.array_equal(reader.read([index])[0], whole[index]), "whole, or not at all"
        except VideoError:
            lost.append(index)
    assert lost and min(lost) >= 20 and max(lost) < 22 + reach
    failed, found = failed_clips(path, 4)
    assert failed == sorted({index // 4 for index in lost}), "in one pass as one by one"
    assert found == [index for index in ALL if index // 4 not in failed]


@pytest.mark.parametrize("place", [1, 4])
def test_damage_before_an_edit_costs_the_frames_that_need_it(place, master, tmp_path):
    path = tmp_path / "v.mp4"
    ffmpeg("-i", master, *X264, *B_FRAMES, tmp_path / "whole.mp4")
    ffmpeg("-ss", "0.3", "-i", tmp_path / "whole.mp4", "-c", "copy", path)
    info, read = opened(path)
    whole = read(0, info.num_frames)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert packets[place].is_discard and not packets[-1].is_discard
    damage(path, place, 1)
    damaged, read = opened(path)
    assert damaged.num_frames == info.num_frames
    found: list[int] = []
    for index in range(info.num_frames):
        try:
            assert np.array_equal(read(index, index + 1)[0], whole[index])
            found.append(index)
        except VideoError:
            pass
    first_key = shown(whole).index(20)
    assert found == list(range(first_key, info.num_frames))


def test_shots_are_found_beyond_damage(master, tmp_path):
    from vidvq.shard.config import CutPolicy
    from vidvq.shard.shots import find_shots

    pytest.importorskip("scenedetect")
    ffmpeg("-i", master, "-c:v", "mjpeg", "-q:v", "2", tmp_path / "v.avi")
    damage(tmp_path / "v.avi", 22, 3)
    assert find_shots(tmp_path / "v.avi", probe(tmp_path / "v.avi", Limits()), CutPolicy(kind="shots"))[0] == 0


@pytest.mark.parametrize("name", ["v.mkv", "v.mp4"])
def test_the_last_frame_is_shown_as_long_as_the_file_says(name, make_video, tmp_path):
    def hold(packets: list[av.Packet]) -> None:
        packets[-1].duration = int(2 / packets[-1].time_base)

    make_video(tmp_path / f"a{name}", 20, codec_options={"bf": "0"})
    info, _ = opened(remux(tmp_path / f"a{name}", tmp_path / name, hold))
    indices, times = sample_timeline(info, 25)
    assert abs(len(indices) - 19 - 50) <= 1 and set(indices[20:]) == {19}
    pts, duration, _ = clip_times(info, info.pts, 10, 10)
    assert float(duration * info.time_base) == pytest.approx(9 / 25 + 2, abs=0.05)
    assert len(pts) == 10 and times[0] == info.pts[0]


def test_the_last_frame_does_not_last_as_long_as_the_sound(master, tmp_path):
    path = tmp_path / "v.mkv"
    ffmpeg("-i", master, "-f", "lavfi", "-i", "sine=duration=9", "-c:v", "copy", "-c:a", "libopus", path)
    assert probe(path, Limits()).held == 0


def test_one_frame_may_be_sampled(make_video, tmp_path):
    info, _ = opened(make_video(tmp_path / "one.mp4", 1))
    assert list(sample_timeline(info, 10)[0]) == [0]


def copies(path: Path, length: int) -> list[list[int]]:
    """The frames of each copied clip, as it decodes alone; what a copy shows is what the source shows."""
    info, read = opened(path)
    found = []
    for first, after in pairwise([*info.keyframes, info.num_frames]):
        copied = decode_clip(copy_packets(path, info, range(first, after)), "copy")
        assert np.array_equal(copied, read(first, after))
        found.append(shown(copied))
    assert len(found) == NUM_FRAMES // length
    return found


COPIES = {
    "h264-b.mkv": (*X264, *B_FRAMES),
    "h264-b.ts": (*X264, *B_FRAMES),
    "h264-b.mp4": (*X264, *B_FRAMES),
    "h264-b.avi": (*X264, *B_FRAMES),
    "h264-intra.avi": (*X264, "-g", "1"),
    "av1.mp4": ("-c:v", "libaom-av1", "-cpu-used", "8", "-b:v", "300k", "-g", "20"),
    "hevc.ts": ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=20:min-keyint=20:open-gop=0"),
}


@pytest.mark.parametrize("name", COPIES)
def test_packets_are_copied_from_keyframe_to_keyframe(name, master, tmp_path):
    ffmpeg("-i", master, *COPIES[name], tmp_path / name)
    length = 1 if name == "h264-intra.avi" else 20
    assert copies(tmp_path / name, length) == [ALL[first : first + length] for first in range(0, NUM_FRAMES, length)]


def test_hidden_frames_are_copied_along(master, tmp_path):
    path = _two_pass_vp8("v.webm")(master, tmp_path)
    assert copies(path, NUM_FRAMES) == [ALL]

    def as_vpxenc(packets: list[av.Packet]) -> None:
        """The time of a hidden frame is just after that of the frame before it."""
        for before, packet in pairwise(packets):
            if is_hidden("vp8", packet):
                packet.pts = packet.dts = before.pts + 1

    assert copies(remux(path, tmp_path / "vpxenc.webm", as_vpxenc), NUM_FRAMES) == [ALL]


def test_field_pictures_are_not_copied(master, tmp_path):
    path = KINDS["h264-fields-ts"][0](master, tmp_path)
    info, _ = opened(path)
    with pytest.raises(VideoError, match="not_copyable"):
        copy_packets(path, info, range(info.num_frames))


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("gif", "'matroska' format does not support 'gif' codec"),
        ("size-changes", "its copy has frames of several sizes"),
    ],
)
def test_what_a_copy_cannot_hold_is_no_damage(kind, detail, master, tmp_path):
    if kind == "gif":
        path = KINDS["gif"][0](master, tmp_path)
    else:
        path = tmp_path / "v.ts"
        for size in ("128x64", "64x32"):
            ffmpeg("-i", master, "-s", size, *X264, "-bf", "0", tmp_path / f"{size}.ts")
            with path.open("ab") as file:
                file.write((tmp_path / f"{size}.ts").read_bytes())
    config = ShardConfig(clip=ClipPolicy(encoding="copy", short_side=None, num_frames=1000))
    rows = probe_clips(source_at(str(path)), config)
    (cut,) = cut_clips(CutJob(tuple(rows), config)).cuts
    assert cut.reason == "not_copyable" and detail in cut.detail


def test_a_size_that_only_the_multiple_crops_is_named(master, tmp_path):
    ffmpeg("-i", master, "-vf", "scale=127:63", "-c:v", "ffv1", "-pix_fmt", "bgr0", tmp_path / "v.mkv")
    config = ShardConfig(clip=ClipPolicy(encoding="copy", short_side=None, num_frames=1000))
    rows = probe_clips(source_at(str(tmp_path / "v.mkv")), config)
    cuts = cut_clips(CutJob(tuple(rows), config)).cuts
    assert all(cut.detail.endswith("cropped by clip.multiple=2, and is not with clip.multiple=1") for cut in cuts)
    as_it_is = replace(config, clip=replace(config.clip, multiple=1))
    assert all(cut.files for cut in cut_clips(CutJob(tuple(rows), as_it_is)).cuts)


def test_groups_that_share_frames_are_not_cut_for_copies(master, tmp_path):
    ffmpeg("-i", master, "-c:v", "mpeg2video", "-bf", "2", "-g", "10", "-q:v", "2", tmp_path / "v.mkv")
    info, _ = opened(tmp_path / "v.mkv")
    assert info.open_groups and info.keyframes == (0,)
    with pytest.raises(VideoError, match="not_on_keyframes"):
        copy_packets(tmp_path / "v.mkv", info, range(12, 24))
    ffmpeg("-i", tmp_path / "v.mkv", "-c", "copy", tmp_path / "v.m2v")
    info, _ = opened(tmp_path / "v.m2v")
    assert info.packets is not None and info.open_groups and info.keyframes == (0,)


def test_a_matrix_that_cannot_become_rgb_is_named(master, tmp_path):
    path = tmp_path / "v.mp4"
    ffmpeg("-i", master, "-c:v", "libx264", "-pix_fmt", "yuv444p", "-colorspace", "ycgco", path)
    with pytest.raises(VideoError, match="unsupported_colour: is yuv444p with colour matrix YCgCo, which FFmpeg"):
        probe(path, Limits())


def test_telecined_frames_come_one_by_one_and_whole(master, tmp_path):
    ffmpeg("-r", 24, "-i", master, "-vf", "telecine", "-c:v", "mpeg2video", "-q:v", "2", "-flags", "+ilme+ildct",
           tmp_path / "v.mpg")  # fmt: skip
    info, read = opened(tmp_path / "v.mpg")
    frames = read(0, info.num_frames)
    theirs = by_ffmpeg(tmp_path / "v.mpg", HEIGHT, WIDTH, "bwdif=send_frame:auto:interlaced")
    assert len(frames) == len(theirs) == NUM_FRAMES * 5 // 4


def _pull_down(stream: bytearray) -> None:
    """Set the flags of film at 24 frames a second on a disc of 30: every other frame repeats a field."""
    place, number = 0, 0
    while (place := stream.find(b"\x00\x00\x01\xb5", place) + 4) > 3:
        kind = stream[place] >> 4
        if kind == 1:  # of the sequence: not progressive
            stream[place + 1] &= ~0x08
        elif kind == 8:  # of a picture: top field first, a field repeated
            top, repeats = ((1, 1), (0, 0), (0, 1), (1, 0))[number % 4]
            stream[place + 3] = stream[place + 3] & ~0x82 | top << 7 | repeats << 1
            number += 1


@pytest.mark.parametrize("name", ["v.mpg", "v.ts", "v.mkv"])
def test_pulled_down_film_comes_frame_by_frame_at_its_own_times(name, master, tmp_path):
    rate = ("-vf", "setpts=N*1001/30000/TB", "-r", "30000/1001")
    ffmpeg("-i", master, *rate, "-c:v", "mpeg2video", "-q:v", "2", tmp_path / "film.m2v")
    stream = bytearray((tmp_path / "film.m2v").read_bytes())
    _pull_down(stream)
    (tmp_path / "film.m2v").write_bytes(stream)
    ffmpeg("-fflags", "+genpts", "-i", tmp_path / "film.m2v", "-c", "copy", tmp_path / name)
    info, read = opened(tmp_path / name)
    frames = read(0, info.num_frames)
    assert not info.is_interlaced and shown(frames) == ALL
    assert np.array_equal(frames, by_ffmpeg(tmp_path / name, HEIGHT, WIDTH)), "no field is mixed into another frame"
    fields = [round(step * 60000 / 1001) for step in seconds_apart(info)]
    assert fields[:8] == [3, 2] * 4


def test_a_webp_animation_comes_frame_by_frame(tmp_path):
    from PIL import Image

    pictures = [Image.new("RGB", (32, 16), (20 * index, 0, 0)) for index in range(10)]
    shown_ms = [40] * 9 + [500]
    pictures[0].save(tmp_path / "v.webp", save_all=True, append_images=pictures[1:], duration=shown_ms, lossless=True)
    info, read = opened(tmp_path / "v.webp")
    assert [int(frame[0, 0, 0]) for frame in read(0, info.num_frames)] == list(range(0, 200, 20))
    assert seconds_apart(info) == [0.04] * 9 and info.held * info.time_base == 0.5
    pictures[0].save(tmp_path / "v.webp", save_all=True, append_images=pictures[1:], duration=0, lossless=True)
    assert seconds_apart(probe(tmp_path / "v.webp", Limits())) == [0.1] * 9, "as browsers show it"
    pictures[0].save(tmp_path / "still.webp")
    with pytest.raises(VideoError, match="not_a_video"):
        probe(tmp_path / "still.webp", Limits())


def test_a_picture_cropped_on_the_left_is_not_squeezed(master, tmp_path):
    """FFmpeg crops the left in multiples of some bytes; the stream tells another width than its frames then have."""
    path = tmp_path / "v.mp4"
    ffmpeg("-i", master, *X264, "-bsf:v", "h264_metadata=crop_left=8:crop_right=2", path)
    info, read = opened(path)
    raw = ffmpeg("-i", path, "-frames:v", 1, "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    assert np.array_equal(read(0, 1)[0], np.frombuffer(raw, np.uint8).reshape(info.height, info.width, 3))


def test_a_strip_is_not_scaled_up_without_end():
    with pytest.raises(VideoError, match="too_large: is 400x8 pixels, 12800x256 at short_side=256"):
        fit_size(8, 400, 256, 2)
    assert fit_size(8, 250, 256, 2) == FrameSize(256, 8000, 256, 8000)
    with pytest.raises(
        VideoError, match=r"8x8192 pixels, 256x262144 at size=\[256, 256\]; the cap is limits.max_side=8192"
    ):
        fit_size(8192, 8, None, 2, (256, 256), "crop")
    assert fit_size(8192, 8, None, 2, (256, 256), "pad").scaled_height == 256
    assert fit_size(100, 100, None, 2, (9000, 9000), "crop").width == 9000, "a size that is asked for"
    assert fit_size(100, 9000, None, 2).width == 9000, "a picture that is so large already"


def test_the_pass_that_confirms_a_timeline_keeps_the_limits(master, tmp_path):
    path = KINDS["h264-b-avi"][0](master, tmp_path)
    assert probe(path, Limits(max_frames=NUM_FRAMES)).num_frames == NUM_FRAMES
    with pytest.raises(VideoError, match="too_large"):
        probe(path, Limits(max_frames=NUM_FRAMES - 1))
    with pytest.raises(VideoError, match="too_slow: takes over limits.deadline_s=1e-09 to decode"):
        probe(path, Limits(deadline_s=1e-9))


def test_frames_that_grow_beyond_the_limit_are_not_decoded(master, tmp_path):
    ffmpeg("-i", master, *X264, *B_FRAMES, tmp_path / "small.ts")
    large = ("-f", "lavfi", "-i", "color=red:size=3000x2000:rate=25", "-frames:v", 2)
    ffmpeg(*large, "-c:v", "libx264", "-preset", "ultrafast", tmp_path / "large.ts")
    path = tmp_path / "grows.ts"
    path.write_bytes((tmp_path / "small.ts").read_bytes() + (tmp_path / "large.ts").read_bytes())
    for max_pixels, failed in ((3000 * 2000, 0), (HEIGHT * WIDTH, 2)):
        info = probe(path, Limits(max_pixels=max_pixels))
        assert info.num_frames == NUM_FRAMES + 2
        read = open_reader(path, info, fit_size(*info.shown_size, None, 1), "pyav").read
        # The decoder held back the frames before the large ones; whether these precede a damaged one is unknown.
        assert shown(read(range(NUM_FRAMES - 3))) == ALL[:-3]
        if failed:
            with pytest.raises(VideoError, match=f"decode_error: {failed} of {failed} frames cannot be decoded"):
                read(range(NUM_FRAMES, NUM_FRAMES + failed))
        else:
            assert len(read(range(NUM_FRAMES, NUM_FRAMES + 2))) == 2


def test_frames_in_another_order_than_planned_are_an_error(master, tmp_path):
    """The packets are believed here where they must not be."""
    path = KINDS["h264-decoding-times-mp4"][0](master, tmp_path)
    info = probe(path, Limits())
    believed = VideoInfo(**{**info.__dict__, "packets": None})
    with pytest.raises(VideoError, match="frames cannot be decoded"):
        open_reader(path, believed, fit_size(*info.shown_size, None, 1), "pyav").read(range(10))


def test_a_plan_of_frames_that_do_not_come_is_an_error(master, tmp_path):
    path = KINDS["h264-b-avi"][0](master, tmp_path)
    info = probe(path, Limits())
    assert info.packets is not None
    swapped = [*info.packets[:5], info.packets[6], info.packets[5], *info.packets[7:]]
    wrong = VideoInfo(**{**info.__dict__, "packets": swapped})
    with pytest.raises(VideoError, match="2 of 10 frames cannot be decoded \\(first: 5\\)"):
        open_reader(path, wrong, fit_size(*info.shown_size, None, 1), "pyav").read(range(10))


DROP_READERS = """
import sys
from pathlib import Path
from vidvq.video.decode import open_reader
from vidvq.video.geometry import fit_size
from vidvq.video.limits import Limits
from vidvq.video.probe import probe
path = Path(sys.argv[1])
info = probe(path, Limits())
for number in range(100):
    open_reader(path, info, fit_size(info.height, info.width, None, 1), "pyav").read([number % 30])
"""


def test_readers_of_av1_can_be_dropped_while_its_threads_work(tmp_path):
    path = tmp_path / "a.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25", "-t", 2,
           "-c:v", "libaom-av1", "-cpu-used", 8, "-b:v", "300k", "-g", 10, path)  # fmt: skip
    # In a process of its own, because a deadlock holds the GIL.
    subprocess.run([sys.executable, "-c", DROP_READERS, str(path)], check=True, timeout=300)


@pytest.mark.parametrize("since", ["zero", "the first frame"])
@pytest.mark.parametrize("held", [1, 20, 250])
def test_a_matroska_file_that_starts_late_does_not_hold_its_last_frame(make_video, tmp_path, since, held):
    pts = [1000, 1004, 1008, 1012]
    path = make_video(tmp_path / "v.mkv", 4, pts=pts, time_base=Fraction(1, 100))
    data = path.read_bytes()
    place = data.index(b"\x44\x89\x88") + 3  # the duration, a double in milliseconds
    assert struct.unpack(">d", data[place : place + 8])[0] == 10_160, "FFmpeg counts from zero"
    length = 10_120 + 40 * held - (10_000 if since == "the first frame" else 0)
    path.write_bytes(data[:place] + struct.pack(">d", length) + data[place + 8 :])
    info = probe(path, Limits())
    assert info.last * info.time_base == pytest.approx(0.04 * held)
    assert info.held * info.time_base == pytest.approx(0.04 * held if held > 1 else 0)
