"""Frames to files: the same bytes every time, at the very times they had."""

import errno
import io
import os
import subprocess
import sys
from contextlib import nullcontext
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from vidvq.video import write
from vidvq.video.decode import decode_clip
from vidvq.video.encode import encode_mp4, encode_png
from vidvq.video.write import TimedFrame, VideoShape, write_frames


def moving(num_frames: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    frames = [np.stack([(x * 8 + 9 * i) % 256, (y * 8) % 256, (x + y + i) % 256], -1) for i in range(num_frames)]
    return np.stack(frames).astype(np.uint8)


def times(media: bytes) -> list[Fraction]:
    with av.open(io.BytesIO(media)) as container:
        stream = container.streams.video[0]
        found = [(frame.pts, frame.time_base) for frame in container.decode(stream)]
    return [Fraction(pts * base) for pts, base in found if pts is not None and base is not None]


def test_the_same_frames_give_the_same_bytes():
    frames = moving(9, 32, 48)
    assert encode_mp4(frames, tuple(range(9)), Fraction(1, 25), 17) == encode_mp4(
        frames, tuple(range(9)), Fraction(1, 25), 17
    )


@pytest.mark.parametrize("time_base", [Fraction(1, 1000), Fraction(1, 90000), Fraction(2**31 - 1)], ids=str)
@pytest.mark.parametrize("pauses", [[3], [5, 9, 10], range(1, 12)])
def test_a_pause_of_years_is_as_long_as_an_mp4_can_show_it(time_base, pauses):
    pts = tuple(np.cumsum([0, *(1 << 50 if index in pauses else 1 for index in range(1, 12))]).tolist())
    media = encode_mp4(moving(12, 32, 32), pts, time_base, 17, duration=pts[-1] + (1 << 50))
    found = times(media)
    assert len(found) == 12 and all(after > before for before, after in pairwise(found))
    if time_base < 1:
        steps = [after - before for before, after in pairwise(found)]
        assert all(step == time_base or step > 2000 for step in steps) and sum(step > 2000 for step in steps) == len(
            pauses
        )


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_any_time_of_a_token_sample_can_be_decoded_to_a_file(tmp_path, kind):
    starts = [Fraction(0), Fraction(1, 25), Fraction(1 << 70), Fraction(1 << 100)]
    frames = (TimedFrame(pixels, *pair) for pixels, pair in zip(moving(3, 32, 32), pairwise(starts), strict=True))
    write_frames(tmp_path / f"x.{kind}", kind, frames, VideoShape(3, 32, 32, Fraction(1, 25)))
    assert len(times((tmp_path / f"x.{kind}").read_bytes())) == 3


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_frames_closer_than_a_tick_have_a_tick_each(tmp_path, kind):
    frames = (
        TimedFrame(pixels, Fraction(i, 5000), Fraction(i + 1, 5000)) for i, pixels in enumerate(moving(4, 32, 32))
    )
    write_frames(tmp_path / f"x.{kind}", kind, frames, VideoShape(4, 32, 32, Fraction(1, 25)))
    found = times((tmp_path / f"x.{kind}").read_bytes())
    assert found == [Fraction(tick, 100 if kind == "gif" else 25) for tick in range(4)]


@pytest.mark.parametrize("kind", ["mp4", "gif", "npy"])
def test_a_full_disk_is_one_error_and_nothing_is_printed(tmp_path, monkeypatch, capfd, kind):
    class Full(io.BytesIO):
        def seek(self, *arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        write = seek

    encoded = []

    def frames():
        for pixels in moving(400, 64, 64):
            encoded.append(1)
            yield TimedFrame(pixels, Fraction(len(encoded), 25), Fraction(len(encoded) + 1, 25))

    monkeypatch.setattr(write, "attempt_file", lambda path: nullcontext((Full(), path)))
    with pytest.raises(OSError, match="No space left on device"):
        write_frames(tmp_path / f"x.{kind}", kind, frames(), VideoShape(400, 64, 64, Fraction(1, 25)))
    assert capfd.readouterr().err == ""
    assert len(encoded) < 400


def test_there_is_no_date_and_no_encoders_name_in_it():
    media = encode_mp4(moving(3, 32, 32), (0, 1, 2), Fraction(1, 25), 17)
    with av.open(io.BytesIO(media)) as container:
        assert "creation_time" not in container.metadata and "encoder" not in container.metadata


@pytest.mark.parametrize(
    "time_base",
    [
        Fraction(1, 10),
        Fraction(1, 25),
        Fraction(2, 25),
        Fraction(1, 600),
        Fraction(1, 1000),
        Fraction(1, 15360),
        Fraction(1001, 30000),
        Fraction(66667, 1000000),
        Fraction(1, 90000),
        Fraction(1, 1000000),
    ],
    ids=str,
)
def test_frame_times_are_kept_exactly(time_base):
    step = max(int(Fraction(1, 25) / time_base), 1)
    pts = [100, 100 + step, 100 + 2 * step, 100 + 5 * step + 1, 100 + 6 * step + 3]
    media = encode_mp4(moving(5, 16, 16), tuple(pts), time_base, 17)
    assert times(media) == [(tick - 100) * time_base for tick in pts]


@pytest.mark.parametrize("ticks_per_s", [1_200_000, 10_000_000, 27_000_000, 1_000_000_000])
def test_a_clock_finer_than_mp4_can_tell_is_rounded_to_a_microsecond(ticks_per_s):
    pts = [7 + index * ticks_per_s // 25 for index in range(5)]
    found = times(encode_mp4(moving(5, 16, 16), tuple(pts), Fraction(1, ticks_per_s), 17))
    for index, time in enumerate(found):
        assert abs(time - Fraction(index, 25)) <= Fraction(1, 1_000_000)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 17), (33, 16), (31, 47), (2, 2), (240, 136)])
def test_any_size_comes_back_as_it_was(height, width):
    frames = moving(3, height, width)
    back = decode_clip(encode_mp4(frames, (0, 1, 2), Fraction(1, 25), 1), "x")
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() < 12


def test_less_crf_is_closer():
    frames = moving(5, 32, 32)
    errors = [
        np.abs(decode_clip(encode_mp4(frames, tuple(range(5)), Fraction(1, 25), crf), "x") - frames.astype(int)).mean()
        for crf in (2, 20, 45)
    ]
    assert errors == sorted(errors) and errors[0] < errors[2]


def test_one_frame_is_a_clip():
    assert decode_clip(encode_mp4(moving(1, 16, 16), (5,), Fraction(1, 25), 17), "x").shape == (1, 16, 16, 3)


@pytest.mark.parametrize("cut", [None, 20])
def test_only_the_first_frame_of_a_clip_and_of_another_scene_are_keyframes(cut):
    frames = moving(33, 32, 32)
    if cut:
        frames[cut:] = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    with av.open(io.BytesIO(encode_mp4(frames, tuple(range(33)), Fraction(1, 25), 17))) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert [index for index, key in enumerate(keys) if key] == [0, cut][: 2 if cut else 1]


@pytest.mark.parametrize("rate", [999, 2000, 3000, 16000])
@pytest.mark.parametrize("num_frames", range(1, 10))
def test_clips_of_a_few_milliseconds_have_all_their_frames(rate, num_frames):
    pts = [round(Fraction(90_000 * index, rate)) for index in range(num_frames + 1)]
    media = encode_mp4(moving(9, 64, 64)[:num_frames], tuple(pts[:-1]), Fraction(1, 90_000), 17, pts[-1])
    assert times(media) == [Fraction(tick, 90_000) for tick in pts[:-1]]


@pytest.mark.parametrize(("duration", "expected"), [(2500, 2.5), (None, 2.5), (2200, 2.2)])
def test_the_last_frame_lasts_as_long_as_it_should(duration, expected):
    media = encode_mp4(moving(5, 16, 16), (0, 500, 1000, 1500, 2000), Fraction(1, 1000), 17, duration)
    with av.open(io.BytesIO(media)) as container:
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(expected)


def test_as_many_times_as_frames():
    with pytest.raises(ValueError):
        encode_mp4(moving(3, 16, 16), (0, 1), Fraction(1, 25), 17)


def test_png_loses_nothing():
    frame = moving(1, 9, 7)[0]
    with Image.open(io.BytesIO(encode_png(frame))) as image:
        np.testing.assert_array_equal(np.asarray(image), frame)


_ENCODE = """
import hashlib, sys
from fractions import Fraction
import numpy as np
from vidvq.video.encode import encode_ffv1, encode_mp4
random = np.random.default_rng(0)
still = np.kron(random.integers(0, 256, (8, 10, 3)), np.ones((16, 16, 1)))
moving = np.stack([np.roll(still, 2 * t, axis=1) for t in range(9)]) + random.integers(-9, 10, (9, 128, 160, 3))
frames = moving.clip(0, 255).astype(np.uint8)
times = tuple(range(9))
for data in (encode_mp4(frames, times, Fraction(1, 25), 17), encode_ffv1(frames, times, Fraction(1, 25))):
    print(hashlib.sha256(data).hexdigest())
"""


def test_what_lay_in_memory_before_is_not_in_the_file():
    told = {
        subprocess.run(
            [sys.executable, "-c", _ENCODE],
            env=os.environ | {"MALLOC_PERTURB_": fill},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for fill in ("0", "85", "170", "255")
    }
    assert len(told) == 1, told
