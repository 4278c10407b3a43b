"""Degradation of the encoder's input: each kind does what it is named for, and the randomness is a generator's."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import vidvq.train.degrade as degradation
from vidvq.model.launches import LaunchCounter
from vidvq.model.pixels import to_frames, to_video
from vidvq.train.config import DegradeConfig
from vidvq.train.degrade import blur, degrade, jpeg
from vidvq.training.random_state import sample_generators


def clips(count: int = 3, size: tuple[int, int] = (20, 28)) -> torch.Tensor:
    rows, columns = torch.meshgrid(*(torch.linspace(0, 3, side) for side in size), indexing="ij")
    picture = torch.stack([torch.sin(3 * rows + columns), torch.cos(2 * columns), torch.sin(rows * columns)])
    return (0.8 * picture)[None, :, None].repeat(count, 1, 2, 1, 1)


def seeded(seed: int = 0, first: int = 0, count: int = 3) -> list[torch.Generator]:
    return list(sample_generators(seed, batch=5, first=first, count=count, device=torch.device("cpu")))


def test_without_settings_the_video_is_untouched():
    video = clips()
    assert degrade(video, DegradeConfig(), seeded()) is video


@pytest.mark.parametrize("settings", [{"blur": 2.0}, {"noise": 40.0}, {"jpeg": 5}])
def test_strengths_are_drawn_per_clip_from_the_generator(settings):
    video, config = clips(), DegradeConfig(**settings)
    found = degrade(video, config, seeded())
    assert found.shape == video.shape and found.abs().max() <= 1
    errors = (found - video).square().mean(dim=(1, 2, 3, 4))
    assert len(set(errors.tolist())) == 3 and errors.min() > 0
    assert torch.equal(degrade(video, config, seeded()), found)
    assert not torch.equal(degrade(video, config, seeded(1)), found)


def test_strengths_are_drawn_up_to_the_largest(monkeypatch):
    grey = torch.zeros(64, 3, 1, 16, 16)
    deviations = 127.5 * degrade(grey, DegradeConfig(noise=40), seeded(count=64)).flatten(1).std(dim=1)
    assert deviations.min() < 4 and 36 < deviations.max() < 44
    qualities: list[torch.Tensor] = []
    monkeypatch.setattr(degradation, "jpeg", lambda video, quality: (qualities.append(quality), video)[1])
    degrade(grey, DegradeConfig(jpeg=60), seeded(count=64))
    assert 60 <= qualities[0].min() < 64 and 96 < qualities[0].max() <= 100


def test_micro_batches_of_all_processes_are_degraded_like_the_whole_batch():
    video, config = clips(4), DegradeConfig(clips=0.75, blur=1.0, noise=20, jpeg=20)
    whole = degrade(video, config, seeded(count=4))
    # The second micro-batch of a process alone is the first one of the second of two processes.
    parts = [degrade(video[first : first + 2], config, seeded(first=first, count=2)) for first in (0, 2)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)
    assert not torch.equal(whole[:2], whole[2:])


def test_a_step_makes_no_constants_that_a_gpu_would_wait_for():
    video, config = clips(), DegradeConfig(blur=2.0, noise=40.0, jpeg=5)
    degrade(video, config, seeded())
    with LaunchCounter() as counted:
        degrade(video, config, seeded())
    # Errors of an inverse are looked for on the host.
    assert counted.constants == 0 and not {name for name in counted.kernels if "inv" in name}, counted.where


def test_a_share_of_the_clips_is_degraded():
    video = clips(64)
    same = (degrade(video, DegradeConfig(clips=0.25, noise=20), seeded(count=64)) == video).flatten(1).all(dim=1)
    assert 0.6 < same.float().mean() < 0.9


def test_blur_keeps_flat_regions_and_lowers_contrast_with_sigma():
    video = clips(3)
    video[:, :, :, :, ::2] *= -1
    spread = blur(video, torch.tensor([0.01, 0.7, 2.0]), 2.0).std(dim=(1, 2, 3, 4))
    assert spread[0] > 1.5 * spread[1] > 2 * spread[2]
    flat = torch.full((1, 3, 1, 8, 8), 0.3)
    assert torch.allclose(blur(flat, torch.tensor([2.0]), 2.0), flat, atol=1e-6)


@pytest.mark.parametrize("quality", [10, 40, 90])
def test_jpeg_is_that_of_libjpeg(quality):
    video = clips(1, (24, 32))[:, :, :1]
    frame = to_frames(video + 0.1 * torch.randn(video.shape, generator=seeded()[0]))[0]
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality, subsampling=0)
    expected = np.asarray(Image.open(file)).astype(int)
    found = to_frames(jpeg(to_video(frame[None]), torch.tensor([float(quality)])))[0].astype(int)
    lost = np.abs(expected - frame).mean()
    assert np.abs(found - frame).mean() == pytest.approx(lost, rel=0.03)
    # Rounding differs: a coefficient midway between two steps can take the other one.
    assert np.abs(found - expected).mean() < 0.5 * lost
