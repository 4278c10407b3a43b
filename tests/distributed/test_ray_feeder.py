"""Generators on nodes of a Ray cluster: their results, dead children, dead actors, and a cluster without a free CPU."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.decoders import count_or_die, numbered, process_id
from vidvq.runtime import RuntimeConfig, WorkerDied, open_runtime
from vidvq.runtime.ray_feeder import RayFeeder, find_ready

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def feeder() -> Iterator[RayFeeder]:
    with open_runtime(RuntimeConfig(workers=2)) as runtime:
        runtime.pool(2)
        yield RayFeeder()


@pytest.fixture(autouse=True)
def _is_ready(feeder):
    assert find_ready([feeder], 120) == [feeder]


def test_results_come_in_their_order(feeder, tmp_path):
    found = list(feeder.feed(numbered, (40, tmp_path / "log")))
    assert [int(frames[0, 0]) for _, frames in found] == list(range(40))
    assert all((frames == frames[0, 0]).all() for _, frames in found)


def test_the_blocks_in_flight_are_bounded(feeder, tmp_path):
    log = tmp_path / "log"
    results = feeder.feed(numbered, (500, log))
    assert int(next(results)[1][0, 0]) == 0
    # The actor answers after the blocks that were requested before. One more is requested for the first one.
    assert find_ready([feeder], 120) == [feeder]
    assert 5 * 16 <= log.stat().st_size <= 5 * 16 + 4
    assert len(list(results)) == 499


@pytest.mark.parametrize("what", ["kill", "hang"])
def test_a_dead_child_is_reported_after_its_results_and_replaced(feeder, what):
    first, death = feeder.feed(count_or_die, what, 1.0)
    assert first == 1
    assert isinstance(death, WorkerDied) and death.cause == "died"
    assert list(feeder.feed(count_or_die, "")) == [1, 2]


def test_an_exception_keeps_its_type(feeder):
    with pytest.raises(ValueError, match="broken"):
        list(feeder.feed(count_or_die, "raise"))
    assert list(feeder.feed(count_or_die, "")) == [1, 2]


def test_a_generator_that_is_given_up_ends_with_its_process(feeder, tmp_path):
    (child,) = feeder.feed(process_id, "")
    given_up = feeder.feed(numbered, (500, tmp_path / "log"))
    next(given_up)
    given_up.close()
    (other,) = feeder.feed(process_id, "")
    assert other != child
    assert not Path(f"/proc/{child}").exists()


def test_a_killed_actor_is_not_blamed_on_its_item_and_replaced(feeder, tmp_path):
    results = feeder.feed(numbered, (500, tmp_path / "log"))
    actor, _ = next(results)
    os.kill(actor, signal.SIGKILL)
    *_, death = results
    assert isinstance(death, WorkerDied) and death.cause == "killed"
    assert find_ready([feeder], 120) == [feeder]
    assert list(feeder.feed(count_or_die, "")) == [1, 2]


def test_a_feeder_that_waits_for_a_free_cpu_is_not_ready(feeder):
    second, third = RayFeeder(), RayFeeder()
    assert find_ready([feeder, second], 120) == [feeder, second]
    assert find_ready([feeder, second, third], 0.1) == [feeder, second]
    assert not third.started
