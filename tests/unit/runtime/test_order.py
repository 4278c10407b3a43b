"""Drivers of one job that share its work: in which order each comes to it."""

import pytest

from vidvq.runtime import RuntimeConfig


@pytest.mark.parametrize("total", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_each_driver_comes_to_all_of_it_and_to_its_own_part_first(total, parts):
    orders = [RuntimeConfig(part=f"{part}/{parts}").order(total) for part in range(parts)]
    assert all(sorted(order) == list(range(total)) for order in orders)
    edges = [total * part // parts for part in range(parts + 1)]
    own = [order[: end - start] for order, start, end in zip(orders, edges, edges[1:], strict=False)]
    assert [index for part in own for index in part] == list(range(total))


def test_help_comes_from_the_other_end():
    assert RuntimeConfig(part="0/2").order(6) == [0, 1, 2, 5, 4, 3]
    assert RuntimeConfig(part="2/3").order(6) == [4, 5, 1, 0, 3, 2]
    assert RuntimeConfig().order(3) == [0, 1, 2]


@pytest.mark.parametrize("part", ["", "2/2", "1", "-1/2", "1/0", "a/b", "1/2/3"])
def test_no_such_part(part):
    if part == "":
        assert RuntimeConfig(part="").order(2) == [0, 1]
        return
    with pytest.raises(ValueError, match="must be I/N with I from 0 to N - 1"):
        RuntimeConfig(part=part)
