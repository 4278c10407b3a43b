"""The demo: the regular commands, each in a process, and a report of their results."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shlex import join
from time import monotonic

from vidvq.demo.report import write_report
from vidvq.demo.stages import QUICK, StageSettings, stages
from vidvq.log import info
from vidvq.storage import pretty_json, write_atomic


def run_demo(out: Path, overrides: list[str], quick: bool = False) -> int:
    """Run every stage into ``out`` and write ``out/report.html``.

    Args:
        out: output directory. Finished stages are skipped.
        overrides: ``key=value`` settings of the training.
        quick: whether to train only 20 steps on small clips, without Ray.

    Returns:
        0, or the exit code of the stage that failed.
    """
    record = out / "stages.json"
    seconds: dict[str, float] = json.loads(record.read_bytes()) if record.is_file() else {}
    settings = QUICK if quick else StageSettings()
    settings = replace(settings, train=(*settings.train, *overrides))
    for name, arguments in stages(out, settings).items():
        info("")
        info(f"$ {join(['vidvq', *arguments])}")
        started = monotonic()
        code = subprocess.run([sys.executable, "-m", "vidvq", *arguments], check=False).returncode
        if code:
            return code
        # A skipped stage takes a moment; keep the time of its real run.
        seconds[name] = max(seconds.get(name, 0.0), monotonic() - started)
        write_atomic(record, pretty_json(seconds))
    write_report(out)
    info("")
    info(f"{sum(seconds.values()):.0f} s in all. Open {(out / 'report.html').absolute().as_uri()}")
    return 0
