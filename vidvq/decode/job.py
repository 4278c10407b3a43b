"""The decode job: token samples to video files with the frame count and the frame times of the source."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import torch

from vidvq.config import checked, is_mapping
from vidvq.decode.batch import MAX_BYTES, Clip, Item, decode_together
from vidvq.decode.config import DecodeConfig, Format, VideoInterval, resolve_execution
from vidvq.decode.find import FoundClip, find_clips, find_key
from vidvq.decode.generated import GeneratedClip, GeneratedFile, index_generated
from vidvq.decode.overwrite import is_done, recorded
from vidvq.decode.stream import decode_frames, in_interval, load_for_tokens
from vidvq.errors import UsageError, WorkerLost
from vidvq.formats.checkpoint import resolve_checkpoint
from vidvq.formats.decoded import DECODE_SETTINGS
from vidvq.formats.execution import CPU, Execution
from vidvq.formats.owner import refuse_owned
from vidvq.formats.plan import read_plan
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import TokenInfo, TokenizerCard
from vidvq.log import progress
from vidvq.model import Tokenizer
from vidvq.pretrained import find_tokenizer
from vidvq.pretrained.device import find_device, prepare, stopping_when_full
from vidvq.runtime import WorkerDied, cores_per_worker, count_gpus, open_runtime
from vidvq.storage import (
    create_once,
    differences,
    file_exists,
    final_name,
    is_remote,
    make_folder,
    pretty_json,
    read_json,
    remove,
    remove_attempts,
    resolve_path,
    safe_join,
    sha256_file,
    unless_done,
    write_shared,
)
from vidvq.video.write import TimedFrame, VideoShape, write_frames

_FILES = ("mp4", "gif", "npy")
# Steps that a GPU decodes at a time, so that more cores than a step has clips write them.
_GPU_STEPS = 4


def run_decode(
    tokens: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    config: DecodeConfig,
    interval: VideoInterval | None = None,
    force: bool = False,
) -> int:
    """Decode token shards to files under ``out``, or resume an interrupted job.

    Args:
        tokens: a directory that ``vidvq tokenize`` wrote, or one shard in it.
        checkpoint: a checkpoint, or a training run, with the token fingerprint of the tokens.
        out: output folder of ``KEY.mp4`` or ``KEY/000000.png``. Each clip is written atomically and existing ones are
            skipped. May be a file for a single clip or an interval.
        interval: interval of one video to decode into one file; None to decode whole clips.

    Returns:
        The number of clips.

    Raises:
        UsageError: the tokens are of another tokenizer, a shard is damaged, a code is out of range, or the key or
            the source is unknown.
        WorkerLost: a worker died; the same command resumes.
    """
    config = checked(DecodeConfig, config)
    tokens, checkpoint, out = resolve_path(tokens), resolve_checkpoint(checkpoint), resolve_path(out)
    kind = config.format_for(out)
    folder = tokens.parent if tokens.is_file() else tokens
    _refuse_folder(out, folder)
    loaded = find_tokenizer(checkpoint)
    _, card = load_for_tokens(folder, loaded)
    known = index_tokens(tokens)
    if interval:
        if config.key is not None:
            raise UsageError("key= and --source exclude each other; give one of them")
        # One stream, decoded in this process.
        execution = replace(resolve_execution(config, find_device(config.device)), streams=1)
        job = _Job(loaded, folder, kind, config, execution)
        return job.run_interval(interval, tokens, known, out, job.settings(card, _tokens_id(tokens)), force)
    wanted = known if config.key is None else [find_key(known, config.key, tokens)]
    single = out.suffix[1:].lower() in _FILES
    if single and len(wanted) != 1:
        raise UsageError(
            f"--out {out.name} is one file, but {tokens} holds {len(wanted)} clips; give a folder, or --key"
        )
    job = _Job(loaded, folder, kind, config, _resolve(config))
    made_from = job.settings(card, _tokens_id(tokens))
    if single:
        return job.run_single(Item(wanted[0], out), made_from | {"key": wanted[0].key}, force)
    return job.run([_item(clip, out, kind) for clip in wanted], out, made_from, force)


def run_decode_generated(
    codes: GeneratedFile, tokenizer: Path, checkpoint: Path, out: Path, config: DecodeConfig, force: bool = False
) -> int:
    """Decode the codes of a generator to files.

    Args:
        codes: the file of codes.
        tokenizer: ``tokenizer.json`` of the tokens that the generator was trained on, or its directory.
        checkpoint: a checkpoint, or a training run, with the token fingerprint of ``tokenizer``.
        out: output folder, or a file for a single video. Several videos become ``NAME-00000.mp4`` and so on.

    Returns:
        The number of videos.

    Raises:
        UsageError: the file is not readable, a code is out of range, or the checkpoint is of another tokenizer.
        WorkerLost: a worker died; the same command resumes.
    """
    kind = config.format_for(out)
    folder = tokenizer.parent if tokenizer.is_file() else tokenizer
    _refuse_folder(out, folder)
    loaded = find_tokenizer(checkpoint)
    _, card = load_for_tokens(folder, loaded)
    # Check every code before the first file is written.
    clips = index_generated(codes, card)
    single = out.suffix[1:].lower() in _FILES
    if single and len(clips) != 1:
        raise UsageError(f"--out {out.name} is one file, {codes.path} holds {len(clips)} videos; give a folder")
    items = [Item(clip, out) if single else _item(clip, out, kind) for clip in clips]
    if not is_remote(out) and any(item.path.exists() and item.path.samefile(codes.path) for item in items):
        raise UsageError(f"--out {out} is the input file; give another --out")
    job = _Job(loaded, folder, kind, config, _resolve(config))
    made_from = job.settings(card, sha256_file(codes.path)) | {"fps": codes.fps, "flat": codes.flat}
    made_from["grid"] = list(codes.grid) if codes.grid else None
    return job.run_single(items[0], made_from, force) if single else job.run(items, out, made_from, force)


@dataclass(frozen=True)
class _Job:
    """Checkpoint and settings of a job, shared by all of its outputs.

    Attributes:
        tokens: directory with the card of the tokens.
        kind: format of the outputs.
    """

    checkpoint: Path
    tokens: Path
    kind: Format
    config: DecodeConfig
    execution: Execution

    def settings(self, card: TokenizerCard, tokens: str) -> dict[str, Any]:
        """Everything that an output depends on. Defaults are left out, so that outputs of older versions are kept."""
        return {
            "tokens": tokens,
            "token_fingerprint": card.token_fingerprint,
            "decoder_fingerprint": card.decoder_fingerprint,
            "format": self.kind,
            "crf": self.config.mp4_crf if self.kind == "mp4" else None,
            **({} if self.execution.is_default else self.execution.to_json()),
        }

    def run_single(self, item: Item, made_from: dict[str, Any], force: bool) -> int:
        """Decode one clip to a file of its own, unless it is there; returns 1."""
        if not is_done(item.path, made_from, force):
            with recorded(item.path, made_from):
                self._decode([item], 0, force)
        return 1

    def run_interval(
        self,
        interval: VideoInterval,
        tokens: Path,
        known: list[TokenLocation],
        out: Path,
        made_from: dict[str, Any],
        force: bool,
    ) -> int:
        """Decode an interval of a video to one file, unless it is there; returns 1."""
        edges = [None if edge is None else str(edge) for edge in (interval.start, interval.end)]
        made_from = made_from | {"source": interval.source, "interval": edges}
        if tokens.is_file():
            made_from["shard"] = tokens.name
        path = _interval_path(out, self.kind, interval)
        if not is_done(path, made_from, force):
            found = find_clips(tokens, known, interval)
            with recorded(path, made_from):
                _write_interval(self, found, interval, path)
        return 1

    def run(self, items: list[Item], out: Path, made_from: dict[str, Any], force: bool) -> int:
        """Decode the clips whose outputs are not in a folder yet; returns the number of all clips."""
        _record_settings(out, made_from, items, force)
        order = self.config.runtime.order(len(items))
        todo = [items[index] for index in order if force or not items[index].path.exists()]
        self._decode(todo, len(items) - len(todo), force)
        remove_attempts(out, of={DECODE_SETTINGS, *(item.path.name for item in items)})
        return len(items)

    def _decode(self, items: list[Item], done: int, force: bool) -> None:
        with progress("decode", done + len(items), "clips") as bar:
            bar.advance(done, earlier=True)
            if not items:
                return
            batch = self.execution.streams * (_GPU_STEPS if self.execution.device == "cuda" else 1)

            def left() -> Iterator[tuple[Item, ...]]:
                for start in range(0, len(items), batch):
                    together = items[start : start + batch]
                    # Another driver may have decoded some in the meantime.
                    missing = tuple(item for item in together if force or not item.path.exists())
                    bar.advance(len(together) - len(missing), earlier=True)
                    if missing:
                        yield missing

            gpus = self.config.runtime.gpus_per_worker if self.execution.device == "cuda" else 0.0
            make = partial(make_worker, self, gpus, force)
            with open_runtime(self.config.runtime) as runtime:
                pool = runtime.pool(ceil(len(items) / batch))
                for together, died in pool.map_stateful(make, left(), gpus=gpus):
                    if isinstance(died, WorkerDied):
                        key = together[0].location.key
                        raise WorkerLost(f"{key}: {died.message}; run the same command again to resume")
                    bar.advance(len(together))


def _tokens_id(tokens: Path) -> str:
    """Identify the content of token shards: by their plan, or by the record of an export or a shard without a plan."""
    folder = tokens.parent if tokens.is_file() else tokens
    if file_exists(folder / "plan.json"):
        return read_plan(folder).plan_id
    return sha256_file(tokens if tokens.is_file() else folder / "export.json")


def _refuse_folder(out: Path, tokens: Path) -> None:
    if not is_remote(out) and not is_remote(tokens) and out.exists() and out.samefile(tokens):
        raise UsageError(f"--out {out} is the folder of the tokens; give another --out")
    refuse_owned(out, "vidvq decode")


def _resolve(config: DecodeConfig) -> Execution:
    return resolve_execution(config, find_device(config.device, partial(count_gpus, config.runtime)))


def _item(clip: TokenLocation | GeneratedClip, out: Path, kind: Format) -> Item:
    """The output of a clip in a folder."""
    return Item(clip, safe_join(out, clip.key if kind == "png" else f"{clip.key}.{kind}"))


def make_worker(job: _Job, gpus: float, force: bool) -> Callable[[tuple[Item, ...]], None]:
    """Load the tokenizer once and return a function that decodes a few clips; runs in a worker."""
    tokenizer, card = _open_tokenizer(job, gpus)
    cores = cores_per_worker(job.config.runtime, on_gpu=job.execution.device == "cuda")

    def write(item: Item, frames: Iterable[TimedFrame], info: TokenInfo) -> None:
        if not item.path.parent.exists():
            make_folder(item.path.parent)
        with unless_done(item.path.exists):
            write_frames(item.path, job.kind, frames, _shape(info, tokenizer), job.config.mp4_crf, force)

    def decode(items: tuple[Item, ...]) -> None:
        clips = [Clip(*item.location.read(card)) for item in items]
        what = f"{items[0].location.key}: a step of {tokenizer.decode_shape} streams x groups"
        remedy = "and run the same command again, or give a smaller batch and another --out"
        # On an error the files of earlier clips are finished.
        with stopping_when_full(what, remedy), ThreadPoolExecutor(cores) as writers:
            # Files in work, with the sizes of their frames.
            unfinished: deque[tuple[Future[None], int]] = deque()
            for index, frames in decode_together(tokenizer, clips):
                item, info, size = items[index], clips[index].info, clips[index].nbytes(tokenizer.upscale)
                if len(clips) == 1 or size > MAX_BYTES:
                    write(item, frames, info)
                    continue
                while unfinished and size + sum(held for _, held in unfinished) > MAX_BYTES:
                    unfinished.popleft()[0].result()
                unfinished.append((writers.submit(write, item, list(frames), info), size))
            for future, _ in unfinished:
                future.result()

    return decode


def _open_tokenizer(job: _Job, gpus: float = 1.0) -> tuple[Tokenizer, TokenizerCard]:
    # One thread: with more, the order of summation, and so the pixels, would depend on the number of cores.
    torch.set_num_threads(1)
    tokenizer, card = load_for_tokens(job.tokens, job.checkpoint)
    prepare(tokenizer, job.execution, gpus)
    if job.execution.compiled:
        tokenizer.compile_steps(capture=True)
    return tokenizer, card


def _write_interval(job: _Job, found: list[FoundClip], interval: VideoInterval, path: Path) -> None:
    sizes = {(each.info.height, each.info.width) for each in found}
    if len(sizes) > 1:
        raise UsageError(
            f"{interval.source} changes its frame size in the interval; decode its clips one by one with --key"
        )
    tokenizer, card = _open_tokenizer(job)
    decoded = (decode_frames(tokenizer, *each.location.read(card)) for each in found)
    timed = chain.from_iterable(in_interval(interval, frames) for frames in decoded)
    shape = replace(_shape(found[0].info, tokenizer), num_frames=sum(each.num_frames for each in found))
    write_frames(path, job.kind, timed, shape, job.config.mp4_crf)


def _interval_path(out: Path, kind: str, interval: VideoInterval) -> Path:
    if out.suffix[1:].lower() in _FILES:
        return out
    edges = [f"-{name}-{float(edge):g}" for name, edge in (("from", interval.start), ("to", interval.end)) if edge]
    stem = Path(interval.source).stem + "".join(edges)
    return out / (stem if kind == "png" else f"{stem}.{kind}")


def _shape(info: TokenInfo, tokenizer: Tokenizer) -> VideoShape:
    height, width = info.height * tokenizer.upscale, info.width * tokenizer.upscale
    return VideoShape(info.num_frames, height, width, info.seconds_per_tick)


def _record_settings(out: Path, settings: dict[str, Any], items: list[Item], force: bool) -> None:
    """Record the settings in ``out``, or refuse others: existing files are skipped, so settings must not mix."""
    make_folder(out)
    if create_once(out / DECODE_SETTINGS, pretty_json(settings)):
        return
    was = read_json(out / DECODE_SETTINGS)
    if not is_mapping(was):
        raise UsageError(f"{out / DECODE_SETTINGS} was not written by vidvq decode; give another --out")
    # Settings without the execution were recorded on CPUs.
    change = "; ".join(differences("", CPU.to_json() | was, CPU.to_json() | settings))
    if not change:
        return
    if not force:
        raise UsageError(f"{out} was decoded with other settings: {change}; give another --out")
    # Temporary files of killed runs are deleted at the end.
    own = {DECODE_SETTINGS, *(item.path.name for item in items)}
    if kept := {path.name for path in out.iterdir() if final_name(path.name) not in own}:
        raise UsageError(
            f"{out} was decoded with other settings ({change}), and --force would keep {min(kept)}; give another "
            "--out, or delete it"
        )
    # Before the first output: after an interruption the same command without --force keeps what it finds.
    for item in items:
        remove(item.path)
    write_shared(out / DECODE_SETTINGS, pretty_json(settings))
