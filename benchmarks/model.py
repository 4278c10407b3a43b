"""Cost of the tokenizers: parameters, FLOPs, time relative to the peak Conv3d rate, peak memory and bits per pixel.

    python benchmarks/model.py            # the sizes of configs/, 17x256x256, fp32
    python benchmarks/model.py base --agreement

All measurements are interleaved and reported as medians, so that ratios remain meaningful on a busy machine.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import click
import torch
from flops import count_gflop
from torch import Tensor, nn

from vidvq import config as settings
from vidvq.model import TokenizerConfig, VideoTokenizer

SIZES = ("nano", "small", "base", "large")
COMPRESSIONS = {"4x8x8": (4, 4), "8x8x8": (8, 4), "8x16x16": (8, 8), "4x16x16": (4, 8)}
FRAMES, SIDE = 17, 256
ROUNDS = 7
# Side of two square matrices, whose product measures the peak rate of the device.
MATMUL = 2048 if not torch.cuda.is_available() else 8192
COLUMNS = (
    *("size", "", "parameters, M", "GFLOP", "s", "s x Conv3d rate / GFLOP", "of the product's rate"),
    *("peak MB", "bits/pixel"),
)
# Channels, and frames, height and width of the output: close to the layers of the networks.
CONV3D = ((64, 8, 64, 64), (128, 8, 32, 32), (256, 4, 32, 32), (512, 4, 16, 16))


@click.command()
@click.argument("sizes", nargs=-1)
@click.option("--compression", type=click.Choice(list(COMPRESSIONS)), default="4x8x8", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--compiled", is_flag=True, help="Compile encoders and decoders.")
@click.option("--batch", default=1, show_default=True, help="Clips per call.")
@click.option("--agreement", is_flag=True, help="Report the fraction of tokens that are the same in bf16 and compiled.")
@click.option("--side", default=SIDE, show_default=True, help="Height and width of a frame (pixels).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines in place of a table.")
@click.option("--peak", is_flag=True, hidden=True, help="Encode once and print the peak memory of this process.")
def main(
    sizes: tuple[str, ...],
    compression: str,
    device: str,
    dtype: str,
    compiled: bool,
    batch: int,
    agreement: bool,
    side: int,
    as_json: bool,
    peak: bool,
) -> None:
    """Measure the SIZES (all by default)."""
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    video = (torch.rand(batch, 3, FRAMES, side, side) * 2 - 1).to(device)
    tokenizers = {size: load(size, compression).to(device, kind) for size in sizes or SIZES}
    if peak:
        next(iter(tokenizers.values())).encode(video)
        # Not getrusage: its maximum includes the memory of the parent before exec.
        status = Path("/proc/self/status").read_text()
        click.echo(f"{int(status.partition('VmHWM:')[2].split()[0]) / 1024:.0f}")
        return
    if agreement:
        for size, tokenizer in tokenizers.items():
            shares = {name: f"{share:.2%}" for name, share in agreements(tokenizer, video)}
            named = ", ".join(f"{name} {share}" for name, share in shares.items())
            click.echo(json.dumps({"size": size} | shares) if as_json else f"{size}: {named}")
        return
    for tokenizer in tokenizers.values() if compiled else ():
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
    codes = {size: tokenizer.encode(video) for size, tokenizer in tokenizers.items()}
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for size, tokenizer in tokenizers.items():
        calls[size, "encode"] = lambda t=tokenizer: t.encode(video)
        calls[size, "decode"] = lambda t=tokenizer, c=codes[size]: t.decode(c)
    convs = {shape: conv3d(shape, device, kind) for shape in CONV3D}
    peak_rate = matmul(device, kind)
    times: dict[object, list[float]] = {}
    for index in range(ROUNDS + 1):
        for name, call in {**convs, "matmul": peak_rate, **calls}.items():
            seconds = timed(call, device)
            # The first round warms up.
            if index:
                times.setdefault(name, []).append(seconds)
    rate = max(27 * 2 * c * c * t * h * w / 1e9 / median(times[c, t, h, w]) for c, t, h, w in CONV3D)
    product = 2 * MATMUL**3 / 1e9 / median(times["matmul"])
    if not as_json:
        click.echo(f"{compression} of {batch}x{FRAMES}x{side}x{side}, {dtype} on {device}, torch {torch.__version__},")
        click.echo(f"{torch.get_num_threads()} threads; medians of {ROUNDS}. GFLOP/s of the best Conv3d: {rate:.0f},")
        click.echo(f"of a product of matrices: {product:.0f}. Load of the machine: {os.getloadavg()[0]:.1f}\n")
        click.echo(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for (size, verb), call in calls.items():
        tokenizer = tokenizers[size]
        network = tokenizer.encoder if verb == "encode" else tokenizer.decoder
        parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        gflop, seconds = count_gflop(call), median(times[size, verb])
        memory = peak_memory(size, compression, side) if verb == "encode" and device == "cpu" else ""
        bits = f"{tokenizer.bits_per_pixel(FRAMES, side, side):.3f}" if verb == "encode" else ""
        cost = f"{seconds * rate / gflop:.2f}", f"{gflop / seconds / product:.0%}"
        row = (size, verb, f"{parameters:.1f}", f"{gflop:.0f}", f"{seconds:.2f}", *cost, memory, bits)
        click.echo(json.dumps(dict(zip(COLUMNS, row, strict=True))) if as_json else f"| {' | '.join(row)} |")


def load(size: str, compression: str) -> VideoTokenizer:
    """Create the tokenizer of a packaged config with random weights, in eval mode."""
    frames, patch = COMPRESSIONS[compression]
    data = settings.read_yaml(settings.find_config(size))["model"] | {"temporal_factor": frames, "patch_size": patch}
    tokenizer = VideoTokenizer(settings.validate(TokenizerConfig, data)).eval()
    for name, parameter in tokenizer.named_parameters():
        # Blocks are initialized to the identity, unlike trained ones.
        if name.endswith("time.mix.weight"):
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)
    return tokenizer


def conv3d(shape: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Create a 3x3x3 convolution with a given output shape, without padding, so that kernels skip no counted zeros."""
    channels, *extent = shape
    layer = nn.Conv3d(channels, channels, 3).to(device, dtype, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x = torch.randn(1, channels, *(side + 2 for side in extent)).to(device, dtype)
    x = x.to(memory_format=torch.channels_last_3d)
    return lambda: layer(x)


def matmul(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Create a product of two large matrices."""
    left, right = (torch.randn(MATMUL, MATMUL, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right


def timed(call: Callable[[], object], device: str) -> float:
    """Measure the time of one call (seconds)."""
    started = perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return perf_counter() - started


def peak_memory(size: str, compression: str, side: int) -> str:
    """Measure the peak memory of a separate process that loads PyTorch and the tokenizer, and encodes (MB)."""
    command = [sys.executable, __file__, size, "--compression", compression, "--side", str(side), "--peak"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return done.stdout.strip()


def agreements(tokenizer: VideoTokenizer, video: Tensor) -> list[tuple[str, float]]:
    """Compute the fraction of tokens that equal those of fp32 in eager mode, by execution mode."""
    exact = tokenizer.float().encode(video)
    found = []
    if video.is_cuda:
        on_cpu = tokenizer.cpu().encode(video.cpu())
        found.append(("CPU", on_cpu.to(video.device)))
        tokenizer.to(video.device)
    compiled = VideoTokenizer(tokenizer.config).eval().to(video.device)
    compiled.load_inference_state_dict(tokenizer.inference_state_dict())
    compiled.encoder.compile()
    found.append(("compiled", compiled.encode(video)))
    found.append(("bf16", tokenizer.to(torch.bfloat16).encode(video)))
    return [(name, float((codes == exact).float().mean())) for name, codes in found]


if __name__ == "__main__":
    main()
