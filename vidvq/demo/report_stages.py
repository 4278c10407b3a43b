"""One-sentence summaries of the stages of a demo run, and the commands that repeat them."""

from pathlib import Path
from shlex import join

from vidvq.demo.report_run import DemoRun, Split
from vidvq.demo.stages import stages
from vidvq.log import in_bytes


def commands(run: DemoRun) -> list[str]:
    """Commands that repeat this run; the trainings use their resolved configs."""
    lines = stages(run.out) | {
        "train": ["train", str(run.out / "train" / "config.yaml")],
        "generate train": ["generate", "train", "--config", str(run.out / "generator" / "config.yaml")],
    }
    return [join(["vidvq", *line]) for name, line in lines.items() if name in run.seconds]


def in_time(seconds: float) -> str:
    """Format a duration, such as ``7 min 12 s`` or ``3.4 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def counted(count: int, noun: str) -> str:
    """Format a count with its noun, such as ``1 clip`` or ``30,512 tokens``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def describe_stage(run: DemoRun, stage: str) -> str:
    """Summary of the inputs and outputs of a stage."""
    verb, _, which = stage.partition(" ")
    if verb == "shard":
        return _sharded(run.splits[which])
    if which == "bundled":
        return _bundled(run, verb)
    if verb == "tokenize":
        return _tokenized(run.splits[which])
    if verb == "decode":
        return _decoded(run, which)
    if verb == "generate":
        return _generated(run, which)
    return _trained(run) if verb == "train" else _evaluated(run)


def _sharded(split: Split) -> str:
    account = split.clips
    lost = sum(reason["count"] for verdict in ("failed", "filtered") for reason in account[verdict].values())
    return (
        f"{counted(len(split.videos), 'video')}, {in_bytes(sum(split.videos.values()))} → "
        f"{counted(account['ok'], 'clip')} of {counted(split.frames, 'frame')} in "
        f"{counted(account['shards'], 'shard')}, {in_bytes(account['bytes'])}; "
        + (f"{lost} of {account['planned']} failed or filtered" if lost else "none failed")
    )


def _trained(run: DemoRun) -> str:
    data, steps = run.config["data"], run.metrics[-1]["step"]
    # The other lines are evaluations.
    lines = [line for line in run.metrics if "step_s" in line]
    step_s = sum(line["step_s"] for line in lines) / len(lines)
    wait = sum(line["data_wait"] for line in lines) / len(lines)
    return (
        f"{steps:,} steps of {data['batch_size']} crops, {data['num_frames']}×{data['crop']}×{data['crop']} each; "
        f"{step_s:.2f} s a step, {100 * wait:.1f} % of it waiting for data"
    )


def _tokenized(split: Split) -> str:
    account = split.tokens
    return (
        f"{counted(account['ok'], 'clip')}, {in_bytes(split.raw_bytes)} as raw RGB → "
        f"{counted(account['stats']['tokens'], 'token')}: {in_bytes(split.token_bits / 8)} of information, "
        f"1/{split.compression:.0f} of the raw; {in_bytes(split.array_bytes)} as arrays, "
        f"{in_bytes(account['bytes'])} in {counted(account['shards'], 'shard')}"
    )


def _decoded(run: DemoRun, kind: str) -> str:
    folder: Path = run.out / "decoded" / kind
    files = [path for path in folder.rglob(f"*.{kind}") if path.is_file()]
    clips = counted(run.splits["heldout"].tokens["ok"], "clip")
    what = "lossless frames to score" if kind == "png" else "videos to watch"
    return f"{clips} → {len(files):,} {what}, {in_bytes(sum(path.stat().st_size for path in files))}"


def _evaluated(run: DemoRun) -> str:
    return f"{counted(len(run.evaluation.clips), 'clip')}: every decoded frame against its original"


def _bundled(run: DemoRun, verb: str) -> str:
    if verb == "evaluate" and run.bundled:
        return f"{run.bundled.mean('psnr'):.2f} dB; the trained one: {run.evaluation.mean('psnr'):.2f} dB"
    return f"{counted(run.splits['heldout'].tokens['ok'], 'clip')}, with the tokenizer that ships with vidvq"


def _generated(run: DemoRun, which: str) -> str:
    if which == "train":
        return f"{counted(run.generator_steps, 'step')} of a transformer on the training tokens"
    return ", ".join(f"{made.task}: {made.psnr['generator']:.1f} dB" for made in run.generated)
