"""The memory that a trial finds is enough for recorded steps."""

import os
from math import isqrt

import pytest
import torch

from vidvq.formats.execution import Execution
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.tokenize.gpu_memory import fit_memory

pytestmark = pytest.mark.gpu


@pytest.fixture
def limit():
    """Leave torch 2 GiB of the memory of the GPU."""
    if not torch.cuda.is_available():
        if os.environ.get("VIDVQ_REQUIRE_GPU") == "1":
            pytest.fail("VIDVQ_REQUIRE_GPU=1 and there is no CUDA device")
        pytest.skip("no CUDA device")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(((2 << 30) + torch.cuda.memory_reserved()) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_steps_of_several_sizes_are_recorded_in_the_memory_that_a_trial_found(limit):
    torch.compiler.reset()
    tokenizer = VideoTokenizer(TokenizerConfig()).eval().to("cuda")
    tokenizer.use_half(torch.bfloat16)
    found = fit_memory(tokenizer, Execution("cuda", "bf16", True, 8, 9, 1 << 27), decodes=False)
    assert found.max_pixels < 1 << 27
    tokenizer.compile_steps(capture=True)
    shape, s = tokenizer.step_shape, tokenizer.spatial_factor
    side = isqrt(found.max_pixels // (shape.streams * shape.groups * tokenizer.temporal_factor)) // s * s
    frames = shape.num_frames(tokenizer.temporal_factor, first=True)
    for height in (side, side - s):
        video = torch.zeros(shape.streams, 3, frames, height, side, dtype=torch.uint8, device="cuda")
        with torch.inference_mode():
            codes, _ = tokenizer.encode_step(video)
        assert codes.shape[:2] == (shape.streams, shape.groups)
