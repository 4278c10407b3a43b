"""Properties that need a CUDA device. Imports only vidvq.model, so that it runs without other dependencies."""

import os
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidvq.model import Discriminator, DiscriminatorConfig, TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import DifferentialConfig, QuantizerConfig, VQConfig
from vidvq.model.step_shape import StepShape
from vidvq.model.training_layers import use_training_layers

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def device() -> torch.device:
    if not torch.cuda.is_available():
        if os.environ.get("VIDVQ_REQUIRE_GPU") == "1":
            pytest.fail("VIDVQ_REQUIRE_GPU=1 and there is no CUDA device")
        pytest.skip("no CUDA device")
    # TF32 would round the products that decide between near codes.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


@pytest.fixture(scope="module")
def tokenizer() -> VideoTokenizer:
    torch.manual_seed(0)
    return VideoTokenizer(TokenizerConfig()).eval()


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, 17, 64, 96) * 2 - 1


def test_chunks_and_batches_do_not_change_tokens_on_the_device(tokenizer, video, device):
    tokenizer, video = tokenizer.to(device), video.to(device)
    whole = tokenizer.encode(video)
    first, state = tokenizer.encode_step(video[:1, :, :1])
    middle, state = tokenizer.encode_step(video[:1, :, 1:5], state)
    last, _ = tokenizer.encode_step(video[:1, :, 5:], state)
    assert torch.equal(torch.cat([first, middle, last], dim=1), whole[:1])
    assert torch.equal(tokenizer.encode(video[1:]), whole[1:])


def test_most_tokens_agree_with_the_cpu(tokenizer, video, device):
    on_cpu = tokenizer.cpu().encode(video.cpu())
    on_device = tokenizer.to(device).encode(video.to(device)).cpu()
    assert (on_cpu == on_device).float().mean() > 0.99


def test_tiled_tokens_equal_untiled_ones_on_the_device(video, device):
    torch.manual_seed(0)
    whole = VideoTokenizer(TokenizerConfig()).eval().to(device)
    tiled = VideoTokenizer(TokenizerConfig(tile=32)).eval().to(device)
    tiled.load_inference_state_dict(whole.inference_state_dict())
    codes = tiled.encode(video.to(device))
    # The video stays where it is; a tile at a time goes to the device.
    assert torch.equal(tiled.encode_tiled(video.cpu()), codes)
    assert (whole.encode(video.to(device)) == codes).float().mean() > 0.99


@pytest.mark.parametrize(("size", "dim"), [(8192, 16), (1 << 16, 18), (1 << 18, 8), (300, 3)])
def test_the_fused_search_agrees_with_plain_torch(size, dim, device):
    pytest.importorskip("triton", reason="Triton comes with torch for CUDA on Linux")
    from vidvq.model.quantize.search import nearest_codes_blockwise
    from vidvq.model.quantize.search_triton import nearest_codes_fused

    torch.manual_seed(0)
    codebook, latents = torch.randn(size, dim, device=device), torch.randn(5000, dim, device=device)
    half_norms = codebook.square().sum(dim=1) / 2
    found, expected = (
        search(latents, codebook, half_norms) for search in (nearest_codes_fused, nearest_codes_blockwise)
    )
    # Sums of another order: where two codes differ by less than their rounding, either may be taken.
    gaps = (latents - codebook[found]).square().sum(dim=1) - (latents - codebook[expected]).square().sum(dim=1)
    assert gaps.abs().max() < 1e-4
    assert (found == expected).float().mean() > 0.999
    whole = (
        torch.randint(-2, 3, (size, dim), device=device).float(),
        torch.randint(-2, 3, (5000, dim), device=device).float(),
    )
    half_norms = whole[0].square().sum(dim=1) / 2
    assert torch.equal(
        nearest_codes_fused(whole[1], whole[0], half_norms), nearest_codes_blockwise(whole[1], whole[0], half_norms)
    )


def test_the_fused_search_materializes_no_distances(device):
    pytest.importorskip("triton", reason="Triton comes with torch for CUDA on Linux")
    from vidvq.model.quantize import search

    codebook, latents = torch.randn(1 << 18, 8, device=device), torch.randn(20_000, 8, device=device)
    search.nearest_codes(latents, codebook)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    search.nearest_codes(latents, codebook)
    # The distances would be 21 GB; the squares of the codes are 8 MB.
    assert torch.cuda.max_memory_allocated() - before < 64 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_of_triton_kernels_depend_on_their_receptive_field_alone(dtype, video, device):
    pytest.importorskip("triton", reason="Triton comes with torch for CUDA on Linux")
    config = TokenizerConfig(encoder=StackConfig((64, 96), (1, 1)))
    tokenizer = VideoTokenizer(config).eval().to(device)
    with torch.no_grad():
        for name, parameter in tokenizer.encoder.named_parameters():
            # A new residual block is the identity and has no past.
            if name.endswith("time.mix.weight"):
                parameter.normal_(std=0.05)
    tokenizer.use_half(dtype)
    clip = video.to(device)
    plain = tokenizer.encode(clip)
    tokenizer.use_triton()
    codes = tokenizer.encode(clip)
    assert (codes == plain).float().mean() > (0.98 if dtype == torch.float32 else 0.8)
    for shape in (StepShape(2, 3), StepShape(1, 2), StepShape(8, 1)):
        tokenizer.step_shape = shape
        assert torch.equal(tokenizer.encode(clip), codes)
    part = tokenizer.encode(clip[..., 8:])
    margin = tokenizer.encoder.receptive_radius
    assert torch.equal(part[..., margin:], codes[..., 1 + margin :])
    tokenizer.compile_steps(capture=True)
    for _ in range(2):
        assert torch.equal(tokenizer.encode(clip), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_steps_run_on_the_device(dtype, video, device):
    torch.compiler.reset()
    tokenizer = VideoTokenizer(TokenizerConfig()).eval().to(device, dtype)
    step = torch.compile(tokenizer.encode_step, fullgraph=True)
    clip = video[:1, :, :9].to(device)
    first, state = step(clip[:, :, :1])
    second, state = step(clip[:, :, 1:5], state)
    third, _ = step(clip[:, :, 5:], state)
    assert (torch.cat([first, second, third], dim=1) == tokenizer.encode(clip)).float().mean() > 0.9


def test_a_bf16_step_trains_and_quantizes_in_fp32(video, device):
    tokenizer = VideoTokenizer(TokenizerConfig()).to(device, torch.bfloat16).train()
    out = tokenizer(video.to(device, torch.bfloat16))
    (out.reconstruction.float().square().mean() + out.commitment_loss).backward()
    assert tokenizer.encoder.head.weight.grad is not None
    assert tokenizer.encoder.head.weight.grad.isfinite().all()
    assert {buffer.dtype for buffer in tokenizer.quantizer.buffers() if buffer.is_floating_point()} == {torch.float32}


def test_captured_steps_have_the_tokens_of_compiled_ones(video, device):
    torch.compiler.reset()
    tokenizer = VideoTokenizer(TokenizerConfig()).eval().to(device)
    tokenizer.step_shape = tokenizer.decode_shape = StepShape(2, 3)
    clip = video.to(device)
    tokenizer.compile_steps()
    codes = tokenizer.encode(clip)
    frames = tokenizer.decode(codes)
    tokenizer.compile_steps(capture=True)
    # Recorded in inference mode, as jobs do.
    with torch.inference_mode():
        assert torch.equal(tokenizer.encode(clip), codes)
    for _ in range(2):
        assert torch.equal(tokenizer.encode(clip), codes)
        assert torch.equal(tokenizer.decode(codes), frames)
    # Results of a replay are not overwritten by the next one.
    other = tokenizer.encode(-clip)
    assert not torch.equal(other, codes)
    assert torch.equal(tokenizer.encode(clip), codes)


def _gradients(network: torch.nn.Module, video: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the output of a network and its gradients, in fp32."""
    network.zero_grad()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        out = network(video)
    out = out if isinstance(out, torch.Tensor) else out.reconstruction
    out.float().square().mean().backward()
    return [out.detach().float(), *(weight.grad for weight in network.parameters() if weight.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_layers_on_the_device_are_as_exact_as_plain_ones(dtype, video, device, monkeypatch):
    torch.manual_seed(0)
    stack = StackConfig((128, 256), (1, 1))
    decoder = DecoderConfig(stack.channels, stack.blocks)
    # Its codebooks warm up: codes would change with the rounding of latents.
    tokenizer = VideoTokenizer(TokenizerConfig(encoder=stack, decoder=decoder)).train().to(device)
    for name, weight in tokenizer.named_parameters():
        if name.endswith("mix.weight"):
            # A new residual block is the identity.
            torch.nn.init.normal_(weight, std=0.05)
    discriminator = Discriminator(DiscriminatorConfig(channels=32, layers=3)).to(device)
    video, networks = video.to(device), (tokenizer, discriminator)
    with monkeypatch.context() as patched:
        patched.setattr("vidvq.model.discriminator.prefers_channels_last", lambda x: False)
        exact, plain = (
            [tensor for network in networks for tensor in _gradients(network, video, kind)]
            for kind in (torch.float32, dtype)
        )
    use_training_layers(tokenizer)
    found = [tensor for network in networks for tensor in _gradients(network, video, dtype)]
    assert len(found) == len(exact)
    for one, other, expected in zip(found, plain, exact, strict=True):
        error, usual = (float((tensor - expected).norm() / (expected.norm() + 1e-12)) for tensor in (one, other))
        # A tensor of one element may be off by its own rounding, however lucky the plain one was.
        assert error <= 1.5 * usual + (1e-3 if dtype == torch.float32 else 2**-7), (expected.shape, error, usual)


def test_samples_on_the_device_depend_on_their_own_prompt_alone_and_steps_do_not_wait(device):
    from vidvq.generate.network.block import TransformerConfig
    from vidvq.generate.network.transformer import VideoTransformer
    from vidvq.generate.requests import SamplingConfig
    from vidvq.generate.sampling.codes import Condition, SamplePrompt, sample_codes

    torch.manual_seed(0)
    network = VideoTransformer(TransformerConfig(64, 2, 4, copy_radius=1), (512, 1 << 24), labels=3)
    network = network.eval().requires_grad_(False).to(device)
    network.use_half(torch.bfloat16)
    factors = SimpleNamespace(spatial_factor=8, temporal_factor=4)

    def sample(objective, steps, seeds):
        card: Any = SimpleNamespace(limits=(3, 8, 8), objective=objective, tokenizer=factors)
        prompts = [SamplePrompt(torch.Generator().manual_seed(seed), None, Condition(seed % 4)) for seed in seeds]
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return sample_codes(network, card, (3, 8, 8), prompts, SamplingConfig(steps=steps, guidance=2.0)), waits
            finally:
                torch.cuda.set_sync_debug_mode("default")

    for objective in ("masked", "next"):
        (first, *_), few = sample(objective, 2, range(4))
        (again, *others), _ = sample(objective, 2, (0, 5, 6, 7))
        assert (first == again).all() and (first != others[0]).any()
        assert len(sample(objective, 8, range(4))[1]) == len(few)


def test_compiled_training_learns_as_uncompiled_does(video, device):
    torch.compiler.reset()
    video = video.to(device)
    books = QuantizerConfig(8, VQConfig(size=256, warmup=0), VQConfig(size=256, warmup=0), DifferentialConfig())
    losses: list[list[float]] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        tokenizer = VideoTokenizer(TokenizerConfig(quantizer=books)).train().to(device)
        discriminator = Discriminator(DiscriminatorConfig(channels=32, layers=2)).to(device)
        use_training_layers(tokenizer)
        if compiled:
            tokenizer.compile_training()
            discriminator.compile_training()
        optimizer = torch.optim.AdamW([*tokenizer.parameters(), *discriminator.parameters()], lr=2e-4)
        found = []
        # Dead codes are replaced in the first step and the eleventh.
        for _ in range(12):
            with torch.autocast(device.type, torch.bfloat16):
                out = tokenizer(video)
                logits = discriminator(torch.cat([video, out.reconstruction.float()]))
            loss = (out.reconstruction.float() - video).square().mean() + out.commitment_loss
            found.append(float(loss.detach()))
            (loss + logits.float().square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[1][-1] < losses[1][0]
