"""The pool, inline and on a local Ray: order, bounded work, dead workers, no lost items."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray import cloudpickle

from vidvq.corpus.download import in_background
from vidvq.errors import UsageError
from vidvq.runtime import InlinePool, Pool, RuntimeConfig, WorkerDied, deaths, open_runtime
from vidvq.video import VideoError

# Workers cannot import this file by name, so its contents are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def ray_pool() -> Iterator[Pool]:
    with open_runtime(RuntimeConfig(workers=2)) as runtime:
        yield runtime.pool(2)


@pytest.fixture(params=["inline", "ray"])
def pool(request) -> Pool:
    return InlinePool() if request.param == "inline" else request.getfixturevalue("ray_pool")


def double(number: int) -> int:
    return number * 2


def slow_first(number: int) -> int:
    time.sleep(0.5 if number == 0 else 0.0)
    return number


def act(what: str) -> str:
    if what == "segfault":
        ctypes.string_at(0)
    if what == "exit":
        os._exit(7)
    if what == "hang":
        while True:
            time.sleep(1)
    if what == "hang holding the GIL":
        ctypes.PyDLL(None).sleep(60)
    if what == "value":
        raise ValueError("a mistake")
    if what == "video":
        raise VideoError("decode_error", "torn")
    return what.upper()


def die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return "survived"


def test_results_are_in_the_order_of_the_items(pool):
    assert list(pool.map(slow_first, range(12))) == [(number, number) for number in range(12)]


@pytest.mark.parametrize("cpus", [0, 1])
def test_items_are_consumed_only_as_workers_become_free(pool, cpus):
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number

    for seen, (_, result) in enumerate(pool.map(double, items(), cpus=cpus), start=1):
        assert result == (seen - 1) * 2
        assert taken <= seen + pool.size + 2
    assert taken == 50


def test_no_items_give_no_results(pool):
    assert list(pool.map(double, [])) == []


@pytest.mark.parametrize(("what", "kind"), [("value", ValueError), ("video", VideoError)])
def test_an_exception_keeps_its_type_and_is_not_retried(pool, what, kind):
    with pytest.raises(kind) as error:
        list(pool.map(act, ["a", what], retries=3))
    assert type(error.value) is kind
    if isinstance(error.value, VideoError):
        assert (error.value.reason, error.value.detail) == ("decode_error", "torn")


@pytest.mark.parametrize("what", ["segfault", "exit"])
def test_a_dead_worker_loses_only_its_own_item(pool, what):
    results = dict(pool.map(act, ["a", what, "b", "c"], deadline_s=30))
    assert isinstance(results.pop(what), WorkerDied)
    assert results == {"a": "A", "b": "B", "c": "C"}


@pytest.mark.parametrize("what", ["hang", "hang holding the GIL"])
def test_a_hanging_worker_is_killed_at_its_deadline(pool, what):
    started = time.monotonic()
    results = dict(pool.map(act, ["a", what, "b"], deadline_s=2))
    assert isinstance(results.pop(what), WorkerDied)
    assert results == {"a": "A", "b": "B"}
    assert time.monotonic() - started < 30


def test_a_deadline_applies_to_each_call_and_not_to_the_worker(pool):
    assert [result for _, result in pool.map(slow_first, [0, 0, 0, 0, 0, 0], deadline_s=1.5)] == [0] * 6


def test_a_call_is_retried_after_a_death_if_requested(pool, tmp_path):
    ((_, result),) = pool.map(die_once, [tmp_path / "marker"], deadline_s=60, retries=1)
    assert result == "survived"


def be_killed(item: tuple[str, Path, int]) -> str:
    """Kill the process of this call, or its parent, so many times."""
    what, folder, times = item
    if what != "nothing" and len(list(folder.iterdir())) < times:
        (folder / f"{time.monotonic_ns()}").touch()
        os.kill(os.getpid() if what == "child" else os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return "survived"


@pytest.mark.parametrize(
    ("kind", "what"),
    [("inline", "child"), pytest.param("ray", "child", marks=pytest.mark.slow), ("ray", "worker")],
)
def test_a_killed_process_is_not_blamed_on_its_item(kind, what, request, tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(deaths, "sleep", pauses.append)
    pool = InlinePool() if kind == "inline" else request.getfixturevalue("ray_pool")
    # Other calls may be on the worker that is killed.
    often, once, other = (
        (what, tmp_path / name, times) for name, times in (("often", 99), ("once", 1), ("nothing", 0))
    )
    for _, folder, _ in (often, once, other):
        folder.mkdir()
    ((_, killed),) = pool.map(be_killed, [often], deadline_s=60)
    assert isinstance(killed, WorkerDied) and killed.cause == "killed"
    assert pauses == [1, 2, 4, 8, 16]
    assert [result for _, result in pool.map(be_killed, [once, other], deadline_s=60)] == ["survived"] * 2
    assert len(list(once[1].iterdir())) == 1


class Counter:
    """Records in files how often it was built and what it was called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / f"made-{os.getpid()}-{time.monotonic_ns()}").touch()

    def __call__(self, item: int) -> int:
        if item == 3 and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(1)
        if item == 99:
            os._exit(1)
        if item == -1:
            raise ValueError("a mistake")
        return item * 2


def maker(folder: Path) -> Callable[[], Counter]:
    return lambda: Counter(folder)


def test_a_dead_stateful_worker_is_restarted_and_its_item_retried(ray_pool, tmp_path):
    results = sorted(ray_pool.map_stateful(maker(tmp_path), range(8)))
    assert results == [(number, number * 2) for number in range(8)]
    assert (tmp_path / "died").exists()
    assert len(list(tmp_path.glob("made-*"))) == 3


def test_an_item_that_always_kills_its_worker_is_given_up_and_no_other_is_lost(ray_pool, tmp_path, monkeypatch):
    monkeypatch.setattr("vidvq.runtime.ray_pool._RETRY_DELAYS_S", (0.0, 0.1, 0.1))
    results = dict(ray_pool.map_stateful(maker(tmp_path), [1, 99, 2, 4, 5]))
    assert isinstance(results.pop(99), WorkerDied)
    assert results == {1: 2, 2: 4, 4: 8, 5: 10}


def test_a_stateful_exception_keeps_its_type(pool, tmp_path):
    with pytest.raises(ValueError, match="a mistake"):
        list(pool.map_stateful(maker(tmp_path), [1, -1]))


def make_or_raise(how: str) -> Callable[[], Callable[[int], int]]:
    def make() -> Callable[[int], int]:
        raise UsageError(how)

    return make


def test_an_exception_of_make_keeps_its_type(pool):
    with pytest.raises(UsageError, match="a mistake"):
        list(pool.map_stateful(make_or_raise("a mistake"), [1, 2]))


class Cutter:
    """Waits for calls to the pool, like the worker of a shard."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __call__(self, number: int) -> list[int | WorkerDied]:
        return [result for _, result in self.pool.map(double, range(number))]


def test_stateful_workers_that_wait_for_others_occupy_no_cpus(pool):
    found = dict(pool.map_stateful(lambda: Cutter(pool), [3, 4, 5, 6], cpus=0))
    assert found == {number: [2 * each for each in range(number)] for number in (3, 4, 5, 6)}


def test_workers_that_do_not_fit_beside_others_run_after_them(ray_pool):
    # Each worker occupies all CPUs.
    results = in_background(lambda: sorted(ray_pool.map_stateful(lambda: double, range(5), cpus=2)))
    assert results.result(60) == [(number, number * 2) for number in range(5)]


def test_stateful_results_match_their_items(pool):
    assert sorted(pool.map_stateful(lambda: double, range(5))) == [(number, number * 2) for number in range(5)]


class Foreseeing:
    """Records the next item that it was told with each item."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, item: int, following: int | None) -> int | None:
        if item == 3 and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(1)
        while item == 0 and len(list(self.folder.glob("done-*"))) < 6:
            time.sleep(0.01)
        (self.folder / f"done-{item}").touch()
        return following


def test_an_inline_worker_is_told_its_next_item(tmp_path):
    (tmp_path / "died").touch()
    (tmp_path / "done-x").touch()
    found = list(InlinePool().map_stateful(lambda: Foreseeing(tmp_path), [1, 2, 3], lookahead=True))
    assert found == [(1, 2), (2, 3), (3, None)]


def test_workers_are_told_their_next_items_and_none_is_lost_or_done_twice(ray_pool, tmp_path, monkeypatch):
    """The first item takes until all others are done: the one that its worker was told goes to the other worker."""
    monkeypatch.setattr("vidvq.runtime.ray_pool._RETRY_DELAYS_S", (0.0, 0.1, 0.1))
    found = list(ray_pool.map_stateful(lambda: Foreseeing(tmp_path), range(7), lookahead=True))
    assert sorted(item for item, _ in found) == list(range(7))
    assert dict(found)[0] in range(2, 7)
