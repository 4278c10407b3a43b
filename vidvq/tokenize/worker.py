"""The worker of `vidvq tokenize`: frames from decoding processes, codes from the encoder, samples into the shard.

    decoding processes of each slot        this process
    video or clip -> frames --messages-->  _stream (a generator per slot): Step -->  run_slots: encoder, batched
                                                         ^------- codes, state ------'
                                           codes, JSON --> OrderedShardWriter --> tar, commit record

Each slot encodes some items of the shard one after another. The plan alone determines the items of a slot.
"""

import gc
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidvq.corpus.download import in_background
from vidvq.corpus.frames import ClipFrames, DecodeMessage, ItemInfo, VideoFrames, item_frames
from vidvq.errors import UsageError
from vidvq.formats.commit import Outcome, ShardDraft, commit_shard
from vidvq.formats.execution import ANY_GPU, Execution
from vidvq.formats.summary import sample_stats
from vidvq.formats.token_shard import TokenInfo, parse_info, token_files
from vidvq.jobs.access import AccessWatch
from vidvq.jobs.rows import ClipRow
from vidvq.jobs.shard_writer import OrderedShardWriter, Rejected, Sample
from vidvq.jobs.stage import ShardResult, ShardTask
from vidvq.jobs.timing import Stopwatch
from vidvq.metrics.codes import CodeCounts
from vidvq.pretrained import load_tokenizer
from vidvq.pretrained.device import prepare, stopping_when_full
from vidvq.runtime import Deaths, WorkerDied, cores_per_worker, describe_death
from vidvq.tokenize.agreement import AgreementCheck
from vidvq.tokenize.batching import SlotStream, run_slots
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.decoders import Decoders, Job, PlannedClips
from vidvq.tokenize.encode import Step, StepResult, sample_steps
from vidvq.tokenize.gpu_memory import fit_memory
from vidvq.tokenize.quality import ScoreQueue, Scorer, is_scored, keep_frames
from vidvq.tokenize.quality_gates import ShardDetails, refuse_poor
from vidvq.tokenize.rows import PlannedSample
from vidvq.tokenize.shard_input import Decoded, Row, ShardInput
from vidvq.video import VideoError

# Frames per message, rounded down to whole groups: enough to amortize sending, few enough to save memory.
_CHUNK_FRAMES = 32
# Activities in which this process does not wait for frames.
_ENCODER = ("encode", "pad", "score")


class TokenShardWorker:
    """Makes token shards with a tokenizer that is loaded once.

    Args:
        clips: directory of clip shards; None for raw video.

    Raises:
        UsageError: the job runs on GPUs, and this worker has none, has one of another kind than planned, or has too
            little memory for the smallest step.
    """

    def __init__(self, checkpoint: Path, config: TokenizeConfig, clips: Path | None, execution: Execution) -> None:
        # One thread on every machine: threads split sums, so tokens would depend on the number of cores.
        torch.set_num_threads(1)
        self._tokenizer, self._card = load_tokenizer(checkpoint)
        prepare(self._tokenizer, execution, config.runtime.gpus_per_worker)
        if execution.gpu == ANY_GPU:
            # Kinds of GPUs differ in memory, and a smaller step changes tokens no more than another kind does.
            execution = fit_memory(self._tokenizer, execution, config.quality.share > 0)
        if execution.compiled:
            self._tokenizer.compile_steps(capture=True)
        self._config, self._clips = config, clips
        cores = cores_per_worker(config.runtime, on_gpu=execution.device == "cuda")
        self._streams = execution.streams
        on_cluster = config.runtime.decode_on == "cluster"
        if on_cluster:
            # Arrays in Ray's object store are read-only; nothing writes to frames.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        self._decoders = Decoders(execution.streams, config.runtime.decoders, cores, on_cluster)
        self._scorer = Scorer(self._tokenizer, config.quality)
        self._access = AccessWatch(config.lists.allow_private, config.limits.allow_denied)
        self._agreement = AgreementCheck(checkpoint, execution)
        # On a GPU this thread waits for the device while it encodes. On a CPU it waits only if it has no core.
        self._clock = Stopwatch(compute=("encode", "score") if execution.device == "cpu" else ())
        if execution.device == "cuda":
            # Otherwise each full collection traverses the objects of the libraries (0.1 s) while the GPU waits.
            gc.collect()
            gc.freeze()
        # The shard after the current one: its name, and its input.
        self._next: tuple[str, Future[ShardInput]] | None = None
        # Slots whose processes have nothing left to decode for the current shard.
        self._free: set[int] = set()

    def __call__(self, task: ShardTask[Any], following: ShardTask[Any] | None = None) -> ShardResult:
        """Make and commit a shard.

        Args:
            following: the next one, if it is known: its input is fetched, and decoded by each process that is free.

        Raises:
            JobStopped: the memory of the GPU is full.
        """
        try:
            return self._make(task, following)
        except BaseException:
            self._discard_next()
            raise

    def _make(self, task: ShardTask[Any], following: ShardTask[Any] | None) -> ShardResult:
        details, copied = ShardDetails(CodeCounts(self._card)), Counter[str]()
        with self._clock.activity("fetch"):
            given = self._open(task)
        with closing(given):
            with self._clock.activity("decode"):
                for slot in range(self._streams):
                    given.start(slot, self._decode)
            self._free.clear()
            if following:
                self._next = following.shard, in_background(partial(self._new_input, following, prefetch=True))
            with self._clock.activity("write"):
                fill = partial(self._fill, task, given, details, copied)
                what = f"{task.shard}: a step of {self._tokenizer.step_shape} streams x groups"
                remedy = "and run the same command again, or give a smaller batch or groups and another --out"
                with stopping_when_full(what, remedy):
                    commit = commit_shard(task.out, task.shard, task.plan_id, fill)
        self._decoders.release()
        details.decoders = self._decoders.count
        details.from_nvdec = self._decoders.from_nvdec if self._config.decoder == "nvdec" else None
        result = self._clock.result(commit, dict(copied), details)
        self._decoders.adapt(sum(result.seconds.get(name, 0.0) for name in _ENCODER))
        return result

    def _open(self, task: ShardTask[Any]) -> ShardInput:
        if self._next and self._next[0] == task.shard:
            (_, opening), self._next = self._next, None
            return opening.result()
        # Another worker took the announced shard.
        self._discard_next()
        return self._new_input(task)

    def _discard_next(self) -> None:
        if self._next:
            (_, opening), self._next = self._next, None
            opening.add_done_callback(lambda opened: opened.exception() or opened.result().close())

    def _new_input(self, task: ShardTask[Any], prefetch: bool = False) -> ShardInput:
        # Decoding processes on other nodes open their inputs themselves.
        on_node = self._config.runtime.decode_on == "node"
        given = ShardInput(task, self._clips if on_node else None, self._streams, self._slots_interleave)
        if prefetch and on_node:
            given.prefetch(self._config.limits, self._config.lists.allow_private)
        return given

    def _fill(
        self, task: ShardTask[Any], given: ShardInput, details: ShardDetails, copied: Counter[str], draft: ShardDraft
    ) -> None:
        for verdict, outcome in task.left_out():
            (draft.failed if verdict == "failed" else draft.filtered).append(outcome)
        writer = OrderedShardWriter(draft, [row.key for row in task.rows if not row.outcome])
        for key, files in given.reused.items():
            info = parse_info(files, key)
            stats = _stats(info)
            copied.update(stats)
            writer.put(Sample(key, files, stats))
        # Unbroken streams have too many tokens to let them wait for one another.
        scores = ScoreQueue(self._scorer, 1 if self._slots_interleave else self._streams)
        shard = _Shard(given, writer, scores, details)
        run_slots(self._tokenizer, [self._stream(shard, slot) for slot in range(self._streams)], self._clock)
        with self._clock.activity("score"):
            scores.flush()
        if self._clips is None:
            self._access.record_shard([row for row in task.rows if row.key not in given.reused], draft.failed)
        refuse_poor(task.shard, draft.stats, self._config.quality)

    @property
    def _slots_interleave(self) -> bool:
        """Whether slots take turns over the items of a shard, instead of getting consecutive items each.

        Consecutive items of one video are decoded in one pass. Unbroken streams share no video, and if a slot had
        consecutive ones, hours of tokens would wait in memory for their turn in the shard.
        """
        return self._clips is None and self._config.gop_frames is None

    def _decode(self, slot: int, given: ShardInput, died: bool = False) -> Decoded:
        job = self._frames_of(given.left[slot], given.file, died)
        return self._decoders.messages(slot, job, self._config.limits.deadline_s)

    def _decode_next(self, free: int | None = None) -> None:
        """Start to decode the next shard with processes that have finished this one.

        Args:
            free: slot that has received all its frames. Only free slots start on other nodes.
        """
        if free is not None:
            self._free.add(free)
        if self._next and self._next[1].done() and not self._next[1].exception():
            following = self._next[1].result()
            for slot in sorted(self._free) if self._decoders.on_cluster else range(self._streams):
                following.start(slot, self._decode)

    def _stream(self, shard: "_Shard", slot: int) -> SlotStream:
        """Encode the items of one slot in order, while the next ones are decoded."""
        given, left = shard.given, shard.given.left[slot]
        deaths, died = Deaths(), False
        while left:
            decoded = given.take_decoding(slot) or self._decode(slot, given, died)
            if death := (yield from self._encode(shard, slot, decoded, left)):
                died = True
                if deaths.give_up(death, len(left)):
                    row = left.popleft()
                    limit = f"limits.deadline_s={self._config.limits.deadline_s:g}"
                    reason, detail = describe_death(
                        death, "decoder_died", f"the decoder crashed on it or ran past {limit}"
                    )
                    detail = f"{given.file or row.origin}: {detail}"
                    shard.writer.put(Rejected("failed", Outcome(row.key, reason, detail)))
            elif left:
                raise UsageError(f"{given.file or left[0].origin} lacks {left[0].key}, which was planned")
        self._decode_next(slot)

    def _frames_of(self, rows: "deque[Row]", file: Path | None, died: bool) -> Job:
        if self._clips:
            keys, some = frozenset(row.key for row in rows), rows[0]
            assert isinstance(some, ClipRow), "a stage without videos has rows of clips"
            return ClipFrames(file, keys) if file else PlannedClips(self._clips, some, keys)
        group = self._tokenizer.temporal_factor
        chunk = max(_CHUNK_FRAMES // group, 1) * group
        windows = tuple(row for row in rows if isinstance(row, PlannedSample))
        return VideoFrames(
            windows,
            self._config.video,
            self._config.limits,
            chunk,
            self._config.lists.allow_private,
            # After a crash PyAV decodes the rest of the shard, with the same frames.
            decoder="pyav" if died else self._config.decoder,
        )

    def _encode(
        self, shard: "_Shard", slot: int, decoded: Decoded, left: "deque[Row]"
    ) -> Generator[Step, StepResult, WorkerDied | None]:
        """Encode items and remove each from ``left``. Returns the death of the decoding process, if it died."""
        unfinished, death = _Unfinished(left), None
        with closing(decoded):
            messages = _until_death(self._clock.waiting("decode", decoded))
            try:
                for message in messages:
                    unfinished.put((yield from self._encode_item(shard, slot, message, messages, unfinished.finish)))
            except _DecoderDied as died:
                death = died.death
            else:
                self._decode_next(slot)
            unfinished.finish()
        return death

    def _encode_item(
        self,
        shard: "_Shard",
        slot: int,
        message: DecodeMessage,
        messages: Iterator[DecodeMessage],
        meanwhile: Callable[[], None],
    ) -> Generator[Step, StepResult, Callable[[], None]]:
        """Encode an item, from its first message, and return the function that finishes it."""
        self._decode_next()
        try:
            frames, kept = item_frames(chain([message], messages)), []
            scored = is_scored(message.key, self._config.quality.share)
            compared = self._agreement.take()
            chunks = keep_frames(self._tokenizer, frames, kept) if scored or compared else frames
            pending = yield from sample_steps(self._tokenizer, chunks, self._card.dtype, meanwhile)
        except VideoError as error:
            return partial(shard.writer.put, Rejected("failed", Outcome(message.key, error.reason, error.detail)))
        assert message.info is not None
        write = partial(self._write, shard.writer, message.key, message.info)

        def finish() -> None:
            codes = pending()
            shard.details.codes.add(codes)
            with self._clock.activity("score"):
                if compared:
                    count, differing = self._agreement.compare(codes, kept)
                    shard.details.compared += count
                    shard.details.differing += differing
                if scored:
                    shard.scores.put(slot, codes, kept, partial(write, codes))
            if not scored:
                write(codes, None)

        return finish

    def _write(
        self,
        writer: OrderedShardWriter,
        key: str,
        item: ItemInfo,
        codes: np.ndarray,
        quality: dict[str, float] | None,
    ) -> None:
        lt, lh, lw = codes.shape
        info = TokenInfo(grid=(lt, lh, lw), quality=quality, **vars(item))
        writer.put(Sample(key, token_files(codes, info, self._card, self._config.pack), _stats(info)))


@dataclass(frozen=True)
class _Shard:
    """The shard that is being made: its input, what becomes of its samples, and the measurements of it."""

    given: ShardInput
    writer: OrderedShardWriter
    scores: ScoreQueue
    details: ShardDetails


class _Unfinished:
    """The newest item of a slot, which the device may still be computing. It is finished once the next step is queued.

    Args:
        left: items of the slot; the first one is removed when it is finished.
    """

    def __init__(self, left: "deque[Row]") -> None:
        self._left = left
        self._work: Callable[[], None] | None = None

    def put(self, work: Callable[[], None]) -> None:
        """Finish the previous item, and keep the function that finishes the next one."""
        self.finish()
        self._work = work

    def finish(self) -> None:
        """Do the work, once."""
        work, self._work = self._work, None
        if work:
            work()
            self._left.popleft()


class _DecoderDied(Exception):
    """The decoding process died."""

    def __init__(self, death: WorkerDied) -> None:
        super().__init__(death.message)
        self.death = death


def _stats(info: TokenInfo) -> dict[str, int]:
    return sample_stats(info.num_frames, info.grid, info.quality)


def _until_death(messages: Iterator[DecodeMessage | WorkerDied]) -> Iterator[DecodeMessage]:
    for message in messages:
        if isinstance(message, WorkerDied):
            raise _DecoderDied(message)
        yield message
