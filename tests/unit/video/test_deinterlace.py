"""Interlaced video: as the ffmpeg program deinterlaces it, wherever reading begins."""

import json
import shutil
import subprocess
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest

from vidvq.video.decode import FrameReader, _Scaler, decoders_for, open_reader
from vidvq.video.deinterlace import deinterlace
from vidvq.video.geometry import fit_size
from vidvq.video.limits import Limits
from vidvq.video.probe import VideoInfo, probe

CODERS = {
    "h264.mp4": "-c:v libx264 -x264-params interlaced=1:keyint=20:bframes=2",
    "mpeg2.mkv": "-c:v mpeg2video -q:v 3 -g 15 -bf 2",
}
AS_FIELDS = ["-vf", "interlace=lowpass=0", "-flags", "+ilme+ildct"]
pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed")


def ffmpeg(*arguments: object) -> bytes:
    return subprocess.run(["ffmpeg", "-v", "error", *map(str, arguments)], check=True, capture_output=True).stdout


@pytest.fixture(params=CODERS)
def fields(request, tmp_path, demo_videos) -> Path:
    """A real clip over and over, its fields taken from two frames each."""
    path = tmp_path / request.param
    clip = demo_videos / "train/carphone.mp4"
    ffmpeg("-stream_loop", 3, "-i", clip, *AS_FIELDS, *CODERS[request.param].split(), "-an", path)
    return path


def reader(path: Path) -> tuple[VideoInfo, FrameReader]:
    info = probe(path, Limits())
    return info, open_reader(path, info, fit_size(*info.shown_size, None, 1), "pyav")


def test_frames_are_those_of_ffmpegs_own_filter(fields):
    with av.open(str(fields)) as container:
        frames = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in frames)
    made = list(deinterlace(enumerate(frames)))
    assert [index for index, _ in made] == list(range(len(frames)))
    theirs = ffmpeg("-i", fields, "-vf", "bwdif=send_frame:auto:interlaced", "-f", "rawvideo", "-")
    mine = np.stack([frame.to_ndarray() for _, frame in made])
    differing = mine.reshape(-1) != np.frombuffer(theirs, np.uint8)
    # The program may be of another version than PyAV's libraries, whose bwdif rounds a few pixels another way.
    assert differing.mean() < 1e-3
    _, reading = reader(fields)
    read = reading.read(range(20))
    shape = {"width": read.shape[2], "height": read.shape[1]}
    assert np.array_equal(read, [_Scaler().rgb(frame, **shape) for _, frame in made[:20]])
    combed = np.stack([frame.to_ndarray() for frame in frames])
    assert (mine != combed).mean() > 0.1


def test_a_clip_is_the_same_wherever_reading_begins(fields):
    info, whole = reader(fields)
    frames = whole.read(range(info.num_frames))
    for first in (0, 1, 33, 100, info.num_frames - 3):
        _, fresh = reader(fields)
        assert np.array_equal(fresh.read(range(first, first + 3)), frames[first : first + 3]), first
    _, leaping = reader(fields)
    assert np.array_equal(leaping.read([5, 60, 61, 150]), frames[[5, 60, 61, 150]])


def test_decord_which_knows_no_fields_is_not_asked(fields):
    assert decoders_for(probe(fields, Limits()), "decord") == ("pyav",)


def test_among_progressive_frames_only_the_others_are_touched(demo_videos, fields):
    with av.open(str(demo_videos / "train/carphone.mp4")) as container:
        before = list(container.decode(video=0))[:5]
    with av.open(str(fields)) as container:
        within = [frame.reformat(format="yuv420p") for frame in list(container.decode(video=0))[:5]]
    assert [made for _, made in deinterlace(enumerate(before))] == before, "not even copied"
    frames = [*before, *within, *before]
    made = [frame.to_ndarray() for _, frame in deinterlace(enumerate(frames))]
    same = [np.array_equal(one.to_ndarray(), two) for one, two in zip(frames, made, strict=True)]
    assert same == [True] * 5 + [False] * 5 + [True] * 5


def test_another_size_on_the_way_begins_anew(fields):
    with av.open(str(fields)) as container:
        frames = list(container.decode(video=0))[:8]
    small = [frame.reformat(width=64, height=48) for frame in frames]
    for whole, part in zip(frames, small, strict=True):
        part.pts, part.time_base = whole.pts, whole.time_base
    made = list(deinterlace(enumerate(chain(frames, small, frames))))
    assert [index for index, _ in made] == list(range(24))
    assert [frame.width for _, frame in made] == [frame.width for frame in chain(frames, small, frames)]


def test_packets_of_fields_are_not_copied_into_clips(fields, tmp_path, vidvq):
    settings = "clip.encoding=copy clip.fps=null clip.short_side=null clip.num_frames=40 runtime.workers=0".split()
    assert vidvq("shard", fields, "--out", tmp_path / "out", *settings).code == 1
    failed = json.loads((tmp_path / "out/summary.json").read_bytes())["failed"]
    # MPEG-2 of ffmpeg's shares frames between its groups, so that no clip of it decodes alone in any case.
    assert set(failed) == {"not_as_shown" if fields.name == "h264.mp4" else "not_on_keyframes"}
