"""Batched encoding of several streams, each in its own slot of the batch.

Kernels round differently for other shapes, and may do so for another slot. Batches are therefore always padded to the
number of slots, and a stream keeps its slot: its codes do not depend on the other streams. The caller assigns items to
slots by the plan alone. Streams of different frame sizes are encoded in separate batches.
"""

from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import torch

from vidvq.jobs.timing import Stopwatch
from vidvq.model import StreamState, Tokenizer
from vidvq.model.streaming import prepare_step
from vidvq.tokenize.encode import Step, StepResult, encode_step

SlotStream = Generator[Step, StepResult, None]


def run_slots(tokenizer: Tokenizer, slots: Sequence[SlotStream], clock: Stopwatch) -> None:
    """Encode the streams of all slots to their ends.

    Args:
        tokenizer: a tokenizer; one without streaming encodes one slot after another.
        slots: one generator per slot, which yields steps and receives the result of each.
        clock: stopwatch that counts the time of the encoder as ``encode``.
    """
    waiting: dict[int, Step] = {}
    with ExitStack() as stack:
        for slot_stream in slots:
            stack.enter_context(closing(slot_stream))

        def advance(slot: int, result: StepResult | None) -> None:
            try:
                waiting[slot] = slots[slot].send(result)  # type: ignore[arg-type] (None starts a generator)
            except StopIteration:
                return

        for slot in range(len(slots)):
            advance(slot, None)
        while waiting:
            steps, waiting = waiting, {}
            with clock.activity("encode"):
                results = _encode(tokenizer, steps, len(slots))
            for slot, result in sorted(results.items()):
                advance(slot, result)


def _encode(tokenizer: Tokenizer, steps: dict[int, Step], size: int) -> dict[int, StepResult]:
    if size == 1 or not tokenizer.supports_streaming:
        return {slot: encode_step(tokenizer, step) for slot, step in steps.items()}
    alike: dict[tuple[Any, ...], dict[int, Step]] = defaultdict(dict)
    for slot, step in steps.items():
        alike[step.state is None, step.frames.shape[1:3]][slot] = step
    results: dict[int, StepResult] = {}
    for group in alike.values():
        results |= _encode_batch(tokenizer, group, size)
    return results


@torch.inference_mode()
def _encode_batch(tokenizer: Tokenizer, steps: dict[int, Step], size: int) -> dict[int, StepResult]:
    """Encode one step of streams of one frame size, all at their first step or all past it; empty slots hold zeros."""
    videos = {slot: prepare_step(tokenizer, step.frames, step.state) for slot, step in steps.items()}
    some = next(iter(videos.values()))
    frames = some.new_zeros(size, 3, max(video.shape[2] for video in videos.values()), *some.shape[3:])
    for slot, video in videos.items():
        frames[slot, :, : video.shape[2]] = video[0]
    states = [steps[slot].state if slot in steps else None for slot in range(size)]
    codes, after = tokenizer.encode_step(frames, StreamState.stack(states), batched=True)
    found = codes.cpu().numpy()
    # A step is shorter than others only at the end of its stream, so the state after the padding is not used again.
    return {
        slot: (found[slot, : max(video.shape[2] // tokenizer.temporal_factor, 1)], after.select(slot))
        for slot, video in videos.items()
    }
