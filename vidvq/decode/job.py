"""The decode job: token samples to video files with the frame count and the frame times of the source."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from socket import gethostname
from typing import Any

import torch

from vidvq.config import is_mapping
from vidvq.decode.batch import Clip, Item, decode_together
from vidvq.decode.config import DecodeConfig, VideoInterval, resolve_execution
from vidvq.decode.find import find_clips, find_key
from vidvq.decode.generated import GeneratedFile, index_generated
from vidvq.decode.overwrite import is_done, mark_done
from vidvq.decode.stream import decode_frames, in_interval, load_for_tokens
from vidvq.errors import JobStopped, UsageError, WorkerLost
from vidvq.formats.execution import CPU, Execution
from vidvq.formats.plan import read_plan
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, check_fingerprint, read_tokenizer_card
from vidvq.log import progress
from vidvq.model import Tokenizer
from vidvq.pretrained import find_tokenizer, load_tokenizer
from vidvq.pretrained.device import find_device, prepare
from vidvq.runtime import WorkerDied, count_gpus, open_runtime
from vidvq.storage import (
    create_once,
    is_remote,
    make_folder,
    pretty_json,
    read_json,
    remove_attempts,
    safe_join,
    sha256_file,
    write_atomic,
)
from vidvq.video.write import TimedFrame, VideoShape, write_frames

SETTINGS = "decode.json"
_FILES = ("mp4", "gif", "npy")


def run_decode(
    tokens: Path,
    checkpoint: Path,
    out: Path,
    config: DecodeConfig,
    interval: VideoInterval | None = None,
    force: bool = False,
) -> int:
    """Decode token shards to files under ``out``, or resume an interrupted job.

    Args:
        tokens: a directory that ``vidvq tokenize`` wrote, or one shard in it.
        checkpoint: a checkpoint, or a training run, with the token fingerprint the tokens were made with.
        out: output folder of ``KEY.mp4`` or ``KEY/000000.png``. Each clip is written atomically and existing ones are
            skipped. May be a file for a single clip or an interval.
        config: the settings of the job.
        interval: interval of one video to decode into one file; None to decode whole clips.
        force: whether to overwrite existing outputs.

    Returns:
        The number of clips.

    Raises:
        UsageError: the tokens are of another tokenizer, a shard is damaged, a code is out of range, or the key or
            the source is unknown.
        WorkerLost: a worker died; the same command resumes.
    """
    kind = config.format_for(out)
    folder = tokens.parent if tokens.is_file() else tokens
    written = read_tokenizer_card(folder)
    loaded = find_tokenizer(checkpoint)
    _, card = load_tokenizer(loaded)
    check_fingerprint(folder, written, checkpoint, card)
    known = index_tokens(tokens)
    if interval:
        if config.key:
            raise UsageError("key= and --source exclude each other; give one of them")
        edges = [None if edge is None else str(edge) for edge in (interval.start, interval.end)]
        # One stream, decoded in this process.
        execution = replace(resolve_execution(config, find_device(config.device, None)), streams=1)
        made_from = _settings(folder, card, kind, config, execution) | {"source": interval.source, "interval": edges}
        path = _interval_path(out, kind, interval)
        if not is_done(path, made_from, force):
            _write_interval(tokens, checkpoint, known, interval, path, config, execution)
            mark_done(path, made_from)
        return 1
    wanted = [find_key(known, config.key, tokens)] if config.key else known
    single = out.suffix[1:].lower() in _FILES
    if single and len(wanted) != 1:
        raise UsageError(
            f"--out {out.name} is one file, but {tokens} holds {len(wanted)} clips; give a folder, or --key"
        )
    execution = _resolve(config)
    made_from = _settings(folder, card, kind, config, execution)
    if single:
        items = [Item(wanted[0], out)]
    else:
        items = [Item(clip, safe_join(out, clip.key if kind == "png" else f"{clip.key}.{kind}")) for clip in wanted]
        _record_settings(out, made_from, force)
    made_from |= {"key": config.key}
    if single:
        todo = [item for item in items if not is_done(item.path, made_from, force)]
    else:
        todo = [item for item in items if force or not item.path.exists()]
    with progress("decode", len(items), "clips") as bar:
        bar.advance(len(items) - len(todo))
        _decode_all(todo, loaded, folder, kind, config, execution, bar.advance)
    if single and todo:
        mark_done(out, made_from)
    return len(items)


def run_decode_generated(
    codes: GeneratedFile, tokenizer: Path, checkpoint: Path, out: Path, config: DecodeConfig, force: bool = False
) -> int:
    """Decode the codes of a generator to files.

    Args:
        codes: the file of codes.
        tokenizer: ``tokenizer.json`` of the tokens that the generator was trained on, or its directory.
        checkpoint: a checkpoint, or a training run, with the token fingerprint of ``tokenizer``.
        out: output folder, or a file for a single video. Several videos become ``NAME-00000.mp4`` and so on.
        config: the settings of the job.
        force: whether to overwrite existing outputs.

    Returns:
        The number of videos.

    Raises:
        UsageError: the file is not readable, a code is out of range, or the checkpoint is of another tokenizer.
        WorkerLost: a worker died; the same command resumes.
    """
    kind = config.format_for(out)
    folder = tokenizer.parent if tokenizer.is_file() else tokenizer
    loaded = find_tokenizer(checkpoint)
    _, card = load_for_tokens(folder, loaded)
    # Check every code before the first file is written.
    clips = index_generated(codes, card)
    single = out.suffix[1:].lower() in _FILES
    if single and len(clips) != 1:
        raise UsageError(f"--out {out.name} is one file, {codes.path} holds {len(clips)} videos; give a folder")
    named = [(clip, clip.key if kind == "png" else f"{clip.key}.{kind}") for clip in clips]
    items = [Item(clip, out if single else safe_join(out, name)) for clip, name in named]
    if not is_remote(out) and any(item.path.exists() and item.path.samefile(codes.path) for item in items):
        raise UsageError(f"--out {out} is the input file; give another --out")
    execution = _resolve(config)
    made_from = _settings(folder, card, kind, config, execution)
    made_from |= {"tokens": sha256_file(codes.path), "fps": codes.fps, "flat": codes.flat}
    made_from["grid"] = list(codes.grid) if codes.grid else None
    if single:
        todo = [item for item in items if not is_done(item.path, made_from, force)]
    else:
        _record_settings(out, made_from, force)
        todo = [item for item in items if force or not item.path.exists()]
    with progress("decode", len(items), "videos") as bar:
        bar.advance(len(items) - len(todo))
        _decode_all(todo, loaded, folder, kind, config, execution, bar.advance)
    if single and todo:
        mark_done(out, made_from)
    return len(items)


def _resolve(config: DecodeConfig) -> Execution:
    in_cluster = None if config.device == "cpu" else count_gpus(config.runtime)
    return resolve_execution(config, find_device(config.device, in_cluster))


def _decode_all(
    items: list[Item],
    checkpoint: Path,
    tokens: Path,
    kind: str,
    config: DecodeConfig,
    execution: Execution,
    advance: Callable[[int], None],
) -> None:
    if not items:
        return
    batch = execution.streams
    batches = [tuple(items[start : start + batch]) for start in range(0, len(items), batch)]
    gpus = config.runtime.gpus_per_worker if execution.device == "cuda" else 0
    make = partial(make_worker, checkpoint, tokens, kind, config.crf, execution, gpus)
    with open_runtime(config.runtime) as runtime:
        pool = runtime.pool(len(batches))
        for together, done in pool.map_stateful(make, batches, gpus=gpus):
            if isinstance(done, WorkerDied):
                raise WorkerLost(f"{together[0].location.key}: {done.message}; run the same command again to resume")
            advance(len(together))


def make_worker(
    checkpoint: Path, tokens: Path, kind: str, crf: int, execution: Execution, gpus: float
) -> Callable[[tuple[Item, ...]], int]:
    """Load the tokenizer once and return a function that decodes a few clips; runs in a worker."""
    tokenizer, card = _open_tokenizer(tokens, checkpoint, execution, gpus)

    def write(item: Item, frames: Iterator[TimedFrame], info: TokenInfo) -> None:
        if not item.path.parent.exists():
            make_folder(item.path.parent)
        remove_attempts(item.path.parent, item.path.name)
        write_frames(item.path, kind, frames, _shape(info, tokenizer), crf)

    def decode(items: tuple[Item, ...]) -> int:
        clips = [Clip(*item.location.read(card)) for item in items]
        try:
            for index, frames in decode_together(tokenizer, clips):
                write(items[index], frames, clips[index].info)
        except torch.OutOfMemoryError as error:
            raise JobStopped(
                f"{items[0].location.key}: a step of {tokenizer.decode_shape} streams x groups does not fit the memory "
                f"of the GPU of {gethostname()}; free what other processes use, and run the same command again, or "
                "give a smaller batch and another --out"
            ) from error
        return len(items)

    return decode


def _open_tokenizer(
    tokens: Path, checkpoint: Path, execution: Execution, gpus: float = 1.0
) -> tuple[Tokenizer, TokenizerCard]:
    # One thread: with more, the order of summation, and so the pixels, would depend on the number of cores.
    torch.set_num_threads(1)
    tokenizer, card = load_for_tokens(tokens, checkpoint)
    prepare(tokenizer, execution, gpus)
    if execution.compiled:
        tokenizer.compile_steps(capture=True)
    return tokenizer, card


def _write_interval(
    tokens: Path,
    checkpoint: Path,
    known: list[TokenLocation],
    interval: VideoInterval,
    path: Path,
    config: DecodeConfig,
    execution: Execution,
) -> None:
    found = find_clips(tokens, known, interval)
    sizes = {(each.info.height, each.info.width) for each in found}
    if len(sizes) > 1:
        raise UsageError(
            f"{interval.source} changes its frame size in the interval; decode its clips one by one with --key"
        )
    tokenizer, card = _open_tokenizer(tokens, checkpoint, execution)
    timed = chain.from_iterable(_decode(tokenizer, card, each.location, interval) for each in found)
    shape = replace(_shape(found[0].info, tokenizer), num_frames=sum(each.num_frames for each in found))
    write_frames(path, config.format_for(path), timed, shape, config.crf)


def _decode(
    tokenizer: Tokenizer, card: TokenizerCard, location: TokenLocation, interval: VideoInterval
) -> Iterator[TimedFrame]:
    yield from in_interval(interval, decode_frames(tokenizer, *location.read(card)))


def _interval_path(out: Path, kind: str, interval: VideoInterval) -> Path:
    if out.suffix[1:].lower() in _FILES:
        return out
    edges = [f"-{name}-{float(edge):g}" for name, edge in (("from", interval.start), ("to", interval.end)) if edge]
    stem = Path(interval.source).stem + "".join(edges)
    return out / (stem if kind == "png" else f"{stem}.{kind}")


def _shape(info: TokenInfo, tokenizer: Tokenizer) -> VideoShape:
    height, width = info.height * tokenizer.upscale, info.width * tokenizer.upscale
    return VideoShape(info.num_frames, height, width, info.seconds_per_tick)


def _settings(
    tokens: Path, card: TokenizerCard, kind: str, config: DecodeConfig, execution: Execution
) -> dict[str, Any]:
    """Everything that an output depends on. Defaults are left out, so that outputs of older versions are kept."""
    return {
        "tokens": read_plan(tokens).plan_id if (tokens / "plan.json").is_file() else None,
        "token_fingerprint": card.token_fingerprint,
        "decoder_fingerprint": card.decoder_fingerprint,
        "format": kind,
        "crf": config.crf if kind == "mp4" else None,
        **({} if execution.is_default else execution.to_json()),
    }


def _record_settings(out: Path, settings: dict[str, Any], force: bool) -> None:
    """Record the settings in ``out``, or refuse others: existing files are skipped, so settings must not mix."""
    make_folder(out)
    if force:
        write_atomic(out / SETTINGS, pretty_json(settings))
    if create_once(out / SETTINGS, pretty_json(settings)):
        return
    was = read_json(out / SETTINGS)
    if not is_mapping(was):
        raise UsageError(f"{out / SETTINGS} was not written by vidvq decode; give another --out")
    # How networks are run on CPUs is not recorded.
    was, settings = CPU.to_json() | was, CPU.to_json() | settings
    for name, value in settings.items():
        if was.get(name) != value:
            raise UsageError(f"{out} was decoded with {name}={was.get(name)}, now {value}; give another --out")
