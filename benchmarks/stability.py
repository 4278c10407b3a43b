"""Stability of adversarial training: the same short GAN run with ten seeds, on real video.

    python benchmarks/stability.py --train VIDEOS --held-out VIDEOS --out runs/stability

A run uses configs/nano.yaml with a smaller model, smaller codebooks and 50 times its adversarial weight (0.1, as in the
larger configs), small enough for one core: 180 steps without the adversarial loss, 120 with it. A run is stable if all
losses are finite, at least half of each codebook is used in every window of 25 steps after initialization, and the
held-out PSNR of the averaged weights never drops more than 2 dB below its best since the adversarial loss started. The
exit code is 1 if any run is unstable. Existing runs are reused.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import click

from vidvq import config as settings
from vidvq.shard import ShardConfig, run_shard
from vidvq.storage import write_atomic

RUNS, STEPS, START, WARMUP, WINDOW = 10, 300, 180, 60, 25
MIN_USAGE, MAX_DROP_DB = 0.5, 2.0
_RUN = [
    f"steps={STEPS}",
    "model.encoder={channels: [48, 96], blocks: [1, 1]}",
    "model.decoder={channels: [48, 96], blocks: [1, 1]}",
    f"model.quantizer={{dim: 16, spatial: {{kind: vq, size: 128, warmup: {WARMUP}}}, "
    f"temporal: {{kind: vq, size: 256, warmup: {WARMUP}}}}}",
    "discriminator_optimizer.lr=1.0e-3",
    f"loss.adversarial={{begin: 0.0, end: 0.1, first: {START}, last: {START + 20}}}",
    f"loss.adversarial_start={START}",
    "loss.discriminator_warmup=20",
    "ema_decay=0.95",
    "log_every=1",
    f"usage_every={WINDOW}",
    f"checkpoint_every={STEPS}",
    "evaluation.every=10",
    "evaluation.num_clips=100",
    "evaluation.shown=0",
]
_CLIPS = {
    "train": ["clip.num_frames=17", "clip.min_frames=9", "clip.short_side=72", "clip.multiple=8"],
    # The start of each video only.
    "held-out": [
        "clip.num_frames=9",
        "clip.min_frames=9",
        "clip.size=[64, 64]",
        "clip.fit=crop",
        "clip.stride=1000000",
    ],
}


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
        seed: seed of the run.
        finite: whether all losses are finite and no batch was skipped.
        usage: minimum fraction of codes in use in any window after initialization, by codebook.
        before: held-out PSNR when the adversarial loss starts (dB).
        max_drop: maximum drop of the held-out PSNR below its best since then (dB).
        after: held-out PSNR at the end (dB).
    """

    seed: int
    finite: bool
    usage: dict[str, float]
    before: float
    max_drop: float
    after: float

    @property
    def is_stable(self) -> bool:
        """Whether the run meets all criteria."""
        return self.finite and min(self.usage.values()) > MIN_USAGE and self.max_drop <= MAX_DROP_DB


@click.command()
@click.option(
    "--train", "train", multiple=True, required=True, help="Training video or folder of videos; may be repeated."
)
@click.option(
    "--held-out", multiple=True, required=True, help="Video or folder of videos to score on; may be repeated."
)
@click.option("--out", default="runs/stability", type=click.Path(path_type=Path), show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, help="Run only this seed; may be repeated.")
def main(train: tuple[str, ...], held_out: tuple[str, ...], out: Path, seeds: tuple[int, ...]) -> None:
    """Run all missing seeds, and write OUT/table.md."""
    for part, videos in (("train", train), ("held-out", held_out)):
        policy = settings.apply_overrides({}, [*_CLIPS[part], "runtime.workers=0"])
        run_shard(list(videos), out / part, settings.validate(ShardConfig, policy))
    wanted = seeds or tuple(range(RUNS))
    for seed in wanted:
        _run(out, seed)
    outcomes = [_outcome(out, seed) for seed in wanted]
    write_atomic(out / "table.md", _table(outcomes).encode())
    click.echo(_table(outcomes))
    sys.exit(0 if all(outcome.is_stable for outcome in outcomes) else 1)


def _run(out: Path, seed: int) -> None:
    run = out / f"seed-{seed}"
    where = [f"data.clips={out / 'train'}", f"evaluation.clips={out / 'held-out'}", f"out={run}", f"seed={seed}"]
    command = [sys.executable, "-m", "vidvq", "train", "nano", *where, *_RUN]
    run.mkdir(parents=True, exist_ok=True)
    with (run / "log").open("a") as log:
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=log, check=True)


def _outcome(out: Path, seed: int) -> Outcome:
    run = out / f"seed-{seed}"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [value for line in lines for name, value in line.items() if name in {"loss", "discriminator"}]
    settled = [line for line in lines if "usage_spatial" in line and line["step"] >= WARMUP + WINDOW]
    usage = {book: min(line[f"usage_{book}"] for line in settled) for book in ("spatial", "temporal")}
    scores = {line["step"]: line["held_out_psnr"] for line in lines if "held_out_psnr" in line}
    later = [psnr for step, psnr in sorted(scores.items()) if step >= START]
    max_drop = max(max(later[: at + 1]) - psnr for at, psnr in enumerate(later))
    finite = all(map(isfinite, losses)) and " is skipped: " not in (run / "log").read_text()
    return Outcome(seed, finite, usage, scores[START], max_drop, scores[STEPS])


def _table(outcomes: list[Outcome]) -> str:
    head = "| seed | all finite | min usage: spatial | temporal | PSNR before, dB | max drop | at the end | stable |"
    lines = [head, "|---" * 8 + "|"]
    for run in outcomes:
        cells = [run.seed, "yes" if run.finite else "NO", *(f"{use:.0%}" for use in run.usage.values())]
        cells += [f"{run.before:.2f}", f"{run.max_drop:.2f}", f"{run.after:.2f}", "yes" if run.is_stable else "NO"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    stable = sum(run.is_stable for run in outcomes)
    return "\n".join([*lines, "", f"{stable} of {len(outcomes)} runs are stable.", ""])


if __name__ == "__main__":
    main()
