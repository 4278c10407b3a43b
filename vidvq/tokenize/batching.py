"""Batched encoding of several streams, each in its own slot of the batch.

Kernels round differently for other shapes, and may do so for another slot. Batches are therefore always padded to the
number of slots, and a stream keeps its slot: its codes do not depend on the other streams. The caller assigns items to
slots by the plan alone. Streams of different frame sizes are encoded in separate batches. The step shape of the
tokenizer determines the groups of a step.

A GPU computes a step while this process assembles the next one and writes earlier samples: this process waits for the
codes of a step only after it has queued the next step.
"""

from collections import defaultdict
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import cache, partial
from time import monotonic
from typing import Any

import numpy as np
import torch

from vidvq.jobs.timing import Stopwatch
from vidvq.model import StreamState, Tokenizer
from vidvq.model.device_copy import DeviceCopier
from vidvq.model.streaming import groups_per_step, prepare_step
from vidvq.tokenize.encode import PendingCodes, Step, StepResult, encode_step, pending_codes

# Threads that assemble a batch. NumPy copies without holding the interpreter.
_COPY_THREADS = 4

SlotStream = Generator[Step, StepResult, None]


def run_slots(tokenizer: Tokenizer, slots: Sequence[SlotStream], clock: Stopwatch) -> None:
    """Encode the streams of all slots to their ends.

    Args:
        tokenizer: a tokenizer; one without streaming encodes one slot after another.
        slots: one generator per slot, which yields steps and receives the result of each.
        clock: stopwatch that counts the time of the encoder as ``encode``, ``pad`` and ``warmup``.
    """
    waiting: dict[int, Step] = {}
    copy = _copier(tokenizer.device)
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
            started_s, warmup_s = monotonic(), tokenizer.warmup_s
            with clock.activity("encode"):
                results = _encode_steps(tokenizer, steps, len(slots), copy)
            warmup_s = tokenizer.warmup_s - warmup_s
            encoding_s = monotonic() - started_s - warmup_s
            clock.move(warmup_s, "encode", "warmup")
            padding = _padded_share(tokenizer, steps, len(slots))
            clock.move(encoding_s * padding, "encode", "pad")
            for slot, (codes, state) in sorted(results.items()):
                advance(slot, (partial(_wait, codes, padding, clock), state))


@cache
def _copy_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_COPY_THREADS)


# One for all shards: torch keeps the freed memory of each stream apart, and has 32 of them.
_copier = cache(DeviceCopier)


def _wait(codes: PendingCodes, padding: float, clock: Stopwatch) -> np.ndarray:
    started_s = monotonic()
    with clock.activity("encode"):
        found = codes()
    clock.move((monotonic() - started_s) * padding, "encode", "pad")
    return found


def _padded_share(tokenizer: Tokenizer, steps: dict[int, Step], slots: int) -> float:
    """Return the share (0 to 1) of padding in the encoded groups, from short last steps and empty slots."""
    if not tokenizer.supports_streaming:
        return 0.0
    encoded = needed = 0
    for together in _group_steps(steps).values():
        lengths = [_count_groups(tokenizer, step) for step in together.values()]
        groups = groups_per_step(tokenizer, next(iter(together.values())).frame_shape[:2])
        encoded += slots * -(-max(lengths) // groups) * groups
        needed += sum(lengths)
    return 1 - needed / encoded


def _count_groups(tokenizer: Tokenizer, step: Step) -> int:
    """Return the groups of a step; frame 0 is one."""
    first = step.state is None
    return -(-(step.num_frames - first) // tokenizer.temporal_factor) + first


def _group_steps(steps: dict[int, Step]) -> dict[tuple[Any, ...], dict[int, Step]]:
    """Group steps that one call can encode: of one frame size, and all at the start of their streams or none."""
    grouped: dict[tuple[Any, ...], dict[int, Step]] = defaultdict(dict)
    for slot, step in steps.items():
        grouped[step.state is None, *step.frame_shape[:2]][slot] = step
    return grouped


def _encode_steps(tokenizer: Tokenizer, steps: dict[int, Step], size: int, copy: DeviceCopier) -> dict[int, StepResult]:
    if size == 1 or not tokenizer.supports_streaming:
        return {slot: encode_step(tokenizer, step) for slot, step in steps.items()}
    results: dict[int, StepResult] = {}
    for together in _group_steps(steps).values():
        results |= _encode_batch(tokenizer, together, size, copy)
    return results


@torch.inference_mode()
def _encode_batch(tokenizer: Tokenizer, steps: dict[int, Step], size: int, copy: DeviceCopier) -> dict[int, StepResult]:
    """Encode steps that :func:`_group_steps` has grouped, in one call; empty slots are black."""
    example = next(iter(steps.values()))
    first, r = example.state is None, tokenizer.temporal_factor
    groups = {slot: _count_groups(tokenizer, step) for slot, step in steps.items()}
    length = max(groups.values()) * r - (r - 1) * first
    pixels = _empty_pixels((size, length, *example.frame_shape), tokenizer.device)
    rows = pixels.numpy()

    def fill(slot: int) -> None:
        count = end = 0
        if step := steps.get(slot):
            for chunk in step.chunks:
                rows[slot, count : count + len(chunk)] = chunk
                count += len(chunk)
            # An incomplete last group is filled with its last frame.
            end = groups[slot] * r - (r - 1) * first
            rows[slot, count:end] = rows[slot, count - 1]
        rows[slot, end:] = 0

    # One thread would take as long for it as a large GPU for the step.
    list(_copy_threads().map(fill, range(size)))
    state = StreamState.stack([steps[slot].state if slot in steps else None for slot in range(size)])
    codes, after = tokenizer.encode_step(prepare_step(tokenizer, copy(pixels), state), state)
    found = pending_codes(codes)
    # Only the last step of a stream is padded, so the state after the padding is never used.
    return {slot: (partial(_rows, found, slot, groups[slot]), after.select(slot)) for slot in steps}


def _empty_pixels(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Memory to copy pixels from: bytes, a quarter of floats; torch reuses pinned memory."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _rows(codes: PendingCodes, slot: int, groups: int) -> np.ndarray:
    return codes()[slot, :groups]
