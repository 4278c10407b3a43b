"""Conditions are independent of the hidden pixels, to the bit."""

import pytest
import torch

from vidvq.generate.blanking import draw_hidden_pixels, encode_visible, hide_box, hide_frames
from vidvq.pretrained import load_tokenizer

SHAPE = (9, 32, 40)


@pytest.fixture(scope="module")
def tokenizer(checkpoint_dir):
    return load_tokenizer(checkpoint_dir)[0]


@pytest.mark.parametrize(
    "hidden",
    [
        hide_frames(SHAPE, [0, 8]),
        hide_frames(SHAPE, [0, 4, 8]),
        hide_box(SHAPE, (5, 7, 11, 13)),
        ~hide_box(SHAPE, (5, 7, 11, 13)),
    ],
    ids=["ends", "every", "box", "outside"],
)
def test_hidden_pixels_do_not_change_the_condition(tokenizer, hidden):
    torch.manual_seed(0)
    video, other = torch.rand(1, 3, *SHAPE) * 2 - 1, torch.rand(1, 3, *SHAPE) * 2 - 1
    mixed = torch.where(hidden, other, video)
    first, second = encode_visible(tokenizer, video, hidden[None]), encode_visible(tokenizer, mixed, hidden[None])
    assert torch.equal(first.codes, second.codes) and torch.equal(first.visible, second.visible)
    # Codes of the complete video would differ in the visible region.
    visible = first.visible == 1
    assert visible.any()
    assert not torch.equal(tokenizer.encode(video)[visible], tokenizer.encode(mixed)[visible]) or hidden[0].sum() == 0


def test_what_is_visible_does_reach_the_condition(tokenizer):
    torch.manual_seed(0)
    hidden = hide_box(SHAPE, (0, 0, 8, 8))
    video = torch.rand(1, 3, *SHAPE) * 2 - 1
    found, other = (encode_visible(tokenizer, each, hidden[None]) for each in (video, -video))
    assert not torch.equal(found.codes, other.codes)
    assert found.visible[0, :, 0, 0].tolist() == [0, 0, 0] and found.visible[0, :, 1:].min() == 1
    quarter = hide_box(SHAPE, (0, 0, 4, 4)) & hide_frames(SHAPE, [1, 2, 6])
    partly = encode_visible(tokenizer, video, quarter[None]).visible[0, :, 0, 0]
    assert partly.tolist() == [3 / 4, 7 / 8, 13 / 16]


@pytest.mark.parametrize("task", ["interpolate", "fill"])
def test_drawn_parts_are_neither_nothing_nor_all(task):
    drawn = [draw_hidden_pixels(task, SHAPE, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert all(0 < hidden.float().mean() < 1 for hidden in drawn)
    assert len({hidden.numpy().tobytes() for hidden in drawn}) > 4
    if task == "interpolate":
        assert not any(hidden[[0, -1]].any() for hidden in drawn)
        # Keeping the ends alone is a common request, but would be one of many intervals of a long clip.
        assert 10 < sum(bool(hidden[1:-1].all()) for hidden in drawn) < 35
