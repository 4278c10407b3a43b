"""Decoders for super-resolution: start as bicubic enlargement, leave tokens alone, stream and tile exactly."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import fingerprint
from vidvq.model import TokenizerConfig, VideoTokenizer, iter_decode
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.enlarge import Bicubic, shrink, shrink_frames
from vidvq.model.layers import TemporalCache
from vidvq.model.quantize import QuantizerConfig, VQConfig
from vidvq.model.step_shape import StepShape

PLAIN = TokenizerConfig(
    encoder=StackConfig((8, 12), (1, 1)),
    decoder=DecoderConfig((8, 12), (1, 1)),
    quantizer=QuantizerConfig(4, VQConfig(size=16), VQConfig(size=32)),
)
LARGE = replace(PLAIN, decoder=replace(PLAIN.decoder, upscale=2))


def make_tokenizer(config: TokenizerConfig, trained: bool = True) -> VideoTokenizer:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(config).eval()
    with torch.no_grad():
        for name, parameter in tokenizer.named_parameters():
            # Fresh residual blocks and heads of enlargements have no effect.
            if name.endswith("time.mix.weight") or (trained and name.startswith("decoder.enlargement.head")):
                parameter.normal_(std=0.1)
    return tokenizer


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_enlargement_is_that_of_torch(factor):
    video = torch.rand(2, 3, 2, 9, 12, dtype=torch.float64) * 2 - 1
    found = Bicubic(factor).double()(video)
    frames = video.transpose(1, 2).flatten(0, 1)
    expected = F.interpolate(frames, scale_factor=float(factor), mode="bicubic", antialias=True, align_corners=False)
    expected = expected.unflatten(0, (2, 2)).transpose(1, 2)
    assert found.shape == expected.shape
    # Torch renormalizes at the border instead of repeating it.
    inner = (..., slice(2 * factor, -2 * factor), slice(2 * factor, -2 * factor))
    assert torch.allclose(found[inner], expected[inner], atol=1e-6)
    assert torch.allclose(Bicubic(factor)(torch.full((1, 3, 1, 4, 4), 0.5)), torch.tensor(0.5))


def test_shrink_keeps_means_and_extends_odd_sides():
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 2, 15, 16)
    small = shrink(ramp, 2)
    assert small.shape == (1, 3, 2, 8, 8)
    assert torch.allclose(small[..., 2:-2], ramp.unfold(-1, 2, 2).mean(-1)[..., :8, 2:-2], atol=1e-3)
    frames = np.full((3, 5, 4, 3), 77, np.uint8)
    assert shrink_frames(frames, 1) is frames
    np.testing.assert_array_equal(shrink_frames(frames, 2), np.full((3, 3, 2, 3), 77, np.uint8))


@pytest.mark.parametrize("upscale", [2, 4])
def test_it_starts_as_the_bicubic_enlargement_of_the_plain_decoder(upscale):
    plain = make_tokenizer(PLAIN)
    large = make_tokenizer(replace(PLAIN, decoder=replace(PLAIN.decoder, upscale=upscale)), trained=False)
    extra = {name: tensor for name, tensor in large.inference_state_dict().items() if ".enlargement." in name}
    large.load_inference_state_dict(plain.inference_state_dict() | extra)
    latents = torch.rand(1, 4, 2, 2, 3)
    found, expected = large.decoder(latents, TemporalCache()), plain.decoder(latents, TemporalCache())
    assert found.shape == (1, 3, 8, 16 * upscale, 24 * upscale)
    assert torch.allclose(found, Bicubic(upscale)(expected), atol=1e-5)


def test_tokens_keep_their_fingerprint_and_the_decoder_gets_another():
    plain, large = make_tokenizer(PLAIN), make_tokenizer(LARGE)
    tensors = [
        {name: tensor.numpy() for name, tensor in each.inference_state_dict().items()} for each in (plain, large)
    ]
    # The same encoder and codebooks, whatever was drawn after them.
    tensors[1] |= {name: array for name, array in tensors[0].items() if not name.startswith("decoder.")}
    prints = [fingerprint(each.config.to_dict(), {}, own) for each, own in zip((plain, large), tensors, strict=True)]
    assert prints[0].token == prints[1].token and prints[0].decoder != prints[1].decoder
    assert "upscale" not in PLAIN.to_dict()["decoder"]
    assert TokenizerConfig.from_dict(LARGE.to_dict()) == LARGE


def test_decode_streams_batches_and_crops_exactly():
    tokenizer = make_tokenizer(LARGE)
    video = torch.rand(2, 3, 9, 15, 22) * 2 - 1
    codes = tokenizer.encode(video)
    whole = tokenizer.decode(codes, 8, (15, 22))
    assert whole.shape == (2, 3, 8, 30, 44)
    first, state = tokenizer.decode_step(codes[:, :1])
    rest, _ = tokenizer.decode_step(codes[:, 1:], state)
    assert torch.equal(torch.cat([first, rest], dim=2)[:, :, :8, :30, :44], whole)
    assert torch.equal(tokenizer.decode(codes[1:], 8, (15, 22)), whole[1:])
    frames = np.concatenate(list(iter_decode(tokenizer, codes[0], 8, (15, 22))))
    assert frames.shape == (8, 30, 44, 3)


def test_large_frames_count_in_the_shape_of_a_call():
    tokenizer = make_tokenizer(LARGE)
    tokenizer.step_shape = tokenizer.decode_shape = StepShape(1, 8, max_pixels=8 * 4 * 16 * 24)
    assert tokenizer.shape_for(16, 24).groups == 8
    assert tokenizer.shape_for(16, 24, "decode").groups == 2


@pytest.mark.parametrize("upscale", [2, 4])
def test_tiled_decode_equals_untiled_decode(upscale):
    decoder = replace(PLAIN.decoder, upscale=upscale)
    whole = make_tokenizer(replace(PLAIN, decoder=decoder))
    tiled = make_tokenizer(replace(PLAIN, decoder=decoder, tile=16 * upscale))
    codes = torch.randint(0, 16, (1, 2, 3, 14))
    assert len(tiled._stream_decoder.tiles(3, 14).spans) == 3
    assert torch.allclose(tiled.decode(codes), whole.decode(codes), atol=2e-5)


def test_training_gives_large_frames_and_gradients():
    tokenizer = make_tokenizer(LARGE, trained=False).train()
    out = tokenizer(torch.rand(1, 3, 5, 16, 16) * 2 - 1)
    assert out.reconstruction.shape == (1, 3, 5, 32, 32)
    out.reconstruction.square().mean().backward()
    assert tokenizer.decoder.enlargement.head.weight.grad.abs().max() > 0
    assert tokenizer.decoder.head.weight.grad.abs().max() > 0


def test_factors_other_than_1_2_4_are_refused():
    with pytest.raises(UsageError, match="upscale=3 must be 1, 2 or 4"):
        DecoderConfig(upscale=3)
    with pytest.raises(UsageError, match="tile=8 must be at least the spatial factor, times decoder.upscale, 16"):
        replace(LARGE, tile=8)
    assert asdict(DecoderConfig())["upscale"] == 1
