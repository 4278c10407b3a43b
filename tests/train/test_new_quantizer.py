"""Training the networks of a checkpoint with other codebooks."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidvq.data import DataConfig
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import BUNDLED, read_checkpoint, write_checkpoint
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.pixels import PREPROCESSING
from vidvq.model.quantize import QuantizerConfig, VQConfig
from vidvq.train.config import TrainConfig
from vidvq.train.initialization import initial_state, read_initial_checkpoint

WIDER = (
    "model.quantizer={dim: 5, spatial: {kind: simvq, size: 32}, temporal: {kind: vq, size: 64, warmup: 2}, "
    "differential: {smallest: 0.2, refresh: {size: 32, warmup: 2}}}"
)


def test_networks_are_kept_and_codebooks_drawn_anew(train, whole, tmp_path):
    start = (f"start_from={whole.out}", "new_quantizer=true", WIDER)
    frozen = train(tmp_path / "frozen", *start, "generator.lr=1.0e-12", "steps=1", "checkpoint_every=1")
    before, after = read_checkpoint(whole.out), read_checkpoint(frozen.out)
    changed = {"encoder.head.weight", "encoder.head.bias", "decoder.stem.weight"}
    for name, array in before.tensors.items():
        if not name.startswith("quantizer.") and name not in changed:
            np.testing.assert_allclose(after.tensors[name], array, rtol=0, atol=1e-9, err_msg=name)
    head, stem = after.tensors["encoder.head.weight"], after.tensors["decoder.stem.weight"]
    np.testing.assert_allclose(head[:3], before.tensors["encoder.head.weight"], rtol=0, atol=1e-9)
    assert np.abs(head[3:]).mean() > 1e-3
    np.testing.assert_allclose(stem[:, :3], before.tensors["decoder.stem.weight"], rtol=0, atol=1e-9)
    # Without effect at first.
    assert np.abs(stem[:, 3:]).max() < 1e-9
    assert after.config["model"]["quantizer"]["differential"]["smallest"] == 0.2

    # Resumes like any other run.
    run = train(tmp_path / "run", *start)
    done = read_checkpoint(run.out)
    assert done.tensors["decoder.stem.weight"][:, 3:].std() > 1e-5
    shutil.rmtree(run.out / "checkpoints/step-00000006")
    assert read_checkpoint(train(run.out, *start).out).fingerprints == done.fingerprints


def test_codebooks_of_a_checkpoint_do_not_warm_up_again():
    weights = read_checkpoint(BUNDLED)
    model = TokenizerConfig.from_dict(weights.config["model"])
    assert isinstance(model.quantizer.temporal, VQConfig) and model.quantizer.temporal.warmup > 0
    config = TrainConfig(data=DataConfig(("clips",)), model=model, start_from="bundled")
    state = initial_state(config, weights).tensors["tokenizer"]
    assert state["quantizer.temporal.step"] == model.quantizer.temporal.warmup
    assert torch.equal(state["quantizer.temporal.ema_sum"], state["quantizer.temporal.codebook"])
    anew = initial_state(replace(config, new_quantizer=True), weights).tensors["tokenizer"]
    assert anew["quantizer.temporal.step"] == 0


def start_anew(tmp_path, dim: int, **parts) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors of a checkpoint with 4 latent channels and parts of a decoder, and those that start with ``dim``."""
    decoder = DecoderConfig((8,), (1,), **parts)
    models = [
        TokenizerConfig(encoder=StackConfig((8,), (1,)), decoder=decoder, quantizer=QuantizerConfig(dim=channels))
        for channels in (4, dim)
    ]
    before = VideoTokenizer(models[0]).inference_state_dict()
    for tensor in before.values():
        torch.nn.init.normal_(tensor)
    arrays = {name: tensor.numpy() for name, tensor in before.items()}
    write_checkpoint(tmp_path / "before", models[0].to_dict(), PREPROCESSING, arrays, step=0)
    start = {"start_from": str(tmp_path / "before"), "new_quantizer": True}
    config = TrainConfig(data=DataConfig(("clips",)), model=models[1], **start)
    return before, initial_state(config, read_initial_checkpoint(config, None)).tensors["tokenizer"]


@pytest.mark.parametrize("dim", [3, 6])
def test_overlapping_blocks_keep_the_weights_of_the_channels_they_share(tmp_path, dim):
    before, after = start_anew(tmp_path, dim, overlap=True)
    kept, shared = after["decoder.overlap.weight"], min(dim, 4)
    assert torch.equal(kept[:, :shared], before["decoder.overlap.weight"][:, :shared])
    assert not kept[:, shared:].any()


def test_a_lookahead_of_other_channels_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"quantizer\.dim=6 must be 4, .*: model\.decoder\.lookahead=1 mixes"):
        start_anew(tmp_path, 6, lookahead=1)
    start_anew(tmp_path, 4, lookahead=1)


def test_it_needs_a_checkpoint_with_the_same_networks(train, whole, tmp_path):
    run = train(tmp_path / "run", "new_quantizer=true", code=2)
    assert "new_quantizer=true replaces the codebooks of a checkpoint; set start_from=" in run.stderr
    other = "model.encoder={channels: [16, 32], blocks: [1, 1]}"
    run = train(tmp_path / "run", f"start_from={whole.out}", "new_quantizer=true", WIDER, other, code=2)
    assert "has another model: model.encoder.channels" in run.stderr.strip().splitlines()[-1]
