"""Frame times come back exactly, regular or not, and regular ones in few bytes."""

from hypothesis import given
from hypothesis import strategies as st

from vidvq.formats.frame_times import from_runs, to_runs


def test_a_regular_clip_is_its_start_and_one_step():
    assert to_runs(tuple(range(-512, 512 * 32, 512))) == [-512, [512, 32]]
    assert to_runs((7,)) == [7]


def test_times_in_milliseconds_are_runs():
    assert to_runs((0, 33, 67, 100, 133, 167)) == [0, [33, 1], [34, 1], [33, 2], [34, 1]]


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=50))
def test_any_times_come_back(pts):
    assert from_runs(to_runs(tuple(pts)), len(pts)) == tuple(pts)
