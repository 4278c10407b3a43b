"""Rate of encoding and decoding steps by their shape, as one JSON line per measurement.

    python benchmarks/steps.py base --device cuda --dtype bfloat16 --mode captured --shapes 1x1,1x9,8x9,32x9

The rate is that of what `vidvq tokenize` runs: pixels travel to the device as bytes while the step before is computed,
and codes come back. The mode ``triton`` captures the encoder's Triton kernels. ``--profile`` prints the dearest kernels
of each step to the standard error.
"""

import json
from collections.abc import Callable
from statistics import median

import click
import torch
from flops import count_gflop
from model import load, matmul, timed
from torch.profiler import ProfilerActivity, profile

from vidvq.model.device_copy import DeviceCopier
from vidvq.model.launches import LaunchCounter
from vidvq.model.step_shape import StepShape
from vidvq.model.streaming import prepare_step
from vidvq.tokenize.encode import pending_codes
from vidvq.train.profiler import operator_table

# Calls per timed round. Each is waited for after the next one is queued, as in a job.
CALLS = 4
MODES = ("eager", "compiled", "captured", "triton")


@click.command()
@click.argument("size", default="base")
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--mode", type=click.Choice(MODES), default="eager", show_default=True)
@click.option("--shapes", default="1x1,8x9", show_default=True, help="Streams x groups, separated by commas.")
@click.option("--side", default=256, show_default=True, help="Height and width of a frame (pixels).")
@click.option("--rounds", default=5, show_default=True)
@click.option("--profile", "profiled", is_flag=True, help="Print the dearest kernels.")
def main(size: str, device: str, dtype: str, mode: str, shapes: str, side: int, rounds: int, profiled: bool) -> None:
    """Measure one SIZE of configs/."""
    kind = getattr(torch, dtype)
    product = matmul(device, kind)
    peak = count_gflop(product) / median([timed(product, device) for _ in range(rounds + 1)][1:])
    for text in shapes.split(","):
        streams, groups = map(int, text.split("x"))
        tokenizer = load(size, "4x8x8").to(device)
        tokenizer.use_half(kind)
        tokenizer.step_shape = tokenizer.decode_shape = shape = StepShape(streams, groups)
        tokenizer.checks_range = False
        frames = shape.num_frames(tokenizer.temporal_factor, first=True)
        pixels = torch.randint(0, 256, (streams, frames, side, side, 3), dtype=torch.uint8)
        pixels = pixels.pin_memory() if device != "cpu" else pixels
        # In inference mode, operators would not be decomposed before they are counted.
        with torch.no_grad():
            codes, _ = tokenizer.encode_step(prepare_step(tokenizer, pixels, None))
            copy = DeviceCopier(tokenizer.device)
            calls = {
                "encode": lambda t=tokenizer, p=pixels, copy=copy: pending_codes(
                    t.encode_step(prepare_step(t, copy(p), None))[0]
                ),
                "decode": lambda t=tokenizer, c=codes: t.decode_step(c),
            }
            gflop = {name: count_gflop(call) for name, call in calls.items()}
            launches = {name: count_launches(call) for name, call in calls.items()}
            if mode == "triton":
                tokenizer.use_triton()
                del calls["decode"]
            if mode != "eager":
                tokenizer.compile_steps(capture=mode != "compiled")
            for name, call in calls.items():
                # The first calls compile and record.
                first_s = timed(call, device)
                seconds = median([timed(lambda: queue(call), device) for _ in range(rounds)]) / CALLS  # noqa: B023
                row = {"size": size, "step": name, "shape": text, "mode": mode, "dtype": dtype, "device": device}
                row |= {"frames_per_s": round(streams * frames / seconds, 1), "first_s": round(first_s, 2)}
                row |= {"operators_per_frame": round(launches[name] / (streams * frames), 3)}
                print(json.dumps(row | {"share_of_peak": round(gflop[name] / seconds / peak, 4)}), flush=True)
                if profiled:
                    click.echo("\n".join(dearest(call, device)), err=True)


def queue(call: Callable[[], object]) -> None:
    """Run some calls; the results of each are waited for after the next one is queued."""
    pending: object = None
    for _ in range(CALLS):
        pending, found = call(), pending
        if callable(found):
            found()
    if callable(pending):
        pending()


def dearest(call: Callable[[], object], device: str) -> list[str]:
    """Return the lines of a table of the dearest kernels of a call."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    with profile(activities=activities) as recorded:
        timed(call, device)
    return operator_table(recorded.key_averages(), device != "cpu", steps=1)


def count_launches(call: Callable[[], object]) -> int:
    """Count the operators of a call that is not compiled, without views."""
    with LaunchCounter() as counted:
        call()
    return counted.kernels.total()


if __name__ == "__main__":
    main()
