"""Generators that are requested from a feeder before the one before has ended."""

import os
import time

import pytest

from tests.helpers.decoders import count_or_die, numbered, process_id
from vidvq.runtime import Feeder, WorkerDied


def test_a_generator_that_is_requested_early_starts_when_the_one_before_has_ended(tmp_path):
    feeder, logs = Feeder(), [tmp_path / "first", tmp_path / "second"]
    first, second = (feeder.feed(numbered, (3, log), 60, 64) for log in logs)
    while not logs[1].exists() or len(logs[1].read_bytes()) < 3:
        # Nothing has been received.
        time.sleep(0.01)
    for results in (first, second):
        assert [int(result[1][0, 0]) for result in results if not isinstance(result, WorkerDied)] == [0, 1, 2]
    assert feeder._running is not None and not feeder._running.requested


def test_a_request_larger_than_the_pipe_does_not_wait_for_the_generator_before():
    feeder = Feeder()
    # The child cannot go on until the first results are received.
    first, second = feeder.feed(iter, list(range(100)), 60), feeder.feed(iter, ["x" * (1 << 20)], 60)
    assert list(first) == list(range(100)) and [len(text) for text in second] == [1 << 20]


def test_a_death_does_not_reach_the_generator_after():
    feeder = Feeder()
    first, second = feeder.feed(process_id, "kill", 60), feeder.feed(process_id, "", 60)
    died, death = first
    assert isinstance(death, WorkerDied)
    (survivor,) = second
    assert survivor not in (died, death) and list(feeder.feed(process_id, "", 60)) == [survivor]


def test_work_that_is_tried_again_comes_before_what_was_requested_after_it():
    feeder = Feeder()
    first = feeder.feed(count_or_die, "kill", 60)
    assert isinstance(list(first)[-1], WorkerDied)
    later = feeder.feed(process_id, "", 60)
    retried = feeder.feed(count_or_die, "", 60)
    assert list(retried) == [1, 2]
    (process,) = later
    assert process != os.getpid()
    assert list(feeder.feed(count_or_die, "", 60)) == [1, 2]


def test_a_generator_that_nobody_consumes_is_not_taken_for_the_next():
    feeder = Feeder()
    abandoned, wanted = feeder.feed(iter, ["abandoned"], 60), feeder.feed(iter, ["wanted"], 60)
    assert list(wanted) == ["wanted"]
    del abandoned
    assert list(feeder.feed(iter, ["after"], 60)) == ["after"]


def test_an_exception_leaves_the_generator_after_as_it_is():
    feeder = Feeder()
    first, second = feeder.feed(count_or_die, "raise", 60), feeder.feed(count_or_die, "", 60)
    with pytest.raises(ValueError, match="broken"):
        list(first)
    assert list(second) == [1, 2]


def test_a_process_that_replaces_another_keeps_what_it_was_asked_for():
    feeder = Feeder()
    first, second = feeder.feed(count_or_die, "kill", 60), feeder.feed(process_id, "", 60)
    assert isinstance(list(first)[-1], WorkerDied)
    # The process that died was asked for the second, and a new one for the third.
    third = feeder.feed(process_id, "", 60)
    (process,) = second
    fourth = feeder.feed(process_id, "", 60)
    assert [*third, *fourth] == [process, process]


def test_a_generator_that_nobody_consumes_stops_no_other():
    feeder = Feeder()
    first, second = feeder.feed(process_id, "kill", 60), feeder.feed(process_id, "", 60)
    assert isinstance(list(first)[-1], WorkerDied)
    third = feeder.feed(process_id, "", 60)
    assert feeder._running is not None
    process = feeder._running.process.pid
    second.close()
    assert list(third) == [process]


def test_a_request_that_cannot_be_sent_stops_no_other():
    feeder = Feeder()
    first = feeder.feed(iter, [1, 2], 60)
    with pytest.raises(AttributeError, match="lambda"):
        feeder.feed(iter, [lambda: None], 60)
    assert list(first) == [1, 2]
    assert list(feeder.feed(iter, [3], 60)) == [3]


def test_a_child_waits_for_its_consumer(tmp_path):
    log = tmp_path / "log"
    results = Feeder().feed(numbered, (9, log), 60, 3)
    while not log.exists() or len(log.read_bytes()) < 4:
        time.sleep(0.01)
    # Time to make more, if it did not wait with three results sent and the fourth made.
    time.sleep(0.3)
    assert len(log.read_bytes()) == 4
    assert len(list(results)) == 9
