"""Code vectors of a tokenizer, and codes nearest to their mean."""

import pytest
import torch
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.generate.network.block import TransformerConfig
from vidvq.generate.network.build import start_from_vectors
from vidvq.generate.network.code_vectors import code_vectors, nearest_to_mean
from vidvq.generate.network.transformer import VideoTransformer
from vidvq.generate.network.vocabulary import factorize
from vidvq.model import Tokenizer, TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import DifferentialConfig, QuantizerConfig, ResidualConfig, VQConfig


def make_tokenizer(quantizer):
    torch.manual_seed(0)
    stack = {"channels": (8, 8), "blocks": (1, 1)}
    config = TokenizerConfig(encoder=StackConfig(**stack), decoder=DecoderConfig(**stack), quantizer=quantizer)
    return VideoTokenizer(config).eval().requires_grad_(False)


def digits(tokenizer, limit=1 << 16):
    return [factorize(book.size, limit) for book in tokenizer.codebooks]


def test_codes_without_memory_have_the_vectors_of_their_codebooks():
    tokenizer = make_tokenizer(QuantizerConfig(4, VQConfig(size=16), VQConfig(size=32)))
    (spatial,), (temporal,) = code_vectors(tokenizer, digits(tokenizer))
    grid = torch.arange(16)[:, None, None, None]
    torch.testing.assert_close(spatial, tokenizer.latents(grid)[:, :, 0, 0, 0])
    later = torch.cat([torch.zeros(32, 1, 1, 1, dtype=torch.int64), torch.arange(32)[:, None, None, None]], dim=1)
    torch.testing.assert_close(temporal, tokenizer.latents(later)[:, :, 1, 0, 0])


def test_differences_are_averaged_over_what_came_before():
    quantizer = QuantizerConfig(4, VQConfig(size=64), VQConfig(size=32), DifferentialConfig(start=0.5))
    tokenizer = make_tokenizer(quantizer)
    _, (vectors,) = code_vectors(tokenizer, digits(tokenizer))
    found = vectors - vectors.mean(0)
    steps = 0.5 * tokenizer.quantizer.temporal.lookup(torch.arange(32))
    torch.testing.assert_close(found, steps - steps.mean(0))


def test_digits_of_a_large_codebook_add_up_to_its_vectors():
    layer = VQConfig(size=8)
    tokenizer = make_tokenizer(QuantizerConfig(4, ResidualConfig(layer=layer, depth=2), VQConfig(size=32)))
    (high, low), _ = code_vectors(tokenizer, digits(tokenizer, limit=32))
    assert len(high) == len(low) == 8
    codes = torch.arange(64)
    vectors = tokenizer.latents(codes[:, None, None, None])[:, :, 0, 0, 0]
    added = high[codes // 8] + low[codes % 8]
    error = (vectors - vectors.mean(0)) - (added - added.mean(0))
    assert error.abs().mean() < 0.3 * vectors.abs().mean()


def test_a_tokenizer_without_latents_is_refused(monkeypatch):
    tokenizer = make_tokenizer(QuantizerConfig(4, VQConfig(size=16), VQConfig(size=32)))
    monkeypatch.setattr(VideoTokenizer, "latents", Tokenizer.latents)
    with pytest.raises(UsageError, match="does not expose its latents"):
        code_vectors(tokenizer, digits(tokenizer))


def test_the_mean_of_two_extremes_is_the_code_between_them():
    vectors = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.1, 0.1], [0.0, 3.0]])
    scores = torch.tensor([[0.49, 0.49, 0.01, 0.01], [0.05, 0.9, 0.04, 0.01]]).log()
    assert nearest_to_mean(scores, vectors).tolist() == [2, 1]


def test_codes_that_are_not_allowed_are_not_taken():
    vectors = torch.tensor([[-1.0], [1.0], [0.0]])
    scores = torch.tensor([[0.4, 0.6, 0.0]]).log()
    assert nearest_to_mean(scores, vectors).tolist() == [1]


def test_embeddings_and_heads_start_with_the_distances_of_code_vectors():
    torch.manual_seed(0)
    network = VideoTransformer(TransformerConfig(width=256, depth=1), (16, 32))
    vectors = [[torch.randn(16, 4)], [torch.randn(32, 4)]]
    weights = [network.embeddings[1].tables[0].weight.detach(), network.heads[1].outputs[0].weight.detach()]
    deviations = [float(weight.std()) for weight in weights]
    start_from_vectors(network, vectors, seed=0)
    wanted = vectors[1][0] - vectors[1][0].mean(0)
    assert [float(weight.std()) for weight in weights] == pytest.approx(deviations, rel=1e-3)
    for weight in weights:
        similarity = F.normalize(weight, dim=1) @ F.normalize(weight, dim=1).T
        assert (similarity - F.normalize(wanted, dim=1) @ F.normalize(wanted, dim=1).T).abs().mean() < 0.1
