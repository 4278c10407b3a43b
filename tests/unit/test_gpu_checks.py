"""`launch/gpu-checks.sh`: every part calls a benchmark with arguments that it has, and leaves its figures."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from vidvq import config
from vidvq.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
# Notes each call, prints a figure in place of a benchmark, and lets the tables be made.
STUB = """#!/bin/sh
case "$1" in
benchmarks/table.py) exec "$REAL" "$@" ;;
esac
for word in "$@"; do printf '%s\\n' "$word"; done > "$CALLS/$(date +%s%N)"
echo "in text"; echo '{"value": 3, "top": ["a", "b"]}'; exit "${CODE:-0}"
"""


@dataclass
class Checks:
    """A run of the script.

    Attributes:
        done: the process.
        calls: arguments of each call of Python, in order.
        out: what the script left.
    """

    done: subprocess.CompletedProcess[str]
    calls: list[list[str]]
    out: Path


def checks(folder: Path, **environment: str) -> Checks:
    """Run the script with a Python that only notes how it is called."""
    calls, stub = folder / "calls", folder / "python"
    calls.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    given = {"PYTHON": str(stub), "REAL": sys.executable, "CALLS": str(calls), "BUNDLE": str(folder)}
    given |= {"OUT": str(folder / "out"), "WORK": str(folder / "work")}
    script = [ROOT / "launch/gpu-checks.sh"]
    done = subprocess.run(script, env=os.environ | given | environment, capture_output=True, text=True, check=False)
    return Checks(done, [path.read_text().splitlines() for path in sorted(calls.iterdir())], folder / "out")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_each_part_calls_a_benchmark_with_arguments_that_it_has(device, tmp_path, monkeypatch):
    found = checks(tmp_path, DEVICE=device)
    assert found.done.returncode == 0, found.done.stderr
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    called = set()
    for script, *arguments in found.calls:
        if script.startswith("benchmarks/"):
            assert (ROOT / script).is_file()
            name = Path(script).stem
            called.add(name)
            (tmp_path / "clips/train").mkdir(parents=True, exist_ok=True)
            context = importlib.import_module(name).main.make_context(name, [*arguments])
            settings = [word for word in arguments if "=" in word]
            for packaged in context.params.get("configs", ()) if name == "training" else [context.params.get("config")]:
                if packaged and "=" not in packaged:
                    config.load(TrainConfig, config.find_config(packaged), settings)
    assert {"steps", "job", "training", "weights", "model"} <= called


def test_figures_and_tables_are_left_as_the_parts_end(tmp_path):
    found = checks(tmp_path, DEVICE="cpu", CODE="3")
    assert found.done.returncode == 1
    rows = [json.loads(line) for line in (found.out / "results.jsonl").read_text().splitlines()]
    ended = [row for row in rows if row["part"] == "parts"]
    rows = [row for row in rows if row["part"] != "parts"]
    assert [row["name"] for row in ended] == [row["part"] for row in rows]
    assert {row["exit_code"] for row in ended} == {3}
    assert [row["part"] for row in rows] == [
        "machine",
        "job",
        "training, nano",
        "training, compiled, nano",
        "steps, eager",
        "agreement",
        "weights",
    ]
    assert rows[1]["value"] == 3
    assert "## job\n\n| value | top |\n|---|---|\n| 3 | a, b |" in (found.out / "table.md").read_text()
    log = (found.out / "log.txt").read_text()
    assert "in text" in log and "== weights: exit code 3 after" in log


def test_everything_compiles_before_it_is_measured(tmp_path):
    found = checks(tmp_path, DEVICE="cuda", CONFIGS="nano small")
    assert found.done.returncode == 0, found.done.stderr
    # Steps, the job, and each training run.
    assert (found.out / "compile.txt").read_text().count("in text") == 4
    scripts = [Path(call[0]).stem for call in found.calls]
    assert Counter(scripts)["job"] == 2 and Counter(scripts)["training"] == 6
    rows = [json.loads(line) for line in (found.out / "results.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows if "value" in row].count("job") == 1


def test_the_log_names_the_test_in_which_an_early_end_falls(tmp_path):
    found = checks(tmp_path, DEVICE="cuda", ONLY="^tests$")
    (call,) = found.calls
    assert call[:2] == ["-m", "pytest"] and "-v" in call
    assert all((ROOT / word).is_file() for word in call if word.startswith("tests/"))


def test_nothing_starts_without_time_and_training_gets_its_own(tmp_path):
    found = checks(tmp_path, DEVICE="cuda", BUDGET_S="5000", TRAINING_S="4990")
    assert "== agreement: left out" in found.done.stdout
    weights = next(call for call in found.calls if call[0] == "benchmarks/weights.py")
    assert 4000 < int(weights[weights.index("--budget-s") + 1]) <= 4910


def test_packages_are_unpacked_whole_or_not_at_all(tmp_path):
    with tarfile.open(tmp_path / "packages.tar.xz", "w:xz") as tar:
        tar.add(ROOT / "LICENSE", "LICENSE")
    whole = (tmp_path / "packages.tar.xz").read_bytes()
    (tmp_path / "packages.tar.xz").write_bytes(whole[:-100])
    found = checks(tmp_path, DEVICE="cpu")
    assert found.done.returncode != 0 and not found.calls
    assert not (tmp_path / "work/packages").exists()
    (tmp_path / "packages.tar.xz").write_bytes(whole)
    (tmp_path / "calls").rmdir()
    found = checks(tmp_path, DEVICE="cpu", ONLY="machine")
    assert found.done.returncode == 0 and len(found.calls) == 1
    assert [path.name for path in (tmp_path / "work/packages").iterdir()] == ["LICENSE"]


def test_a_budget_that_is_spent_fails(tmp_path):
    found = checks(tmp_path, DEVICE="cpu", BUDGET_S="5")
    assert found.done.returncode == 1 and not found.calls
    assert "== weights: no time left" in found.done.stdout
