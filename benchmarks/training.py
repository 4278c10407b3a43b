"""Training steps of packaged configurations, as `vidvq train --profile` reports them; one JSON line for each.

    python benchmarks/training.py CLIPS small base vqgan-base-128 [--batch 16] [--steps 60] [KEY=VALUE]...

The discriminator trains from the first step, and codebooks start at once, so that a few steps cost what those of a long
run cost. The first third of the steps, which compiles, fills caches and is profiled, does not count. ``top`` has the
dearest kernels with their share of the device's time.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click

# What configurations of large runs start late, or need other files for.
FROM_THE_START = (
    "loss.adversarial=0.1 loss.adversarial_start=0 loss.discriminator_warmup=0 evaluation.clips=null "
    "model.quantizer.spatial.warmup=4 model.quantizer.temporal.warmup=4"
).split()
MEASURED = ("step_s", "data_wait", "mfu", "tflops", "frames_per_s", "memory_gib")
# The profiler's last step, after which a third of the steps must remain.
PROFILED = 10
NAME, TOP = 44, 5


@click.command()
@click.argument("clips", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("configs", nargs=-1, metavar="CONFIG... [KEY=VALUE]...")
@click.option("--batch", default=16, show_default=True, help="Clips per step.")
@click.option("--steps", default=60, show_default=True)
def main(clips: Path, configs: tuple[str, ...], batch: int, steps: int) -> None:
    """Measure steps of each CONFIG on CLIPS."""
    names = [entry for entry in configs if "=" not in entry]
    overrides = [entry for entry in configs if "=" in entry]
    third = max(steps // 3, PROFILED)
    failed = False
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "run")
            command = [sys.executable, "-m", "vidvq", "train", name, f"data.clips={clips}", f"out={out}", "--profile"]
            command += [f"steps={3 * third}", f"log_every={third}", f"checkpoint_every={3 * third}"]
            command += [f"data.batch_size={batch}", *FROM_THE_START, *overrides]
            if subprocess.run(command, check=False).returncode:
                failed = True
                continue
            print(
                json.dumps({"config": name, "batch": batch, "settings": " ".join(overrides)} | summary(out)), flush=True
            )
    sys.exit(failed)


def summary(run: Path) -> dict[str, Any]:
    """Summarize the metrics and the profile of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steady = [line for line in lines if "step_s" in line][1:]
    found = {name: round(median(line[name] for line in steady), 4) for name in MEASURED if name in steady[0]}
    return found | parse_profile((run / "profile.txt").read_text())


def parse_profile(text: str) -> dict[str, Any]:
    """Return launches, reads, copies and the dearest kernels of a step from ``profile.txt``."""
    parts, _, operators = text.partition("GPU time" if "kernel, GPU time" in text else "self CPU time")
    found: dict[str, Any] = {}
    for line in parts.splitlines():
        label, value = line[:NAME].strip(), line[NAME:].split()
        if label.endswith("per step"):
            found[label.removesuffix(" per step").replace(" ", "_")] = float(value[0])
    rows = [line for line in operators.splitlines()[1:] if line.strip()]
    found["top"] = [f"{line[:NAME].strip()} {line[NAME:].split()[1]}" for line in rows[:TOP]]
    return found


if __name__ == "__main__":
    main()
