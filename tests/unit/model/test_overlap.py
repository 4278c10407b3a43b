"""The fit of overlapping blocks to a trained tokenizer."""

import importlib
from dataclasses import replace
from pathlib import Path

from vidvq.data import DataConfig
from vidvq.formats.checkpoint import read_checkpoint
from vidvq.model import TokenizerConfig
from vidvq.pretrained import load_pretrained
from vidvq.train.config import TrainConfig

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_overlapping_blocks_are_fitted_to_what_a_decoder_misses(clips_dir, checkpoint_dir, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    add_overlap = importlib.import_module("overlap").OVERLAP.add
    read_videos = importlib.import_module("linear_path").read_videos
    model = TokenizerConfig.from_dict(read_checkpoint(checkpoint_dir).config["model"])
    overlapping = replace(model, decoder=replace(model.decoder, overlap=True))
    config = TrainConfig(data=DataConfig(clips=str(clips_dir)), model=overlapping)
    add_overlap(checkpoint_dir, [clips_dir], config, tmp_path / "out", every=1)
    before, after = (load_pretrained(folder) for folder in (checkpoint_dir, tmp_path / "out"))
    fingerprints = [read_checkpoint(folder).fingerprints for folder in (checkpoint_dir, tmp_path / "out")]
    assert fingerprints[0].token == fingerprints[1].token and fingerprints[0].decoder != fingerprints[1].decoder
    for video in read_videos(before, clips_dir, 1):
        # The frames that repeat the first one are not decoded.
        clip = video[:, :, 3:]
        codes = before.encode(clip)
        errors = [(tokenizer.decode(codes) - clip).square().mean() for tokenizer in (before, after)]
        assert errors[1] < 0.5 * errors[0]
