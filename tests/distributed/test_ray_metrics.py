"""Metrics of a job, scraped from Ray's Prometheus port."""

import re
import time
from dataclasses import replace
from urllib.request import urlopen

import ray

from vidvq.formats.commit import Commit, Outcome
from vidvq.jobs.stage import ShardResult
from vidvq.jobs.telemetry import ProgressNote, Telemetry
from vidvq.runtime import RuntimeConfig, open_runtime
from vidvq.tokenize import TokenizeClips


def made(ok: int, *reasons: str) -> ShardResult:
    failed = tuple(Outcome(f"key-{index}", reason) for index, reason in enumerate(reasons))
    commit = Commit("a.tar", "plan", "", 0, ok, failed, (), stats={"frames": 33 * ok, "tokens": 100 * ok})
    return ShardResult(commit, "worker", 1.0, {"encode": 2.5, "decode": 0.5})


def scrape(wanted: str) -> dict[tuple[str, str], float]:
    """Wait for a metric and return all of them as ``{(name, own labels): value}``."""
    node = ray.nodes()[0]
    deadline = time.monotonic() + 300
    while True:
        with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=60) as page:
            lines = re.findall(r"^ray_(vidvq_\w+)\{(.*)\} (\S+)$", page.read().decode(), re.MULTILINE)
        found = {
            (name, ",".join(re.findall(r'(?:outcome|reason|stage)="[^"]*"', labels))): float(value)
            for name, labels, value in lines
        }
        if any(name == wanted for name, _ in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def test_counts_of_a_shard_are_served_to_prometheus():
    with open_runtime(RuntimeConfig(workers=2)) as runtime:
        telemetry, note = Telemetry(TokenizeClips, runtime.pool(2)), ProgressNote()
        # One of the 11 was copied.
        partly = replace(made(11), copied={"frames": 33, "tokens": 100})
        for result, efficiency in ((made(30, "decode_error", "decode_error", "hdr"), 0.5), (partly, 0.75)):
            telemetry.publish(result, efficiency)
            text = note.made(result)
        assert re.fullmatch(r"\d+ frames/s, \d+ tokens/s, 3 failed", text)
        found = scrape("vidvq_tokenize_efficiency")
    assert found["vidvq_tokenize_items_total", 'outcome="ok",reason=""'] == 41
    assert found["vidvq_tokenize_items_total", 'outcome="failed",reason="decode_error"'] == 2
    assert found["vidvq_tokenize_items_total", 'outcome="failed",reason="hdr"'] == 1
    assert found["vidvq_tokenize_shards_total", ""] == 2
    assert found["vidvq_tokenize_frames_total", ""] == 33 * 40
    assert found["vidvq_tokenize_tokens_total", ""] == 4000
    assert found["vidvq_tokenize_worker_seconds_total", 'stage="encode"'] == 5
    assert found["vidvq_tokenize_efficiency", ""] == 0.75


def test_a_resumed_run_counts_earlier_failures_but_not_earlier_frames():
    note = ProgressNote()
    assert note.committed(made(5, "hdr").commit) == "1 failed"
    assert note.made(made(10, "hdr")).endswith(" tokens/s, 2 failed")
