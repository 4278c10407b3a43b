"""Which pool an amount of work gets, and that Ray starts once, late and only where it is needed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

import pytest

from vidvq.runtime import InlinePool, RuntimeConfig, feeder, open_runtime, ray_pool, ray_start


@pytest.fixture
def starts(monkeypatch) -> list[str]:
    """Records what happens to a Ray that is not there."""
    log: list[str] = []

    @contextmanager
    def connect(config: RuntimeConfig) -> Iterator[int]:
        log.append("start")
        yield config.workers or 2
        log.append("stop")

    monkeypatch.setattr(ray_start, "connect", connect)
    return log


@pytest.mark.parametrize(
    ("workers", "units", "inline"),
    [(0, 99, True), (1, 99, True), (2, 1, False), (None, 0, True), (None, 1, True), (None, 2, False)],
)
def test_little_work_and_few_workers_run_without_ray(starts, workers, units, inline):
    with open_runtime(RuntimeConfig(workers=workers)) as runtime:
        assert isinstance(runtime.pool(units), InlinePool if inline else ray_pool.RayPool)
    assert starts == ([] if inline else ["start", "stop"])


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_a_cluster_that_was_named_is_used_even_for_little_work(starts, workers):
    with open_runtime(RuntimeConfig(workers=workers, address="auto")) as runtime:
        assert isinstance(runtime.pool(1), ray_pool.RayPool)


def test_ray_starts_once_when_first_needed_and_serves_all_that_follows(starts):
    with open_runtime(RuntimeConfig()) as runtime:
        assert isinstance(runtime.pool(1), InlinePool)
        assert starts == []
        on_ray = runtime.pool(7)
        assert starts == ["start"]
        assert runtime.pool(7) is runtime.pool(1) is on_ray
    assert starts == ["start", "stop"]


def test_ray_stops_where_the_job_fails(starts):
    with pytest.raises(RuntimeError), open_runtime(RuntimeConfig()) as runtime:
        runtime.pool(2)
        raise RuntimeError
    assert starts == ["start"]


def test_an_inline_pool_imports_no_ray():
    script = """
import sys
from vidvq.runtime import RuntimeConfig, open_runtime
with open_runtime(RuntimeConfig()) as runtime:
    assert list(runtime.pool(1).map(str, [1], deadline_s=60)) == [(1, "1")]
    assert list(runtime.pool(1).map_stateful(lambda: str, [1])) == [(1, "1")]
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def own_process(_: int) -> int:
    return os.getpid()


def test_a_child_that_dies_after_its_last_result_has_done_its_work():
    found = []
    for item, process in InlinePool().map(own_process, [1, 2, 3], deadline_s=60):
        found.append(process)
        if item == 1:
            # It sends the third result, and waits for this process before it says that this was all.
            sleep(1)
            os.kill(process, signal.SIGTERM)
    assert found == [process] * 3


def test_children_that_no_feeder_has_taken_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(feeder, "_idle", [])
    feeder.warm_up("json")
    (first,) = feeder._idle
    feeder.warm_up("json")
    assert feeder._idle == [first]
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    feeder.warm_up("json")
    (second,) = feeder._idle
    assert second is not first
    assert list(feeder.Feeder().feed(iter, [1, 2])) == [1, 2]
    assert not feeder._idle
