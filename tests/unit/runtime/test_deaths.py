"""A death by the out-of-memory killer, or by another hand, does not condemn the item that was being worked on."""

import os
import signal
from collections.abc import Iterator

import pytest

from vidvq.runtime import Deaths, Feeder, InlinePool, WorkerDied, cgroup, deaths, describe_death

CRASH, KILL, OOM = WorkerDied("x"), WorkerDied("x", "killed"), WorkerDied("x", "out_of_memory")


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(deaths, "sleep", found.append)
    return found


def die(number: int) -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), number)


def killed_until(item: tuple[str, int]) -> str:
    path, times = item
    with open(path, "a") as file:  # noqa: PTH123
        file.write("x")
    if os.path.getsize(path) <= times:  # noqa: PTH202
        os.kill(os.getpid(), signal.SIGKILL)
    return "made"


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGSEGV, "died"), (signal.SIGKILL, "killed")])
def test_a_kill_is_told_from_a_crash(number, cause):
    *_, last = Feeder().feed(die, int(number))
    assert isinstance(last, WorkerDied) and last.cause == cause


def test_a_kill_for_memory_is_told_by_the_counter_of_the_kernel(tmp_path, monkeypatch):
    counter = tmp_path / "vmstat"
    counter.write_text("nr_free_pages 7\noom_kill 3\n")
    monkeypatch.setattr(cgroup, "_CGROUP", tmp_path / "none")
    monkeypatch.setattr(cgroup, "_MACHINE", counter)
    assert cgroup.count_oom_kills() == 3
    fed = Feeder().feed(die, int(signal.SIGKILL))
    assert next(fed) == 1
    counter.write_text("oom_kill 4\n")
    last = next(fed)
    assert isinstance(last, WorkerDied) and last.cause == "out_of_memory"


@pytest.mark.parametrize("place", ["", "job"])
def test_the_counter_of_the_cgroup_comes_first(tmp_path, monkeypatch, place):
    events = tmp_path / "cgroups" / place / "memory.events"
    events.parent.mkdir(parents=True)
    events.write_text("low 0\noom 2\noom_kill 1\n")
    (tmp_path / "cgroup").write_text("4:memory:/old\n0::/job\n")
    monkeypatch.setattr(cgroup, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "_CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(cgroup, "_MACHINE", tmp_path / "none")
    assert cgroup.count_oom_kills() == 1
    events.unlink()
    assert cgroup.count_oom_kills() is None


def test_crashes_condemn_an_item_sooner_than_kills(pauses):
    counted = Deaths()
    assert [counted.give_up(CRASH, 4) for _ in range(3)] == [False, False, True]
    assert [counted.give_up(death, 3) for death in (CRASH, OOM, OOM, KILL, CRASH, OOM, CRASH)] == [False] * 6 + [True]
    pauses.clear()
    assert [counted.give_up(OOM, 2) for _ in range(6)] == [False] * 5 + [True]
    assert pauses == [1, 2, 4, 8, 16]


def test_the_reason_is_that_of_the_death():
    assert describe_death(CRASH, "decoder_died", "it crashed") == ("decoder_died", "it crashed")
    assert describe_death(OOM, "decoder_died", "it crashed")[0] == "out_of_memory"
    assert describe_death(KILL, "decoder_died", "it crashed")[0] == "killed"


def test_the_inline_pool_tries_again_after_kills(pauses, tmp_path):
    items = [(str(tmp_path / "a"), 4), (str(tmp_path / "b"), 0)]
    results = [result for _, result in InlinePool().map(killed_until, items, retries=2, deadline_s=60)]
    assert results == ["made", "made"] and len(pauses) == 4
    ((_, last),) = InlinePool().map(killed_until, [(str(tmp_path / "c"), 99)], retries=2, deadline_s=60)
    assert isinstance(last, WorkerDied) and last.cause == "killed"
