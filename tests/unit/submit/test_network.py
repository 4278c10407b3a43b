"""The network interface that leads to the rendezvous."""

import pytest

from vidvq.submit import network


def test_a_local_rendezvous_is_reached_over_the_loopback(capsys):
    assert network.main("127.0.0.1:29500") == 0
    assert capsys.readouterr().out.split() == ["lo"]


@pytest.mark.parametrize("head", ["nowhere.invalid:29500", "127.0.0.1:", "127.0.0.1"])
def test_an_unusable_address_is_one_line(head, capsys):
    assert network.main(head) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{head} cannot be reached from") and message.count("\n") == 1
