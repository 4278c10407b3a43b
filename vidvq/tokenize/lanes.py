"""Streams side by side, one to a lane; those of one frame size go through the encoder as one batch.

A kernel's shape decides how it rounds, and so may a stream's slot in a batch. So a batch has as many slots as there are
lanes, however many streams are alive; a lane always has its own slot, and the other slots change none of its codes.
The caller assigns items to lanes, by the plan alone.
"""

from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import torch

from vidvq.jobs.timing import Stopwatch
from vidvq.model import StreamState, Tokenizer
from vidvq.model.streaming import prepare_step
from vidvq.tokenize.encode import Answer, Step, encode_step

Lane = Generator[Step, Answer, None]


def run_lanes(tokenizer: Tokenizer, lanes: Sequence[Lane], clock: Stopwatch) -> None:
    """Run all lanes to their ends.

    Args:
        tokenizer: one without streaming encodes one lane after another.
        lanes: generators that yield steps and receive the codes and the state of each.
        clock: the encoder's time is booked as ``encode``.
    """
    waiting: dict[int, Step] = {}
    with ExitStack() as stack:
        for lane in lanes:
            stack.enter_context(closing(lane))

        def advance(slot: int, answer: Answer | None) -> None:
            try:
                waiting[slot] = lanes[slot].send(answer)  # type: ignore[arg-type] (None starts a generator)
            except StopIteration:
                return

        for slot in range(len(lanes)):
            advance(slot, None)
        while waiting:
            steps, waiting = waiting, {}
            with clock.activity("encode"):
                answers = _encode(tokenizer, steps, len(lanes))
            for slot, answer in sorted(answers.items()):
                advance(slot, answer)


def _encode(tokenizer: Tokenizer, steps: dict[int, Step], size: int) -> dict[int, Answer]:
    if size == 1 or not tokenizer.supports_streaming:
        return {slot: encode_step(tokenizer, step) for slot, step in steps.items()}
    alike: dict[tuple[Any, ...], dict[int, Step]] = defaultdict(dict)
    for slot, step in steps.items():
        alike[step.state is None, step.frames.shape[1:3]][slot] = step
    answers: dict[int, Answer] = {}
    for group in alike.values():
        answers |= _encode_batch(tokenizer, group, size)
    return answers


@torch.inference_mode()
def _encode_batch(tokenizer: Tokenizer, steps: dict[int, Step], size: int) -> dict[int, Answer]:
    """One step of streams of one frame size, all at their start or all past it; empty slots are zeros."""
    videos = {slot: prepare_step(tokenizer, step.frames, step.state) for slot, step in steps.items()}
    some = next(iter(videos.values()))
    frames = some.new_zeros(size, 3, max(video.shape[2] for video in videos.values()), *some.shape[3:])
    for slot, video in videos.items():
        frames[slot, :, : video.shape[2]] = video[0]
    states = [steps[slot].state if slot in steps else None for slot in range(size)]
    codes, after = tokenizer.encode_step(frames, StreamState.stack(states), batched=True)
    found = codes.cpu().numpy()
    # A stream whose step was filled up to the length of the others has ended: its state is not used again.
    return {
        slot: (found[slot, : max(video.shape[2] // tokenizer.temporal_factor, 1)], after.select(slot))
        for slot, video in videos.items()
    }
