"""Training a decoder of larger frames, and one that restores, on the tokens of a finished run."""

import shutil

import numpy as np

from vidvq.formats.checkpoint import read_checkpoint

LARGE = ("train_only=decoder", "model.decoder={channels: [16, 24], blocks: [1, 1], upscale: 2}", "data.num_frames=5")
SHORT = ("steps=2", "checkpoint_every=1", "loss.adversarial=0.0", "data.batch_size=2")
# Strong: the few steps of the tokenizer leave it few codes, and weak degradation may change none.
WORN = ("degrade.noise=255", "degrade.blur=1.0", "degrade.jpeg=20")


def test_a_decoder_of_twice_the_size_that_restores_keeps_the_tokens_and_resumes(train, whole, clips_dir, tmp_path):
    scored = (f"evaluation.clips={clips_dir}", "evaluation.num_clips=1", "evaluation.every=2")
    settings = (f"start_from={whole.out}", *LARGE, *SHORT, *WORN, *scored)
    run = train(tmp_path / "run", *settings)
    before, after = read_checkpoint(whole.out), read_checkpoint(run.out)
    assert after.fingerprints.token == before.fingerprints.token
    assert after.fingerprints.decoder != before.fingerprints.decoder
    for name, array in before.tensors.items():
        if not name.startswith("decoder."):
            np.testing.assert_array_equal(after.tensors[name], array, err_msg=name)
    # The first step already changes the zeros of the new head.
    assert np.abs(after.tensors["decoder.enlargement.head.weight"]).max() > 0
    (psnr,) = run.column("held_out_psnr")
    assert psnr > 5

    # What was drawn for the first steps is drawn again.
    shutil.rmtree(run.out / "checkpoints/step-00000002")
    assert read_checkpoint(train(run.out, *settings).out).fingerprints == after.fingerprints
    # Not the data alone differs: without degradation the same clips give another decoder.
    clean = train(tmp_path / "clean", *settings[: -len(scored) - len(WORN)])
    assert read_checkpoint(clean.out).fingerprints.decoder != after.fingerprints.decoder


def test_the_crop_must_be_whole_latents_of_the_larger_frames(train, whole, tmp_path):
    run = train(tmp_path / "run", f"start_from={whole.out}", *LARGE, "data.crop=24", code=2)
    assert "data.crop=24 must be a multiple of 16, the pixels per latent of this model" in run.stderr
