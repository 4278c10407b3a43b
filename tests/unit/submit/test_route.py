"""The way to where a job meets."""

import pytest

from vidvq.submit import route


def test_a_meeting_place_here_is_reached_by_the_loopback(capsys):
    assert route.main("127.0.0.1:29500") == 0
    assert capsys.readouterr().out.split() == ["lo"]


@pytest.mark.parametrize("head", ["nowhere.invalid:29500", "127.0.0.1:", "127.0.0.1"])
def test_no_place_to_meet_is_one_line(head, capsys):
    assert route.main(head) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{head} is no place to meet") and said.count("\n") == 1
