"""Times in a file become one ascending timeline, and only those out of place change."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidvq.video.timeline import median_step, repair_timeline


@pytest.mark.parametrize(
    ("times", "expected", "moved"),
    [
        ([0, 40, 80, 120], [0, 40, 80, 120], False),
        ([5], [5], False),
        ([None] * 3, [0, 1, 2], False),
        ([0, 40, None, 120], [0, 40, 80, 120], False),
        ([None, 40, 80, None], [0, 40, 80, 120], False),
        # one time twice, one far ahead, two far ahead, one far behind
        ([0, 40, 40, 120, 160], [0, 40, 80, 120, 160], True),
        ([0, 40, 99999, 120, 160], [0, 40, 80, 120, 160], True),
        ([0, 40, 99999, 88888, 160, 200], [0, 40, 80, 120, 160, 200], True),
        ([0, 40, -99999, 120, 160], [0, 40, 80, 120, 160], True),
        # each time for several frames
        ([0, 0, 40, 40, 80, 80], [0, 20, 40, 60, 80, 100], True),
        ([0] * 3 + [40] * 4 + [80] * 4 + [120], [0, 13, 26, *range(40, 121, 10)], True),
        ([0] * 30 + [90] * 30 + [180], list(range(0, 181, 3)), True),
        # less time than frames
        ([0, None, 1, 2, 3, 40], [0, 1, 2, 3, 4, 41], True),
        # a pause, at the end too
        ([0, 40, 5000, 5040, 5080], [0, 40, 5000, 5040, 5080], False),
        ([0, 40, 80, 5000], [0, 40, 80, 5000], False),
        # another recording: from its start, overlapping, far ahead
        ([0, 40, 80, 0, 40, 80], [0, 40, 80, 120, 160, 200], True),
        ([0, 40, 80, 120, 90, 130, 170, 210], [0, 40, 80, 120, 160, 200, 240, 280], True),
        ([0, 40, 80, 900000, 900040], [0, 40, 80, 120, 160], True),
    ],
)
def test_only_times_out_of_place_change(times, expected, moved):
    longest = 10_000
    found, changed = repair_timeline(times, median_step(times), longest)
    assert (list(found), changed) == (expected, moved)


def test_without_a_longest_pause_a_jump_ahead_is_a_pause():
    assert list(repair_timeline([0, 40, 900000, 900040], 40, None)[0]) == [0, 40, 900000, 900040]


@given(st.lists(st.none() | st.integers(-200, 200), max_size=60), st.sampled_from([None, 30]))
def test_a_timeline_always_ascends_and_has_every_frame(times, longest):
    found, _ = repair_timeline(times, median_step(times), longest)
    assert len(found) == len(times)
    assert all(a < b for a, b in pairwise(found))


@given(st.integers(-1000, 1000), st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_a_timeline_that_ascends_is_not_touched(start, steps):
    times: list[int | None] = [start]
    total = start
    for step in steps:
        total += step
        times.append(total)
    assert repair_timeline(times, median_step(times), None) == (repair_timeline(times, 1, None)[0], False)
    assert list(repair_timeline(times, median_step(times), None)[0]) == times
