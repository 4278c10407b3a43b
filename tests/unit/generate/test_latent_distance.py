"""Fréchet distance of clips in the latent space of a tokenizer."""

import numpy as np
import pytest

from vidvq.errors import UsageError
from vidvq.generate.evaluation.latent_distance import LatentDistance
from vidvq.model import Tokenizer
from vidvq.pretrained import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(checkpoint_dir):
    return load_tokenizer(checkpoint_dir)[0]


def clips(seed):
    return list(np.random.default_rng(seed).integers(0, 32, (6, 4, 4, 5)))


def test_it_is_zero_for_equal_clips_and_grows_with_a_change_of_content(tokenizer):
    distance = LatentDistance(tokenizer, clips(0))
    assert distance.measure(clips(0)) == pytest.approx(0, abs=1e-6)
    assert 0 < distance.measure(clips(1)) < distance.measure([np.zeros_like(codes) for codes in clips(1)])


def test_it_sees_another_motion_of_equal_content(tokenizer):
    distance = LatentDistance(tokenizer, [codes[[0, 1, 2, 1]] for codes in clips(0)])
    assert distance.measure([codes[[0, 1, 1, 2]] for codes in clips(0)]) > 1e-3


def test_latents_are_those_that_the_decoder_receives(tokenizer):
    seen = []
    handle = tokenizer.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    codes = clips(0)[0][None]
    tokenizer.decode(codes[:, :1])
    handle.remove()
    latents = tokenizer.latents(codes)
    assert latents.shape[2:] == codes.shape[1:]
    assert (seen[0][:, :, :1] - latents[:, :, :1]).abs().max() < 1e-6


def test_a_tokenizer_without_latents_is_one_line():
    with pytest.raises(UsageError, match="a Tokenizer does not expose its latents"):
        Tokenizer.latents(Tokenizer.__new__(Tokenizer), None)
