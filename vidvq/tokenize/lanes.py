"""Several streams side by side, each in a lane of its own; those of one frame size go through the encoder together.

A kernel's shape decides how it rounds, and so may a stream's place in a batch. So batches have as many places as there
are lanes, however many streams are alive; a lane is always at its own place, and what is in the other places changes
nothing. Which lane an item is in is for the caller to decide, by the plan alone.
"""

from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidvq.model import Tokenizer, VideoTokenizer
from vidvq.tokenize.account import Stopwatch
from vidvq.tokenize.encode import Step, encode_step, to_groups

Lane = Generator[Step, tuple[np.ndarray, Any], None]


def run_lanes(tokenizer: Tokenizer, lanes: Sequence[Lane], clock: Stopwatch) -> None:
    """Run all lanes to their ends.

    Args:
        tokenizer: one without a batched step encodes one lane after another.
        lanes: yield steps, and take the codes and the state of each.
        clock: what encodes counts as ``encode``.
    """
    asked: dict[int, Step] = {}
    with ExitStack() as stack:
        for lane in lanes:
            stack.enter_context(closing(lane))

        def go_on(place: int, answer: tuple[np.ndarray, Any] | None) -> None:
            try:
                asked[place] = lanes[place].send(answer)  # type: ignore[arg-type] (None starts a generator)
            except StopIteration:
                return

        for place in range(len(lanes)):
            go_on(place, None)
        while asked:
            steps, asked = asked, {}
            with clock.stage("encode"):
                answers = _encode(tokenizer, steps, len(lanes))
            for place, answer in sorted(answers.items()):
                go_on(place, answer)


def _encode(tokenizer: Tokenizer, steps: dict[int, Step], size: int) -> dict[int, tuple[np.ndarray, Any]]:
    if size == 1 or not isinstance(tokenizer, VideoTokenizer):
        return {place: encode_step(tokenizer, step) for place, step in steps.items()}
    alike: dict[tuple[Any, ...], dict[int, Step]] = defaultdict(dict)
    for place, step in steps.items():
        alike[step.state is None, step.frames.shape[1:3]][place] = step
    answers: dict[int, tuple[np.ndarray, Any]] = {}
    for group in alike.values():
        answers |= _encode_together(tokenizer, group, size)
    return answers


@torch.inference_mode()
def _encode_together(tokenizer: VideoTokenizer, steps: dict[int, Step], size: int) -> dict[int, tuple[np.ndarray, Any]]:
    """One step of streams of one frame size that are all at their start, or all behind it; nothing in other places."""
    given = {place: to_groups(tokenizer, step) for place, step in steps.items()}
    some = next(iter(given.values()))
    frames = some.new_zeros(size, 3, max(video.shape[2] for video in given.values()), *some.shape[3:])
    for place, video in given.items():
        frames[place, :, : video.shape[2]] = video[0]
    codes, after = tokenizer.encode_step(frames, _stack(steps, size), together=True)
    found = codes.cpu().numpy()
    answers = {}
    for place, video in given.items():
        groups = max(video.shape[2] // tokenizer.temporal_factor, 1)
        past = tuple(tensor[place : place + 1] for tensor in after.past)
        # Of a stream whose step was filled up to the others' length this is no state to go on from; it has ended.
        answers[place] = (found[place, :groups], replace(after, shape=(1, *after.shape[1:]), past=past))
    return answers


def _stack(steps: dict[int, Step], size: int) -> Any:
    """The states of some places as one, with zeros in the others; None at the start of streams."""
    states = {place: step.state for place, step in steps.items()}
    some = next(iter(states.values()))
    if some is None:
        return None

    def at(index: int) -> Tensor:
        empty = torch.zeros_like(some.past[index])
        return torch.cat([states[place].past[index] if place in states else empty for place in range(size)])

    past = tuple(at(index) for index in range(len(some.past)))
    return replace(some, shape=(size, *some.shape[1:]), past=past)
