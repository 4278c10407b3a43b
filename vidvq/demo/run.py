"""The demo: the regular commands, each in a process, and a report of their results."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shlex import join
from time import monotonic

from vidvq.config import find_config, load
from vidvq.demo.report import write_report
from vidvq.demo.stages import QUICK, StageSettings, stages
from vidvq.errors import UsageError
from vidvq.log import info
from vidvq.storage import pretty_json, read_json, write_atomic
from vidvq.train.config import TrainConfig


def run_demo(out: Path, overrides: list[str], quick: bool = False) -> int:
    """Run every stage into ``out`` and write ``out/report.html``.

    Args:
        out: output directory. Finished stages are skipped.
        overrides: ``key=value`` settings of the training.
        quick: whether to train only 20 steps on small clips, without Ray.

    Returns:
        0, or the exit code of the stage that failed, 128 + N for signal N.

    Raises:
        UsageError: a setting is wrong, or one that the demo itself sets.
    """
    if taken := next((each for each in overrides if each.startswith(("out=", "data.clips="))), None):
        raise UsageError(f"{taken} is set by the demo, whose outputs are in --out; remove it")
    record = out / "stages.json"
    seconds: dict[str, float] = read_json(record) if record.is_file() else {}
    settings = QUICK if quick else StageSettings()
    settings = replace(settings, train=(*settings.train, *overrides))
    commands = stages(out, settings)
    # A mistake is reported before the first stage, not after it.
    _, packaged, *given = commands["train"]
    load(TrainConfig, find_config(packaged), given)
    for name, arguments in commands.items():
        info("")
        info(f"$ {join(['vidvq', *arguments])}")
        started = monotonic()
        code = subprocess.run([sys.executable, "-m", "vidvq", *arguments], check=False).returncode
        if code:
            return code if code > 0 else 128 - code
        # A skipped stage takes a moment; keep the time of its real run.
        seconds[name] = max(seconds.get(name, 0.0), monotonic() - started)
        write_atomic(record, pretty_json(seconds))
    write_report(out)
    info("")
    info(f"{sum(seconds.values()):.0f} s in all. Open {(out / 'report.html').absolute().as_uri()}")
    return 0
