"""A corpus of a million clips, planned and resumed without one that exists: how memory, time and requests grow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PLANNER = Path(__file__).parents[1] / "helpers/planner.py"
GIB = 1 << 30


def planned(folder: object, clips: int, clips_per_shard: int) -> dict[str, dict[str, float]]:
    """Per step what :mod:`tests.helpers.planner` measured."""
    command = [sys.executable, str(PLANNER), str(folder), str(clips), str(clips_per_shard)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_time_memory_and_files_opened_grow_with_the_corpus_and_no_faster(tmp_path):
    small, large = (planned(tmp_path / str(clips), clips, 50) for clips in (10_000, 40_000))
    for step in small:
        assert large[step]["cpu_s"] < 9 * small[step]["cpu_s"] + 0.2, f"{step}: 16 times as long would be quadratic"
        # The record of a shard of clips or of tokens, once to resume and once to add up; and a few files of the plan.
        assert large[step]["asked"] <= 2 * 800 + 100, step
    per_clip = (large["tokenize: plan"]["peak"] - small["tokenize: plan"]["peak"]) / 30_000
    assert per_clip < 2500, "bytes; a row as Python objects alone is more"


def test_a_store_is_asked_for_each_record_once(bucket):
    small, large = (planned(f"s3://{bucket.name}/{shards}", 20 * shards, 20) for shards in (5, 25))
    # s3fs asks for the size of what it reads first, and twice for what is not there.
    for step, requests in {"shard: resume and add up": 4, "tokenize: plan": 2, "tokenize: jobs": 2}.items():
        assert large[step]["asked"] - small[step]["asked"] <= 20 * requests + 2, step


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("clips_per_shard", [100, 10])
def test_a_million_clips_are_planned_in_two_minutes_of_cpu_time_and_two_gib(clips_per_shard, tmp_path):
    steps = planned(tmp_path / "corpus", 1_000_000, clips_per_shard)
    print("\n" + "\n".join(f"{name}: {step['cpu_s']:.0f} s of CPU time" for name, step in steps.items()))
    print(f"peak {max(step['peak'] for step in steps.values()) / GIB:.2f} GiB")
    # The wall time on a busy machine says nothing of the code: planning is one process that waits for nothing.
    assert steps["shard: plan"]["cpu_s"] < 120 and steps["tokenize: plan"]["cpu_s"] < 120
    assert max(step["peak"] for step in steps.values()) < 2 * GIB
