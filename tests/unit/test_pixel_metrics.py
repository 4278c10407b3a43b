"""Pixel metrics against plain formulas."""

import tracemalloc

import numpy as np
import pytest

from vidvq.errors import UsageError
from vidvq.evaluate.config import EvaluateConfig
from vidvq.evaluate.scores import VideoScorer
from vidvq.metrics import pixel
from vidvq.metrics.pixel import (
    blocking,
    edge_ratio,
    flicker,
    frame_psnr,
    frame_ssim,
    masked_psnr,
    psnr,
    ssim,
    static_mask,
)


def video(seed: int, frames: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 16, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize(("gaussian", "side"), [(True, 11), (False, 7)])
def test_ssim_of_frames_smaller_than_its_window_is_refused(gaussian, side):
    frames = video(0)[:, :side]
    assert frame_ssim(frames, frames, gaussian) == [1.0] * 4
    message = f"frames of 24x{side - 1} pixels are smaller than the {side}x{side} window of SSIM"
    with pytest.raises(UsageError, match=message):
        frame_ssim(frames[:, 1:], frames[:, 1:], gaussian)


def test_flicker_is_the_error_of_frame_differences():
    original, other = video(0), video(1)
    differences = np.diff(original.astype(float), axis=0) - np.diff(other.astype(float), axis=0)
    assert flicker(original, other) == pytest.approx(np.sqrt((differences**2).mean()))
    darker = (original // 2 + 10).astype(np.uint8)
    constant = np.clip(darker.astype(int) + 7, 0, 255).astype(np.uint8)
    assert flicker(darker, constant) == 0
    assert flicker(original[:1], other[:1]) == 0


def test_blocking_compares_steps_at_borders_with_those_within_blocks():
    original = video(0) // 8
    blocks = np.random.default_rng(1).integers(0, 128, (4, 2, 3, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    assert blocking(original, video(1) // 8) == pytest.approx(1, abs=0.1)
    assert blocking(original, original + blocks) > 2
    # Of blocks that the original has, only more is counted.
    assert blocking(original + blocks, original + blocks) == 1
    assert edge_ratio(blocks, 8) > 256
    assert blocking(original[:, :8, :8], blocks[:, :8, :8]) == 1
    assert blocking(np.zeros_like(original), np.zeros_like(original)) == 1


def test_a_position_is_static_up_to_the_deviation_of_its_luma():
    still = np.full((4, 16, 24, 3), 100, dtype=np.uint8)
    still[::2, :, :6] = 110  # standard deviation 5
    still[::2, :, 6:12] = 102  # standard deviation 1
    expected = np.ones((16, 24), dtype=bool)
    expected[:, :6] = False
    assert np.array_equal(static_mask(still, 4.0), expected)
    assert static_mask(still, 5.5).all()
    assert VideoScorer(EvaluateConfig(static_deviation=5.5)).static_mask(still).all()
    assert static_mask(still, 0)[:, 12:].all()
    assert not static_mask(still, 0.5)[:, :12].any() and static_mask(still, 0.5)[:, 12:].all()


def test_the_parts_of_a_mask_add_up_to_the_whole_error():
    original, other = video(0), video(1)
    mask = np.zeros((16, 24), dtype=bool)
    mask[:, :8] = True
    parts = [10 ** (-masked_psnr(original, other, each) / 10) for each in (mask, ~mask)]
    assert parts[0] / 3 + parts[1] * 2 / 3 == pytest.approx(10 ** (-psnr(original, other) / 10))
    assert masked_psnr(original, other, np.zeros_like(mask)) is None


def test_the_psnr_is_at_most_100_db():
    original = np.zeros((1, 300, 300, 3), np.uint8)
    other = original.copy()
    other[0, 0, 0] = 1, 0, 0
    assert psnr(original, other) == psnr(original, original) == 100
    other[0, 0] = 255
    assert psnr(original, other) == pytest.approx(10 * np.log10(300))


def test_scores_of_frames_are_those_of_single_frames():
    original, other = video(0), video(1)
    assert frame_psnr(original, other) == [psnr(original[t : t + 1], other[t : t + 1]) for t in range(4)]
    assert np.mean(frame_ssim(original, other)) == pytest.approx(ssim(original, other))


@pytest.mark.parametrize("metric", [psnr, frame_psnr, flicker, blocking])
def test_a_clip_is_compared_in_parts(metric, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), dtype=np.uint8)
    whole = metric(frames, frames[::-1])
    monkeypatch.setattr(pixel, "_PART", frames[0].size)
    tracemalloc.start()
    assert metric(frames, frames[::-1]) == whole
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # In a wider type, the whole clip would take two to eight times as much.
    assert peak < frames.nbytes


@pytest.mark.parametrize(
    "metric", [psnr, frame_psnr, ssim, frame_ssim, flicker, blocking], ids=lambda each: each.__name__
)
def test_videos_that_cannot_be_compared_are_refused(metric):
    video = np.zeros((2, 16, 16, 3), np.uint8)
    for original, other in (
        (video, video[:1]),
        (video, video / 255),
        (video / 255, video / 255),
        (video[:0], video[:0]),
    ):
        with pytest.raises(UsageError, match="they must be uint8 of one shape, t h w c, and not empty"):
            metric(original, other)
