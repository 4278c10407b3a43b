"""The demo: the regular commands, each in a process, and a report of their results."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import join
from time import monotonic

from vidvq.demo.report import write_report
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
_QUICK_SHARD = ("clip.short_side=64",)
_QUICK_JOB = ("runtime.workers=1",)


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
    settings = (*_QUICK_SHARD, *_QUICK_JOB), (*_QUICK_TRAINING, *overrides), _QUICK_JOB
    for name, arguments in _stages(out, *(settings if quick else ((), overrides, ()))):
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


def _stages(
    out: Path, shard: Sequence[str], training: Sequence[str], tokenize: Sequence[str]
) -> list[tuple[str, list[str]]]:
    train, splits = str(out / "train"), ("train", "heldout")
    return [
        *(
            (
                f"shard {split}",
                ["shard", str(VIDEOS / split), "--out", str(out / "clips" / split), "--config", "demo-shard", *shard],
            )
            for split in splits
        ),
        ("train", ["train", "demo", f"data.clips={out / 'clips' / 'train'}", f"out={train}", *training]),
        *(
            (
                f"tokenize {split}",
                [
                    *("tokenize", str(out / "clips" / split), "--checkpoint", train),
                    *("--out", str(out / "tokens" / split), *tokenize),
                ],
            )
            for split in splits
        ),
        *(
            (
                f"decode {kind}",
                [
                    "decode",
                    str(out / "tokens" / "heldout"),
                    "--checkpoint",
                    train,
                    "--out",
                    str(out / "decoded" / kind),
                    f"format={kind}",
                ],
            )
            for kind in ("png", "mp4")
        ),
        (
            "evaluate",
            [
                "evaluate",
                str(out / "clips" / "heldout"),
                str(out / "decoded" / "png"),
                "--tokens",
                str(out / "tokens" / "heldout"),
                "--out",
                str(out / "scores.json"),
            ],
        ),
    ]


def _read_seconds(out: Path) -> dict[str, float]:
    path = out / "stages.json"
    return json.loads(path.read_bytes()) if path.is_file() else {}
