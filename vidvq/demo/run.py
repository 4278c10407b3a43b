"""The demo: the regular commands, each in a process, and a report of their results."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import join
from time import monotonic

from vidvq.demo.report import write_report
from vidvq.demo.report_stages import GENERATOR_SCORES
from vidvq.log import info
from vidvq.storage import pretty_json, write_atomic

VIDEOS = Path(__file__).parent / "videos"


# Settings for a smoke test; the model is too small and too briefly trained to be useful.
_QUICK_TRAINING = (
    *("steps=20", "generator.warmup_steps=5", "log_every=5", "checkpoint_every=20", "data.cache_mib=64"),
    *("model.quantizer.spatial.warmup=5", "model.quantizer.temporal.warmup=5"),
    *("loss.adversarial_start=15", "loss.discriminator_warmup=5"),
    *(
        "model.encoder.channels=[32,32]",
        "model.decoder.channels=[32,32]",
        "model.decoder.blocks=[1,2]",
        "data.batch_size=2",
    ),
)
_QUICK_GENERATOR = (
    *("steps=3", "checkpoint_every=3", "log_every=1", "data.batch_size=2", "data.workers=0"),
    "model={width: 24, depth: 1, heads: 2, copy_radius: 1}",
)


@dataclass(frozen=True)
class _Settings:
    """Settings that are added to the commands; none by default.

    Attributes:
        shard: of `vidvq shard`.
        train: of `vidvq train`.
        tokenize: of `vidvq tokenize`.
        generator: of `vidvq generate train`.
        scores: of `vidvq generate evaluate`.
    """

    shard: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    tokenize: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()


_QUICK = _Settings(
    shard=("clip.short_side=64", "runtime.workers=1"),
    train=_QUICK_TRAINING,
    tokenize=("runtime.workers=1",),
    generator=_QUICK_GENERATOR,
    scores=("clips=1", "sampling.steps=2"),
)


def run_demo(out: Path, overrides: list[str], quick: bool = False) -> int:
    """Run every stage into ``out`` and write ``out/report.html``.

    Args:
        out: output directory. Finished stages are skipped.
        overrides: ``key=value`` settings of the training.
        quick: whether to train only 20 steps on small clips, without Ray.

    Returns:
        0, or the exit code of the stage that failed.
    """
    seconds = _read_seconds(out)
    settings = _QUICK if quick else _Settings()
    settings = replace(settings, train=(*settings.train, *overrides))
    for name, arguments in _stages(out, settings):
        info(f"\n$ {join(['vidvq', *arguments])}")
        started = monotonic()
        code = subprocess.run([sys.executable, "-m", "vidvq", *arguments], check=False).returncode
        if code:
            return code
        # A skipped stage takes a moment; keep the time of its real run.
        seconds[name] = max(seconds.get(name, 0.0), monotonic() - started)
        write_atomic(out / "stages.json", pretty_json(seconds))
    write_report(out)
    info(f"\n{sum(seconds.values()):.0f} s in all. Open {(out / 'report.html').absolute().as_uri()}")
    return 0


def _stages(out: Path, settings: _Settings) -> list[tuple[str, list[str]]]:
    train, held_out = str(out / "train"), str(out / "clips" / "heldout")
    tokens, shipped, generator = out / "tokens", out / "bundled", str(out / "generator")
    stages: list[tuple[str, list[str]]] = []
    for split in ("train", "heldout"):
        to = ["--out", str(out / "clips" / split), "--config", "demo-shard"]
        stages.append((f"shard {split}", ["shard", str(VIDEOS / split), *to, *settings.shard]))
    given = [f"data.clips={out / 'clips' / 'train'}", f"out={train}"]
    stages.append(("train", ["train", "demo", *given, *settings.train]))
    for split in ("train", "heldout"):
        to = ["--checkpoint", train, "--out", str(tokens / split)]
        stages.append((f"tokenize {split}", ["tokenize", str(out / "clips" / split), *to, *settings.tokenize]))
    for kind in ("png", "mp4"):
        to = ["--checkpoint", train, "--out", str(out / "decoded" / kind), f"format={kind}"]
        stages.append((f"decode {kind}", ["decode", str(tokens / "heldout"), *to]))
    stages.append(("evaluate", _evaluate(held_out, out / "decoded" / "png", tokens / "heldout", out / "scores.json")))
    # The tokenizer that ships with vidvq, on the same clips.
    to = ["--out", str(shipped / "tokens"), *settings.tokenize]
    stages.append(("tokenize bundled", ["tokenize", held_out, *to]))
    to = ["--out", str(shipped / "png"), "format=png"]
    stages.append(("decode bundled", ["decode", str(shipped / "tokens"), *to]))
    to = shipped / "png", shipped / "tokens", shipped / "scores.json"
    stages.append(("evaluate bundled", _evaluate(held_out, *to)))
    given = ["--config", "generate-demo", f"pixels.clips=[{out / 'clips' / 'train'}]", f"pixels.tokenizer={train}"]
    trained = ["generate", "train", str(tokens / "train"), "--out", generator, *given, *settings.generator]
    stages.append(("generate train", trained))
    made = out / "generated"
    to = ["--clips", held_out, "--checkpoint", train, "--out", str(made / "scores.json"), "--pictures", str(made)]
    scored = ["generate", "evaluate", generator, str(tokens / "heldout"), *to, *GENERATOR_SCORES, *settings.scores]
    stages.append(("generate evaluate", scored))
    return stages


def _evaluate(clips: str, decoded: Path, tokens: Path, out: Path) -> list[str]:
    return ["evaluate", clips, str(decoded), "--tokens", str(tokens), "--out", str(out)]


def _read_seconds(out: Path) -> dict[str, float]:
    path = out / "stages.json"
    return json.loads(path.read_bytes()) if path.is_file() else {}
