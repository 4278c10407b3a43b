"""Reference codecs at equal bits."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidvq.errors import UsageError
from vidvq.metrics.pixel import psnr
from vidvq.video import reference_codecs
from vidvq.video.reference_codecs import CODECS, EqualBitsSearch, check_codec, encode_at


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """A textured picture that moves to the right, 9 frames of 64x96."""
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (8, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    return np.stack([np.roll(picture, 2 * t, axis=1) for t in range(9)])


@pytest.mark.parametrize("name", CODECS)
def test_the_chosen_quality_is_the_best_that_fits(name, frames, monkeypatch):
    # The assembly of x264's macroblock tree gives other bytes each time.
    fixed = {"x264-params": "threads=1:no-asm=1"} if name == "x264" else {}
    monkeypatch.setitem(CODECS, name, replace(CODECS[name], options=CODECS[name].options | fixed))
    check_codec(name)
    search = EqualBitsSearch(name, frames, 25.0)
    limit = encode_at(name, frames, 25.0, 30).bits
    chosen = search.largest_within(limit)
    assert chosen.bits <= limit
    assert chosen.crf <= 31
    crfs = CODECS[name].crfs
    better = encode_at(name, frames, 25.0, crfs[crfs.index(chosen.crf) - 1])
    assert better.bits > 0.98 * limit
    assert chosen.frames.shape == frames.shape
    assert psnr(frames, chosen.frames) > 20
    # The search goes on from what it has encoded.
    assert search.largest_within(10**9).crf == crfs[0]
    assert search.largest_within(1).crf == crfs[-1]


@pytest.mark.parametrize(("name", "fps"), [("x264", 0), ("x265", 0), ("x264", 1e-6)])
def test_an_odd_size_and_a_single_frame_are_coded(name, fps, frames):
    coded = encode_at(name, frames[:1, :63, :95], fps, 20)
    assert coded.frames.shape == (1, 63, 95, 3)
    assert psnr(frames[:1, :63, :95], coded.frames) > 25


def test_the_text_of_an_encoder_does_not_count_as_bits(frames):
    still = np.full_like(frames, 128)
    # x264 writes its settings, some 700 bytes, into the first packet.
    assert encode_at("x264", still, 25.0, 51).bits < 8 * 300


def test_a_missing_encoder_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(reference_codecs.CODECS, "x265", replace(CODECS["x265"], encoder="libnothing"))
    with pytest.raises(UsageError, match=r"codecs=x265 needs libnothing, which neither this build of PyAV .* nor an"):
        check_codec("x265")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
@pytest.mark.parametrize("name", CODECS)
def test_the_ffmpeg_program_codes_what_pyav_cannot(name, frames, monkeypatch):
    expected = encode_at(name, frames, 25.0, 30)
    # PyAV has no decoder of this name; the program takes its own.
    monkeypatch.setitem(reference_codecs.CODECS, name, replace(CODECS[name], decoder="nothing"))
    check_codec(name)
    found = encode_at(name, frames, 25.0, 30)
    assert found.frames.shape == frames.shape
    # Versions of the encoder may differ.
    assert found.bits == pytest.approx(expected.bits, rel=0.25)
    assert psnr(frames, found.frames) == pytest.approx(psnr(frames, expected.frames), abs=1)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_a_clip_that_the_ffmpeg_program_rejects_is_one_clear_error(frames, monkeypatch):
    monkeypatch.setitem(reference_codecs.CODECS, "svtav1", replace(CODECS["svtav1"], decoder="nothing"))
    with pytest.raises(UsageError, match="codecs=svtav1: libsvtav1 rejects 9 frames of 95x63 .ffmpeg fails") as caught:
        encode_at("svtav1", frames[:, :63, :95], 25.0, 30)
    assert "\n" not in str(caught.value)


def test_a_size_that_an_encoder_rejects_is_one_clear_error(frames):
    with pytest.raises(UsageError, match="codecs=svtav1: libsvtav1 rejects 9 frames of 95x63") as caught:
        encode_at("svtav1", frames[:, :63, :95], 25.0, 30)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CODECS)
def test_no_thread_becomes_a_real_time_one(name, frames):
    # As root, SVT-AV1 makes its threads and that of its caller such.
    seen: set[int] = set()

    def record(*arguments):
        seen.update(os.sched_getscheduler(int(thread.name)) for thread in Path("/proc/self/task").iterdir())
        return encode(*arguments)

    encode = reference_codecs._encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_codecs, "_encode", record)
        encode_at(name, frames, 25.0, 30)
    assert seen == {os.sched_getscheduler(0)} == {os.SCHED_OTHER}
