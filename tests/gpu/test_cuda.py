"""What only a CUDA device shows. Imports the model alone, so that it runs where nothing else is installed."""

import os

import pytest
import torch

from vidvq.model import TokenizerConfig, VideoTokenizer

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


def test_tokens_agree_with_the_cpu_for_the_most_part(tokenizer, video, device):
    on_cpu = tokenizer.cpu().encode(video.cpu())
    on_device = tokenizer.to(device).encode(video.to(device)).cpu()
    assert (on_cpu == on_device).float().mean() > 0.99


def test_a_bf16_step_trains_and_quantizes_in_fp32(video, device):
    tokenizer = VideoTokenizer(TokenizerConfig()).to(device, torch.bfloat16).train()
    out = tokenizer(video.to(device, torch.bfloat16))
    (out.reconstruction.float().square().mean() + out.commitment_loss).backward()
    assert tokenizer.encoder.head.weight.grad is not None
    assert tokenizer.encoder.head.weight.grad.isfinite().all()
    assert {buffer.dtype for buffer in tokenizer.quantizer.buffers() if buffer.is_floating_point()} == {torch.float32}
