"""The tokenizer interface: configs, weights, and one clear error per mistake."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from einops import rearrange

from vidvq import config as settings
from vidvq.model import Discriminator, DiscriminatorConfig, TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.launches import LaunchCounter
from vidvq.model.layers import TemporalCache, TemporalConv
from vidvq.model.patch import Patch, haar_matrix
from vidvq.model.quantize import QuantizerConfig, VQConfig

SMALL = TokenizerConfig(
    encoder=StackConfig((16, 24), (1, 1)),
    decoder=DecoderConfig((16, 24), (1, 1)),
    quantizer=QuantizerConfig(4, VQConfig(size=32), VQConfig(size=64)),
)


@pytest.fixture(scope="module")
def tokenizer() -> VideoTokenizer:
    torch.manual_seed(0)
    return VideoTokenizer(SMALL).eval()


_ALONE = """
import builtins, pkgutil, sys
from importlib import import_module

ALLOWED = sys.stdlib_module_names | {"torch", "einops"}
OURS = ("vidvq.model", "vidvq.arguments", "vidvq.errors", "vidvq.codebook")
real = builtins.__import__

def guarded(name, namespace=None, *rest):
    asker = (namespace or {}).get("__name__", "")
    level = rest[2] if len(rest) > 2 else 0
    if asker.split(".")[0] == "vidvq" and not level and name.split(".")[0] not in ALLOWED and not name.startswith(OURS):
        raise ModuleNotFoundError(f"{asker} imports {name}")
    return real(name, namespace, *rest)

builtins.__import__ = guarded
import torch
import vidvq.model
for module in pkgutil.walk_packages(vidvq.model.__path__, "vidvq.model."):
    # Triton comes with torch, for CUDA alone; these modules are imported where it is installed.
    if not module.name.endswith("search_triton") and "kernels." not in module.name:
        import_module(module.name)
tokenizer = vidvq.model.VideoTokenizer(vidvq.model.TokenizerConfig()).eval()
video = torch.zeros(1, 3, 5, 8, 8)
print(tuple(tokenizer.decode(tokenizer.encode(video)).shape))
try:
    import_module("vidvq.pretrained")
except ModuleNotFoundError as error:
    print(error)
"""


def test_the_model_imports_only_torch_and_einops():
    done = subprocess.run([sys.executable, "-c", _ALONE], capture_output=True, text=True, check=False)
    shape, guard = done.stdout.splitlines() or [done.stderr, ""]
    assert shape == "(1, 3, 5, 8, 8)", done.stderr
    # The guard does refuse what a module outside of the model asks for.
    assert guard.startswith("vidvq.pretrained imports vidvq.")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_haar_is_orthonormal(size):
    basis = haar_matrix(size)
    torch.testing.assert_close(basis @ basis.T, torch.eye(size))
    torch.testing.assert_close(basis[0], torch.full((size,), size**-0.5))


@pytest.mark.parametrize("kind", ["haar", "unshuffle"])
def test_patch_is_lossless(kind):
    patch = Patch(kind, 4, 2)
    video = torch.randn(2, 3, 8, 6, 10)
    channels = patch(video)
    assert channels.shape == (2, 2, 3, 5, patch.channels)
    torch.testing.assert_close(patch.inverse(channels), video)


def test_unshuffling_needs_no_product_and_has_its_values():
    patch = Patch("unshuffle", 4, 2)
    video = torch.randn(2, 3, 8, 6, 10)
    blocks = rearrange(video, "b c (g t) (h p) (w q) -> b g h w c (t p q)", t=4, p=2, q=2)
    product = rearrange(blocks @ (patch.basis.T / 4), "b g h w c k -> b g h w (k c)")
    with LaunchCounter() as counted:
        channels = patch(video)
        patch.inverse(channels)
    assert torch.equal(channels, product)
    assert not any("mm" in name for name in counted.kernels)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("causality", ["strict", "group"])
def test_one_convolution_over_time_has_the_values_of_a_product_for_each_tap(length, causality):
    conv = TemporalConv(8, 12, 1, causality)
    x = torch.randn(2, length, 3, 4, 8)
    cache = TemporalCache()
    conv(torch.randn(2, 2, 3, 4, 8), cache)
    past = tuple(cache.updated)
    convolved = conv.convolve(torch.cat([*past, x], dim=1))
    torch.testing.assert_close(convolved, conv(x, TemporalCache(past)))
    assert convolved.is_contiguous()


def test_a_static_group_is_constant_in_time():
    patch = Patch("haar", 4, 4)
    frame = torch.randn(1, 3, 1, 8, 8)
    channels = patch(frame.expand(-1, -1, 4, -1, -1))
    assert channels[..., : 3 * 16].abs().max() > 0.1
    assert channels[..., 3 * 16 :].abs().max() < 1e-5


def test_config_round_trips_by_itself_and_by_pydantic():
    data = json.loads(json.dumps(SMALL.to_dict()))
    assert TokenizerConfig.from_dict(data) == SMALL
    assert settings.validate(TokenizerConfig, data) == SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "no field colour"),
        ({"quantizer": {"size": 3}}, "no field size"),
        ({"temporal_factor": 3}, "temporal_factor=3 must be a power of two"),
        ({"encoder": {"channels": [8], "blocks": [1]}}, "1 stages"),
    ],
)
def test_an_invalid_config_is_explained(change, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig.from_dict(SMALL.to_dict() | change)


def test_inference_weights_round_trip(tokenizer):
    other = VideoTokenizer(SMALL).eval()
    other.load_inference_state_dict(tokenizer.inference_state_dict())
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.equal(tokenizer.encode(video), other.encode(video))
    assert all(name.startswith(("encoder.", "quantizer.", "decoder.")) for name in tokenizer.inference_state_dict())


def test_a_missing_unexpected_or_misshapen_tensor_is_named(tokenizer):
    weights = tokenizer.inference_state_dict()
    with pytest.raises(ValueError, match=r"encoder\.head\.bias is missing"):
        tokenizer.load_inference_state_dict({k: v for k, v in weights.items() if k != "encoder.head.bias"})
    with pytest.raises(ValueError, match="encoder.extra is not part"):
        tokenizer.load_inference_state_dict(weights | {"encoder.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"encoder\.head\.bias has shape \(5,\)"):
        tokenizer.load_inference_state_dict(weights | {"encoder.head.bias": torch.zeros(5)})


def test_codebooks_tile_the_vocabulary(tokenizer):
    assert [(book.name, book.size, book.offset) for book in tokenizer.codebooks] == [
        ("spatial", 32, 0),
        ("temporal", 64, 32),
    ]
    joint = TokenizerConfig(quantizer=QuantizerConfig(4, VQConfig(size=32), None))
    assert [book.name for book in VideoTokenizer(joint).codebooks] == ["joint"]


def test_bits_per_pixel_counts_every_code(tokenizer):
    assert tokenizer.bits_per_pixel(5, 16, 16) == pytest.approx((4 * 5 + 4 * 6) / (5 * 256))


VIDEO = torch.zeros(1, 3, 5, 16, 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode(VIDEO[0]), "must be b 3 t h w"),
        (lambda t: t.encode(VIDEO[:, :1]), "must be b 3 t h w"),
        (lambda t: t.encode(VIDEO.byte()), "must be float"),
        (lambda t: t.encode(VIDEO + 127), r"must be in \[-1, 1\]"),
        (lambda t: t.encode(VIDEO * float("nan")), r"must be in \[-1, 1\]"),
        (lambda t: t.encode(VIDEO[:, :, :0]), "must not be empty"),
        (lambda t: t(VIDEO[:, :, :4]), "num_frames=4 must be 1 .* nearest: 1 or 5"),
        (lambda t: t(VIDEO[..., :12]), "multiples of 8"),
        (lambda t: t.encode_step(VIDEO), "num_frames=5 must be 1 at the start"),
        (lambda t: t.encode_step(VIDEO[:, :, :3], t.encode_step(VIDEO[:, :, :1])[1]), "multiple of 4"),
        (lambda t: t.encode_step(VIDEO[:, :, :4, :8], t.encode_step(VIDEO[:, :, :1])[1]), "state belongs to a stream"),
        (lambda t: t.decode_step(t.encode(VIDEO)[:, 1:], t.encode_step(VIDEO[:, :, :1])[1]), "stream to encode"),
        (lambda t: t.decode(t.encode(VIDEO).float()), "must be integers"),
        (lambda t: t.decode(t.encode(VIDEO)[0]), "b lt lh lw"),
        (lambda t: t.decode(torch.full((1, 2, 2, 2), 40)), "code 40 is out of range; the spatial"),
        (lambda t: t.decode(torch.full((1, 1, 2, 2), -1)), "code -1 is out of range"),
        (lambda t: t.encode("video.mp4"), "video is a str; it must be a tensor or a NumPy array"),
        (lambda t: t.encode(None), "video is a NoneType"),
        (lambda t: t.encode(VIDEO.numpy()[0]), "must be b 3 t h w"),
        (lambda t: t.encode(np.zeros((1, 3, 1, 8, 8), dtype="U1")), "video is a ndarray of <U1"),
        (lambda t: t.encode(VIDEO.to(torch.complex64)), "must be float"),
        (lambda t: t.decode([[[[1]]]]), "codes is a list"),
        (lambda t: t.decode(torch.ones(1, 1, 2, 2, dtype=torch.bool)), "must be integers"),
        (lambda t: t.decode(np.full((1, 1, 2, 2), 60000, dtype=np.uint16)), "code 60000 is out of range"),
        (lambda t: t.decode(t.encode(VIDEO), num_frames=6), "num_frames=6 of 16x16 do not become"),
    ],
)
def test_a_mistake_is_reported_in_one_line(tokenizer, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "int32", "int64"])
def test_codes_of_any_integer_type_decode_alike(tokenizer, dtype):
    codes = tokenizer.encode(VIDEO)
    array = codes.numpy().astype(dtype)
    array.flags.writeable = False
    assert torch.equal(tokenizer.decode(array), tokenizer.decode(codes))
    assert torch.equal(tokenizer.decode(torch.tensor(array)), tokenizer.decode(codes))


def test_arrays_are_encoded_as_tensors_are(tokenizer):
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.equal(tokenizer.encode(video.numpy()), tokenizer.encode(video))
    reverse = video.flip(1).numpy()[:, ::-1]
    assert torch.equal(tokenizer.encode(reverse), tokenizer.encode(video))
    assert torch.equal(tokenizer.encode_step(video.numpy()[:, :, :1])[0], tokenizer.encode(video[:, :, :1]))


def test_autocast_does_not_change_what_is_encoded_or_decoded(tokenizer):
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    codes = tokenizer.encode(video)
    frames = tokenizer.decode(codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(video), codes)
        assert torch.equal(tokenizer.decode(codes), frames)


def test_a_frame_discriminator_depends_on_single_frames():
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(sees="frames", channels=8, layers=1))
    video = torch.rand(2, 3, 5, 32, 32)
    changed = video.clone()
    changed[:, :, 2] = 0
    before, after = discriminator(video), discriminator(changed)
    assert before.shape[:3] == (2, 1, 5)
    same = [torch.equal(before[:, :, t], after[:, :, t]) for t in range(5)]
    assert same == [True, True, False, True, True]


def test_the_discriminator_has_a_logit_per_patch():
    logits = Discriminator(DiscriminatorConfig(channels=8, layers=1))(torch.rand(2, 3, 9, 32, 32))
    assert logits.shape[:2] == (2, 1)
    assert logits[0].numel() > 1
