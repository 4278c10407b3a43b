"""The worker of `vidvq tokenize`: frames from decoding processes, codes from the encoder, samples into the shard.

    Feeder (a process per slot)            this process
    video or clip -> frames --messages-->  _stream (a generator per slot): Step -->  run_slots: encoder, batched
                                                         ^------- codes, state ------'
                                           codes, JSON --> OrderedShardWriter --> tar, commit record

Each slot encodes some items of the shard one after another. The plan alone determines the items of a slot.
"""

from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from vidvq.corpus.frames import ClipFrames, DecodeMessage, VideoFrames, decode_items
from vidvq.errors import UsageError
from vidvq.formats.commit import Outcome, ShardDraft, commit_shard
from vidvq.formats.reuse import reusable_samples
from vidvq.formats.summary import sample_stats
from vidvq.formats.token_shard import TokenInfo, parse_info, token_files
from vidvq.jobs.access import AccessWatch
from vidvq.jobs.local_clips import local_clips
from vidvq.jobs.rows import ClipRow
from vidvq.jobs.shard_writer import OrderedShardWriter, Rejected, Sample
from vidvq.jobs.stage import ShardResult, ShardTask
from vidvq.jobs.timing import Stopwatch
from vidvq.metrics.codes import CodeCounts
from vidvq.pretrained import load_tokenizer
from vidvq.runtime import Deaths, Feeder, WorkerDied, describe_death
from vidvq.tokenize.batching import SlotStream, run_slots
from vidvq.tokenize.config import Execution, TokenizeConfig
from vidvq.tokenize.device import prepare
from vidvq.tokenize.encode import Step, StepResult, sample_steps
from vidvq.tokenize.quality import Scorer, is_scored, keep_frames
from vidvq.tokenize.quality_gates import refuse_poor
from vidvq.tokenize.rows import PlannedSample
from vidvq.video import VideoError

# Frames per message, rounded down to whole groups: enough to amortize sending them, and little memory.
_CHUNK_FRAMES = 32
Row: TypeAlias = ClipRow | PlannedSample


class TokenShardWorker:
    """Makes token shards with a tokenizer that is loaded once.

    Args:
        checkpoint: folder of the tokenizer.
        config: settings.
        clips: directory of clip shards; None for raw video.
        execution: how samples are encoded.

    Raises:
        UsageError: the job runs on GPUs, and this worker has none, or not the memory for a step.
    """

    def __init__(self, checkpoint: Path, config: TokenizeConfig, clips: Path | None, execution: Execution) -> None:
        # One thread on every machine: threads split sums, so tokens would depend on the number of cores.
        torch.set_num_threads(1)
        self._tokenizer, self._card = load_tokenizer(checkpoint)
        prepare(self._tokenizer, execution)
        self._config, self._clips = config, clips
        self._feeders = [Feeder() for _ in range(execution.streams)]
        self._scorer = Scorer(self._tokenizer, config.quality)
        self._access = AccessWatch(config.lists.allow_private, config.limits.allow_denied)
        # On a GPU this thread waits for the device while it encodes. On a CPU it waits only if it has no core.
        self._clock = Stopwatch(compute=("encode", "score") if execution.device == "cpu" else ())

    def __call__(self, task: ShardTask[Any]) -> ShardResult:
        """Make and commit a shard."""
        counts, copied = CodeCounts(self._card), Counter[str]()
        with ExitStack() as stack:
            with self._clock.activity("fetch"):
                file = stack.enter_context(local_clips(self._clips, task.rows[0])) if self._clips else None
            with self._clock.activity("write"):
                fill = partial(self._fill, task, file, counts, copied)
                commit = commit_shard(task.out, task.shard, task.plan_id, fill)
        # One is enough for whatever else this process decodes; starting the others again would take long.
        self._feeders[0].release()
        return self._clock.result(commit, dict(copied), counts)

    def _fill(
        self, task: ShardTask[Any], file: Path | None, counts: CodeCounts, copied: Counter[str], draft: ShardDraft
    ) -> None:
        for verdict, outcome in task.left_out():
            (draft.failed if verdict == "failed" else draft.filtered).append(outcome)
        writer = OrderedShardWriter(draft, [row.key for row in task.rows if not row.outcome])
        reused = reusable_samples(task.out, task.older, task.rows)
        streams = []
        for part, feeder in zip(
            _split(task.rows, self._slots_interleave, len(self._feeders)), self._feeders, strict=True
        ):
            left = deque(row for row in part if not row.outcome and row.key not in reused)
            streams.append(self._stream(left, file, feeder, writer, counts))
        for key, files in reused.items():
            info = parse_info(files, key)
            stats = _stats(info)
            copied.update(stats)
            writer.put(Sample(key, files, stats))
        run_slots(self._tokenizer, streams, self._clock)
        if self._clips is None:
            self._access.see_shard([row for row in task.rows if row.key not in reused], draft.failed)
        refuse_poor(task.shard, draft.stats, self._config.quality)

    @property
    def _slots_interleave(self) -> bool:
        """Whether slots take turns over the items of a shard, instead of getting consecutive items each.

        Consecutive items of one video are decoded in one pass. Unbroken streams share no video, and if a slot had
        consecutive ones, hours of tokens would wait in memory for their turn in the shard.
        """
        return self._clips is None and self._config.gop_frames is None

    def _stream(
        self, left: "deque[Row]", file: Path | None, feeder: Feeder, writer: OrderedShardWriter, counts: CodeCounts
    ) -> SlotStream:
        """Encode the items of one slot in order, while the next ones are decoded."""
        deaths = Deaths()
        while left:
            before = len(left)
            deadline_s = self._config.limits.deadline_s
            decoded = feeder.feed(decode_items, self._frames_of(left, file), deadline_s)
            if death := (yield from self._encode(decoded, left, writer, counts)):
                if len(left) < before:
                    deaths.reset()
                if deaths.give_up(death):
                    deaths.reset()
                    row = left.popleft()
                    detail = f"the decoder crashed on it or ran past limits.deadline_s={deadline_s:g}"
                    reason, detail = describe_death(death, "decoder_died", detail)
                    writer.put(Rejected("failed", Outcome(row.key, reason, f"{file or row.origin}: {detail}")))
            elif left:
                raise UsageError(f"{file or left[0].origin} lacks {left[0].key}, which was planned")

    def _frames_of(self, rows: "deque[Row]", file: Path | None) -> ClipFrames | VideoFrames:
        if file:
            return ClipFrames(file, frozenset(row.key for row in rows))
        group = self._tokenizer.temporal_factor
        chunk = max(_CHUNK_FRAMES // group, 1) * group
        windows = tuple(row for row in rows if isinstance(row, PlannedSample))
        return VideoFrames(windows, self._config.video, self._config.limits, chunk, self._config.lists.allow_private)

    def _encode(
        self,
        decoded: Generator[DecodeMessage | WorkerDied, None, None],
        left: "deque[Row]",
        writer: OrderedShardWriter,
        counts: CodeCounts,
    ) -> Generator[Step, StepResult, WorkerDied | None]:
        """Encode items and remove each from ``left``. Returns the death of the decoding process, if it died."""
        with closing(decoded):
            messages = self._clock.waiting("decode", decoded)
            for message in messages:
                if isinstance(message, WorkerDied):
                    return message
                try:
                    if message.error:
                        raise message.error
                    assert message.info is not None
                    frames, kept = _frames(messages), []
                    scored = is_scored(message.key, self._config.quality.share)
                    chunks = keep_frames(self._tokenizer, frames, kept) if scored else frames
                    codes = yield from sample_steps(self._tokenizer, chunks, self._card.dtype)
                except _DecoderDied as died:
                    return died.death
                except VideoError as error:
                    writer.put(Rejected("failed", Outcome(message.key, error.reason, error.detail)))
                else:
                    with self._clock.activity("score"):
                        quality = self._scorer.score(codes, kept) if scored else None
                    counts.add(codes)
                    grid = tuple(int(length) for length in codes.shape)
                    info = TokenInfo(grid=grid, quality=quality, **vars(message.info))
                    files = token_files(codes, info, self._card, self._config.pack)
                    writer.put(Sample(message.key, files, _stats(info)))
                left.popleft()
        return None


class _DecoderDied(Exception):
    """The decoding process died."""

    def __init__(self, death: WorkerDied) -> None:
        super().__init__(death.message)
        self.death = death


def _stats(info: TokenInfo) -> dict[str, int]:
    return sample_stats(info.num_frames, info.grid, info.quality)


def _split(rows: Any, interleave: bool, slots: int) -> list[Any]:
    """The items of each slot, by position in the planned shard, whether or not an item still has to be encoded."""
    if interleave:
        return [rows[slot::slots] for slot in range(slots)]
    edges = [len(rows) * slot // slots for slot in range(slots + 1)]
    return [rows[start:stop] for start, stop in pairwise(edges)]


def _frames(messages: Iterator[DecodeMessage | WorkerDied]) -> Iterator[np.ndarray]:
    for message in messages:
        if isinstance(message, WorkerDied):
            raise _DecoderDied(message)
        if message.error:
            raise message.error
        if message.done:
            return
        assert message.frames is not None
        yield message.frames
