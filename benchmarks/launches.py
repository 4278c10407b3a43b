"""Counts what a GPU would be asked for, without one, and prints one JSON line.

    python benchmarks/launches.py

The search of the nearest codes counts as one kernel, which it is on a GPU (two for few latents). Counts are of size
base where none is named.

encode_kernels_per_frame  kernels that a step of `vidvq tokenize` launches, with the step shape of a GPU
decode_kernels_per_frame  the same for a step of decoding
h2d_bytes_per_frame       bytes that a step copies to the device, per subpixel (channel of a pixel)
device_reads_per_step     times that a training step waits for a value of the device
encode_kernels_per_frame_differential, decode_kernels_per_frame_differential
                          the same with the configuration of the bundled tokenizer, which quantizes group by group
graph_breaks              breaks that torch.compile finds in encoding, decoding and the training forward pass
handover_ratio            rate of frames from a decoding process through shared memory, over that through a pipe

Compiled steps launch fewer kernels; captured steps are one launch. The ratio is measured, all others are counts. The
exit code is 1 if a figure is out of its bounds.
"""

import json
import sys
from unittest.mock import patch

import torch
from handover import handover_ratio

from vidvq import config as settings
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.launches import LaunchCounter
from vidvq.model.quantize import search
from vidvq.model.step_shape import StepShape
from vidvq.model.streaming import prepare_step
from vidvq.tokenize.config import GPU_STREAMS

GROUPS, SIDE = 9, 32
AT_MOST = {
    "encode_kernels_per_frame": 2,
    "decode_kernels_per_frame": 4,
    "h2d_bytes_per_frame": 1,
    "device_reads_per_step": 1,
    "graph_breaks": 0,
}
AT_MOST |= {f"{name}_differential": AT_MOST[name] for name in ("encode_kernels_per_frame", "decode_kernels_per_frame")}
AT_LEAST = {"handover_ratio": 2}

_blockwise = search.nearest_codes_blockwise


def main() -> int:
    """Print the JSON line; returns the exit code."""
    found = count() | {"handover_ratio": round(handover_ratio(), 2)}
    print(json.dumps(found))
    missed = [f"{name} is {found[name]}, above {most}" for name, most in AT_MOST.items() if found[name] > most]
    missed += [f"{name} is {found[name]}, below {least}" for name, least in AT_LEAST.items() if found[name] < least]
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


def count() -> dict[str, float]:
    """Count kernels, copies, reads and graph breaks."""
    tokenizer, codes, kernels = count_kernels("base")
    breaks = graph_breaks(tokenizer, codes)
    # Pixels are copied to any other device alike.
    tokenizer.to("meta")
    pixels = _pixels(tokenizer)
    with LaunchCounter() as copying:
        prepare_step(tokenizer, pixels, None)
    differential = count_kernels("bundled")[2]
    return {
        **kernels,
        **{f"{name}_differential": number for name, number in differential.items()},
        "h2d_bytes_per_frame": copying.bytes_to_device / pixels.numel(),
        "device_reads_per_step": reads_per_step(),
        "graph_breaks": breaks,
    }


def count_kernels(size: str) -> tuple[VideoTokenizer, torch.Tensor, dict[str, float]]:
    """Count the kernels of steps of a packaged configuration, not compiled; also returns the tokenizer and codes."""
    tokenizer = load(size)
    tokenizer.step_shape = tokenizer.decode_shape = StepShape(GPU_STREAMS, GROUPS)
    tokenizer.checks_range = False
    pixels = _pixels(tokenizer)
    # Not in inference mode, which does not decompose operators before they are counted.
    with torch.no_grad(), patch.object(search, "nearest_codes_blockwise", _search):
        with LaunchCounter() as encoding:
            codes, _ = tokenizer.encode_step(prepare_step(tokenizer, pixels, None))
        with LaunchCounter() as decoding:
            tokenizer.decode_rest(tokenizer.decode_step(codes)[1])
    total = pixels.shape[0] * pixels.shape[1]
    return (
        tokenizer,
        codes,
        {
            "encode_kernels_per_frame": round(encoding.kernels.total() / total, 3),
            "decode_kernels_per_frame": round(decoding.kernels.total() / total, 3),
        },
    )


def _pixels(tokenizer: VideoTokenizer) -> torch.Tensor:
    frames = tokenizer.step_shape.num_frames(tokenizer.temporal_factor, first=True)
    return torch.zeros(tokenizer.step_shape.streams, frames, SIDE, SIDE, 3, dtype=torch.uint8)


@torch.library.custom_op("vidvq_benchmark::search", mutates_args=())
def _search(latents: torch.Tensor, codebook: torch.Tensor, half_norms: torch.Tensor) -> torch.Tensor:
    """The search as one operator, as on a GPU."""
    return _blockwise(latents, codebook, half_norms)


def load(size: str) -> VideoTokenizer:
    """Create the tokenizer of a packaged configuration with random weights."""
    data = settings.read_yaml(settings.find_config(size))["model"]
    return VideoTokenizer(settings.validate(TokenizerConfig, data)).eval()


def graph_breaks(tokenizer: VideoTokenizer, codes: torch.Tensor) -> int:
    """Count the graph breaks of encoding, decoding and, after the warm-up, of the training forward pass."""
    shape = tokenizer.step_shape
    tokenizer.step_shape = tokenizer.decode_shape = StepShape(1, 2)
    video = torch.zeros(1, 3, 1 + tokenizer.temporal_factor, SIDE, SIDE)
    breaks = 0
    with torch.no_grad():
        for call, given in ((tokenizer.encode, video), (tokenizer.decode, codes[:1, :2].clone())):
            breaks += torch._dynamo.explain(call)(given).graph_break_count
        trained = VideoTokenizer(tokenizer.config).train()
        trained.quantizer.skip_warmup()
        trained.quantizer.begin_pass(groups=2)
        breaks += torch._dynamo.explain(trained._reconstruct)(video).graph_break_count
    tokenizer.step_shape = tokenizer.decode_shape = shape
    return breaks


def reads_per_step() -> int:
    """Count the values that a training step reads."""
    from vidvq.train import TrainConfig, trainer
    from vidvq.train.initialization import initial_state
    from vidvq.training.distributed import init_distributed, shutdown_distributed

    fused = {"fused": True}
    small = {"channels": [8, 8], "blocks": [1, 1]}
    config = settings.validate(
        TrainConfig,
        {
            "data": {"clips": "unused", "batch_size": 1},
            "model": {"encoder": small, "decoder": small},
            "generator": fused,
            "discriminator_optimizer": fused,
        },
    )
    copies: list[int] = []
    read = trainer.to_host
    trainer.to_host = lambda tensor: (copies.append(1), read(tensor))[1]
    context = init_distributed(60)
    try:
        made = trainer.Trainer(config, context)
        made.load_state(initial_state(config, None))
        video = torch.zeros(1, 3, 5, 32, 32)
        for _ in range(2):
            copies.clear()
            with LaunchCounter() as counted:
                made.forward_backward(video, 0)
                made.finish_step()
    finally:
        trainer.to_host = read
        shutdown_distributed()
    return counted.reads + len(copies)


if __name__ == "__main__":
    sys.exit(main())
