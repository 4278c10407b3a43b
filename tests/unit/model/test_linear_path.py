"""The linear path between pixels and latents."""

import pytest
import torch

from vidvq.errors import UsageError
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.blocks import Blocks
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.layers import TemporalCache
from vidvq.model.quantize import QuantizerConfig, VQConfig

SMALL = StackConfig((8, 8), (0, 0))


def make(linear: int, dim: int = 40) -> VideoTokenizer:
    torch.manual_seed(0)
    books = QuantizerConfig(dim, VQConfig(size=32), VQConfig(size=32))
    return VideoTokenizer(
        TokenizerConfig(
            encoder=SMALL, decoder=DecoderConfig(SMALL.channels, SMALL.blocks), quantizer=books, linear=linear
        )
    ).eval()


@pytest.mark.parametrize(("frames", "side"), [(4, 8), (1, 4), (2, 2)])
def test_all_frequencies_are_an_orthonormal_basis(frames, side):
    basis = Blocks(frames, side).lowest_frequencies(3 * frames * side * side)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-5, rtol=0)


def test_the_lowest_frequency_is_the_mean():
    mean, *others = Blocks(4, 8).lowest_frequencies(8)
    torch.testing.assert_close(mean, torch.full((768,), 768**-0.5))
    assert all(abs(other.sum()) < 1e-4 for other in others)


def test_blocks_round_trip_and_each_belongs_to_one_latent():
    blocks, video = Blocks(4, 8), torch.randn(2, 3, 8, 16, 24)
    vectors = blocks(video)
    assert vectors.shape == (2, 2, 2, 3, 768)
    assert torch.equal(blocks.inverse(vectors), video)
    changed = video.clone()
    changed[1, :, 4:, 8:, 16:] += 1
    where = (blocks(changed) != vectors).any(dim=-1).nonzero().tolist()
    assert where == [[1, 1, 1, 2]]


def test_an_untrained_tokenizer_passes_smooth_video_through_its_linear_path():
    tokenizer = make(32)
    ramp = torch.linspace(-0.8, 0.8, 32)[None, None, None, None, :].expand(1, 3, 8, 32, 32)
    with torch.no_grad():
        for head in (tokenizer.encoder.head, tokenizer.decoder.head):
            head.weight.zero_()
            head.bias.zero_()
        latents = tokenizer.encoder(ramp, TemporalCache())
        frames = tokenizer.decoder(latents, TemporalCache())
    assert latents[:, :8].abs().max() == 0
    assert (frames - ramp).abs().max() < 0.02


def test_it_uses_some_of_the_latent_channels():
    with pytest.raises(UsageError, match="linear=9 must be from 0 to quantizer.dim=8"):
        make(9, dim=8)
    assert "linear" not in make(0).config.to_dict()
    config = make(4).config
    assert TokenizerConfig.from_dict(config.to_dict()) == config
