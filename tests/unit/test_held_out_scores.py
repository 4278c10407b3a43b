"""Scores of held-out clips in training: those of one process, on any number of ranks."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vidvq.data import DataConfig
from vidvq.formats.clip_shard import read_clips
from vidvq.metrics.pixel import psnr, ssim
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.pixels import to_frames, to_video
from vidvq.model.quantize import FSQConfig, QuantizerConfig
from vidvq.train import codebook_usage, evaluation
from vidvq.train.config import EvaluationConfig, TrainConfig
from vidvq.train.evaluation import Evaluator
from vidvq.training.distributed import DistributedContext
from vidvq.video.decode import decode_clip

STACK = StackConfig((8, 8), (1, 1))
MODEL = TokenizerConfig(
    encoder=STACK,
    decoder=DecoderConfig(STACK.channels, STACK.blocks),
    quantizer=QuantizerConfig(3, FSQConfig(levels=(4, 4, 4)), FSQConfig(levels=(5, 5, 5))),
)


class Differences:
    """Mean absolute differences in place of a perceptual distance."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def per_frame(self, frames: Tensor, others: Tensor) -> Tensor:
        self.counts.append(len(frames))
        return (frames - others).abs().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def tokenizer() -> VideoTokenizer:
    torch.manual_seed(0)
    return VideoTokenizer(MODEL).eval()


@pytest.fixture
def score(clips_dir, tokenizer):
    """Score three clips on one rank of several."""

    def run(rank: int = 0, size: int = 1, distance: Differences | None = None) -> dict[str, float]:
        settings = EvaluationConfig(str(clips_dir), num_clips=3, shown=1)
        config = TrainConfig(DataConfig(("unused",)), model=MODEL, evaluation=settings)
        context = DistributedContext(rank, size, torch.device("cpu"))
        scores, shown = Evaluator(config, context, distance).score(tokenizer.inference_state_dict())
        assert len(shown) == 1
        return scores

    return run


def test_scores_are_means_over_clips(score, clips_dir, tokenizer):
    distance = Differences()
    scores = score(distance=distance)
    clips = [entry[:2] for path in sorted(clips_dir.glob("*.tar")) for entry in read_clips(path)][:3]
    found: list[list[float]] = []
    for key, media in clips:
        frames = decode_clip(media, key)
        video = to_video(frames)
        codes = tokenizer.encode(video)
        decoded = tokenizer.decode(codes, *((size := video.shape[2:])[0], tuple(size[1:])))
        bits = (codes[0, 0].numel() * np.log2(64) + codes[0, 1:].numel() * np.log2(125)) / frames[..., 0].size
        pixels = to_frames(decoded)
        found.append([psnr(frames, pixels), ssim(frames, pixels), bits, float((video - decoded).abs().mean())])
    names = ("psnr", "ssim", "bits_per_pixel", "perceptual")
    assert [scores[name] for name in names] == pytest.approx(np.mean(found, axis=0).tolist())
    assert max(distance.counts) <= 4


def test_each_clip_is_degraded_in_its_own_way_in_every_evaluation(score, monkeypatch):
    drawn: list[float] = []

    def degrade(video: Tensor, config: object, generators: list[torch.Generator]) -> Tensor:
        drawn.append(float(torch.rand(1, generator=generators[0])))
        return video

    monkeypatch.setattr(evaluation, "degrade", degrade)
    for _ in range(2):
        score()
    assert drawn[:3] == drawn[3:] and len(set(drawn)) == 3


def test_scores_of_two_ranks_are_those_of_one(score, monkeypatch):
    sent: list[Tensor] = []
    for module in (evaluation, codebook_usage):
        monkeypatch.setattr(module, "all_reduce_sum", lambda tensor: (sent.append(tensor.clone()), tensor)[1])
    whole = score(distance=Differences())
    sent.clear()
    # Two clips on one rank, one on the other.
    score(1, 2, Differences())
    others = iter(list(sent))
    for module in (evaluation, codebook_usage):
        monkeypatch.setattr(module, "all_reduce_sum", lambda tensor: tensor + next(others))
    assert score(0, 2, Differences()) == pytest.approx(whole)
