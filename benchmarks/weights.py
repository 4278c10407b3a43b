"""Train, package and score the tokenizer that ships with vidvq.

    python benchmarks/weights.py --train VIDEOS --held-out VIDEOS [--config bundled] [--work runs/weights]
        [--start CHECKPOINT] [--finish CONFIG] [--budget-s SECONDS] [--out vidvq/weights] [KEY=VALUE]...
    python benchmarks/weights.py --clips FOLDER [...]

Shards all videos, trains with the config and the settings, then with a second config that continues (the decoder alone,
say), and writes the newest checkpoint to OUT in half precision. With a budget, a few steps are timed first, and each
run gets as many steps as fit; its schedule ends with them. A run that takes much longer is stopped. Then
`vidvq tokenize`, `decode` and `evaluate` score these files on the held-out clips, and the table is written to
OUT/README.md. Completed stages in WORK are reused. With ``--clips``, the finished directories FOLDER/train and
FOLDER/heldout take the place of the videos.
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from linear_path import extend
from lookahead import LOOKAHEAD
from overlap import OVERLAP

from vidvq.cli.main import TERMINATED
from vidvq.config import find_config, load
from vidvq.formats.checkpoint import BUNDLED, WEIGHTS, find_checkpoint, read_checkpoint, write_checkpoint
from vidvq.storage import read_json, write_atomic
from vidvq.train.config import TrainConfig

MAX_MIB = 12
TIMED_STEPS = 12
# Share of a budget for the second run.
FINISHING = 0.2
# What a run may take beyond its budget, its start included, before it is stopped: later steps may take longer.
SLACK, SLACK_S = 0.1, 30
# Without Ray, which a machine for a short run may lack. Compiling takes longer than scoring.
INLINE = ("runtime.workers=0", "runtime.compile=off")


@click.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--train", "training", multiple=True, help="Training videos; may be repeated.")
@click.option("--held-out", multiple=True, help="Videos to score on; may be repeated.")
@click.option("--clips", type=Path, help="Folder of clip shards, train and heldout, in place of videos.")
@click.option("--config", default="bundled", show_default=True, help="Config of the training run.")
@click.option(
    "--work",
    type=Path,
    default=Path("runs/weights"),
    show_default=True,
    help="Folder for clips, training run and scores.",
)
@click.option("--start", help="Checkpoint to train further; with new codebooks if the config has others.")
@click.option("--finish", help="Config of a second run, which starts from the first.")
@click.option("--history", default="", help="Sentences on the start, for the README of the weights.")
@click.option(
    "--out", type=Path, default=BUNDLED, show_default="vidvq/weights", help="Folder for the weights and their README."
)
@click.option("--budget-s", type=int, help="Time for training (seconds); the config gives the steps otherwise.")
def main(
    overrides: tuple[str, ...],
    training: tuple[str, ...],
    held_out: tuple[str, ...],
    clips: Path | None,
    config: str,
    work: Path,
    start: str | None,
    finish: str | None,
    history: str,
    out: Path,
    budget_s: int | None,
) -> None:
    """Train, package and score the tokenizer; KEY=VALUE are settings of the training runs."""
    if not clips and not (training and held_out):
        raise click.UsageError("give --train and --held-out videos, or --clips")
    folders = {name: (clips or work / "clips") / name for name in ("train", "heldout")}
    for videos, folder in zip((training, held_out), folders.values(), strict=True):
        if not clips:
            vidvq("shard", *videos, "--out", str(folder), "--config", "demo-shard", "clips_per_shard=16")
    shared = [f"data.clips={folders['train']}", f"evaluation.clips={folders['heldout']}"]
    runs = [
        (
            config,
            _start(find_checkpoint(Path(start)), folders["train"], config, work / "start") if start else [],
            work / "train",
        )
    ]
    if finish:
        runs.append((finish, [f"start_from={work / 'train'}"], work / "finish"))
    trained = []
    for name, settings, run in runs:
        settings, seconds = [*shared, *settings, *overrides], None
        if budget_s:
            share = (FINISHING if run.name == "finish" else 1 - FINISHING) if finish else 1
            seconds = int(budget_s * share)
            settings.append(f"steps={steps_within(seconds, name, settings, run.with_suffix('.timing'))}")
        vidvq("train", name, *settings, f"out={run}", limit_s=seconds and seconds + max(SLACK_S, SLACK * seconds))
        trained.append((name, bundle(run, out)))
    for folder in ("tokens", "decoded"):
        shutil.rmtree(work / folder, ignore_errors=True)
    names = (folders["heldout"], work / "tokens", work / "decoded", work / "scores.json")
    held, tokens, decoded, scores = map(str, names)
    vidvq("tokenize", held, "--checkpoint", str(out), "--out", tokens, *INLINE)
    vidvq("decode", tokens, "--checkpoint", str(out), "--out", decoded, "format=png")
    vidvq("evaluate", held, decoded, "--tokens", tokens, "--out", scores)
    found = read_json(Path(scores))
    write_atomic(out / "README.md", card(found, trained, f"{history}\n\n" if history else "").encode())
    click.echo(json.dumps(totals(found) | {"steps": sum(step for _, step in trained)}))


def _start(checkpoint: Path, clips: Path, config: str, out: Path) -> list[str]:
    """Return the settings that start from a checkpoint; parts that the config has and it lacks are fitted to clips."""
    loaded, model = load(TrainConfig, find_config(config), []), read_checkpoint(checkpoint).config["model"]
    if loaded.train_only == "decoder":
        for names, part in ((("lookahead", "denoise"), LOOKAHEAD), (("overlap",), OVERLAP)):
            if any(getattr(loaded.model.decoder, name) and not model["decoder"].get(name) for name in names):
                fitted = out / names[0]
                if not fitted.exists():
                    part.add(checkpoint, [clips], loaded, fitted, every=2)
                checkpoint = fitted
        return [f"start_from={checkpoint}"]
    if loaded.model.linear and not model.get("linear"):
        if not out.exists():
            extend(checkpoint, clips, loaded, out, every=3)
        return [f"start_from={out}"]
    same = model["quantizer"] == loaded.model.to_dict()["quantizer"]
    return [f"start_from={checkpoint}", *([] if same else ["new_quantizer=true"])]


def steps_within(budget_s: int, config: str, settings: list[str], out: Path) -> int:
    """Return the steps that fit a budget, from the time of a few, which ``out`` keeps for a resumed run."""
    if not (out / "metrics.jsonl").exists() or not _step_times(out):
        shutil.rmtree(out, ignore_errors=True)
        timed = [f"steps={TIMED_STEPS}", "log_every=2", "evaluation.clips=null"]
        vidvq("train", config, *settings, f"out={out}", *timed)
    seconds = statistics.median(_step_times(out))
    steps = max(int(budget_s / seconds), 1)
    click.echo(f"{seconds:.2f} s per step: training ends at step {steps}, after about {budget_s} s")
    return steps


def _step_times(out: Path) -> list[float]:
    lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    return [line["step_s"] for line in lines if "step_s" in line]


def vidvq(*arguments: str, limit_s: float | None = None) -> None:
    """Run a vidvq command; exit if it fails. Training is stopped after ``limit_s`` seconds, and saves its step."""
    process = subprocess.Popen([sys.executable, "-m", "vidvq", *arguments])
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        code = process.wait()
        code = 0 if code == TERMINATED else code
    if code:
        sys.exit(code)


def bundle(run: Path, out: Path) -> int:
    """Write the newest checkpoint of a run to a folder in half precision; returns its step.

    The best checkpoint would bias the table, because it is selected on the same held-out clips.
    """
    checkpoint = read_checkpoint(find_checkpoint(run))
    tensors = {name: tensor.astype(np.float16) for name, tensor in checkpoint.tensors.items()}
    step = checkpoint.config["step"]
    write_checkpoint(out, checkpoint.config["model"], checkpoint.config["preprocessing"], tensors, step)
    size = (out / WEIGHTS).stat().st_size / 2**20
    if size > MAX_MIB:
        sys.exit(f"{out / WEIGHTS} has {size:.3f} MiB; at most {MAX_MIB} MiB may ship")
    return step


def card(scores: dict[str, Any], trained: list[tuple[str, int]], history: str) -> str:
    """Render the README of the weights, with held-out scores by video.

    Args:
        scores: JSON that ``vidvq evaluate`` wrote.
        trained: config and steps of each run.
        history: what came before the first of them.
    """
    runs = ", then ".join(f"by `configs/{name}.yaml` for {step} steps" for name, step in trained)
    videos: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for clip in scores["clips"]:
        videos["/".join(Path(clip["source"]).parts[-2:])].append(clip)
    rows = [_row(name, clips) for name, clips in sorted(videos.items())]
    every = [clip for clips in videos.values() for clip in clips]
    use = "; ".join(f"{book['used']} of {book['size']} {book['name']} codes" for book in scores["codebooks"])
    return f"""# The tokenizer that ships with vidvq

{history}Trained {runs}; its weights are kept in half precision.
Token fingerprint `{scores["token_fingerprint"][:12]}`. It is a small model for trying vidvq out and for tests of
a pipeline, not for training a video generator: on nearly static videos its frames are worse than the mean frame.

Scores on whole held-out videos, with a short side of 128 pixels, at their own rate; means over clips of at most 33
frames. "Mean frame" is the score of the clip's mean frame, repeated. Codes in use on these videos:
{use}.

| video | clips | PSNR, dB | SSIM | mean frame: PSNR | SSIM | bits/pixel |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
{_row("**all**", every)}

The weights and this table are the output of
    make weights TRAIN="VIDEOS..." HELD_OUT="VIDEOS..." [START=CHECKPOINT] [FINISH=CONFIG] [BUDGET_S=SECONDS]
"""


def totals(scores: dict[str, Any]) -> dict[str, float]:
    """Return the means over all clips."""
    fields = ("psnr", "ssim", "mean_frame_psnr", "mean_frame_ssim", "bits_per_pixel")
    return {field: round(statistics.mean(clip[field] for clip in scores["clips"]), 4) for field in fields}


def _row(name: str, clips: list[dict[str, Any]]) -> str:
    def mean(field: str) -> float:
        return statistics.mean(clip[field] for clip in clips)

    return (
        f"| {name} | {len(clips)} | {mean('psnr'):.2f} | {mean('ssim'):.3f} | {mean('mean_frame_psnr'):.2f} | "
        f"{mean('mean_frame_ssim'):.3f} | {mean('bits_per_pixel'):.3f} |"
    )


if __name__ == "__main__":
    main()
