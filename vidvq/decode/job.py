"""Decodes tokens to files with as many frames as the source had, at the same times."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from vidvq.decode.config import DecodeConfig, Stretch
from vidvq.decode.find import find_key, find_stretch
from vidvq.decode.generated import Generated, GeneratedPlace, index_generated
from vidvq.decode.stream import check_same, decode_timed, open_tokenizer, within
from vidvq.errors import UsageError, WorkerLost
from vidvq.formats.plan import read_plan
from vidvq.formats.token_index import TokenLocation, index_tokens
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, read_tokenizer_card
from vidvq.log import progress
from vidvq.model import Tokenizer
from vidvq.pretrained import find_tokenizer, load_tokenizer
from vidvq.runtime import WorkerDied, open_pools
from vidvq.storage import create_once, make_folder, pretty_json, read_json, remove_attempts
from vidvq.video.write import Shape, Timed, write_frames

SETTINGS = "decode.json"
_FILES = ("mp4", "gif", "npy")


@dataclass(frozen=True)
class Item:
    """One clip to decode into one file or folder; travels to a worker."""

    place: TokenLocation | GeneratedPlace
    path: Path


def run_decode(tokens: Path, checkpoint: Path, out: Path, config: DecodeConfig, stretch: Stretch | None = None) -> int:
    """Decode token shards to files under ``out``, or finish a job that was interrupted.

    Args:
        tokens: a directory that ``vidvq tokenize`` wrote, or one shard in it.
        checkpoint: a checkpoint, or a training run, with the token fingerprint the tokens were made with.
        out: ``KEY.mp4`` or ``KEY/000000.png`` go here; a clip's files appear whole or not at all, and those that are
            there are left alone. For one clip or a stretch it may be a file.
        config: the settings of the job.
        stretch: interval of one video to decode into one file; None to decode whole clips.

    Returns:
        The number of clips.

    Raises:
        UsageError: another tokenizer's tokens, a damaged shard, a code out of range, an unknown key or source.
    """
    kind = config.format_for(out)
    folder = tokens.parent if tokens.is_file() else tokens
    written = read_tokenizer_card(folder)
    loaded = find_tokenizer(checkpoint)
    _, card = load_tokenizer(loaded)
    check_same(folder, written, checkpoint, card)
    known = index_tokens(tokens)
    if stretch:
        if config.key:
            raise UsageError("key= and --source are two ways to say what to decode; give one")
        _write_stretch(tokens, checkpoint, known, stretch, _stretch_path(out, kind, stretch), config)
        return 1
    wanted = [find_key(known, config.key, tokens)] if config.key else known
    single = out.suffix[1:].lower() in _FILES
    if single and len(wanted) != 1:
        raise UsageError(f"--out {out.name} is one file, {tokens} holds {len(wanted)} clips; give a folder, or --key")
    if single:
        items = [Item(wanted[0], out)]
    else:
        items = [Item(place, out / (place.key if kind == "png" else f"{place.key}.{kind}")) for place in wanted]
        _settle(out, folder, card, kind, config)
    todo = [item for item in items if single or not item.path.exists()]
    with progress("decode", len(items), "clips") as bar:
        bar.advance(len(items) - len(todo))
        _decode_all(todo, partial(make_worker, loaded, folder, kind, config.crf), config, bar.advance)
    return len(items)


def run_decode_generated(given: Generated, tokenizer: Path, checkpoint: Path, out: Path, config: DecodeConfig) -> int:
    """Decode a generator's output.

    Args:
        given: the file of codes.
        tokenizer: ``tokenizer.json`` of the tokens that the generator learned from, or the directory it is in.
        checkpoint: a checkpoint, or a training run, with the token fingerprint of ``tokenizer``.
        out: output folder, or a file for a single video. A file of many videos becomes ``NAME-00000.mp4`` and so on.
        config: the settings of the job.

    Returns:
        The number of videos.

    Raises:
        UsageError: the file cannot be read, a code is out of range, or the checkpoint is another tokenizer's.
    """
    kind = config.format_for(out)
    folder = tokenizer.parent if tokenizer.is_file() else tokenizer
    loaded = find_tokenizer(checkpoint)
    _, card = open_tokenizer(folder, loaded)
    # All of it is checked before the first is written.
    places = index_generated(given, card)
    single = out.suffix[1:].lower() in _FILES
    if single and len(places) != 1:
        raise UsageError(f"--out {out.name} is one file, {given.path} holds {len(places)} videos; give a folder")
    named = [(place, place.key if kind == "png" else f"{place.key}.{kind}") for place in places]
    items = [Item(place, out if single else out / name) for place, name in named]
    with progress("decode", len(items), "videos") as bar:
        _decode_all(items, partial(make_worker, loaded, folder, kind, config.crf), config, bar.advance)
    return len(items)


def _decode_all(
    items: list[Item], make: Callable[[], Callable[[Item], str]], config: DecodeConfig, advance: Callable[[], None]
) -> None:
    if not items:
        return
    with open_pools(config.runtime) as pools:
        pool = pools.get(len(items))
        for item, done in pool.map_stateful(make, items, gpus=1 if torch.cuda.is_available() else 0):
            if isinstance(done, WorkerDied):
                raise WorkerLost(f"{item.place.key}: {done.message}; run the same command again to resume")
            advance()


def make_worker(checkpoint: Path, tokens: Path, kind: str, crf: int) -> Callable[[Item], str]:
    """Load the tokenizer once; returns what decodes a clip with it."""
    # One thread whoever runs it, so that no sum is split another way and pixels never differ by machine size.
    torch.set_num_threads(1)
    tokenizer, card = open_tokenizer(tokens, checkpoint)

    def decode(item: Item) -> str:
        codes, info = item.place.read(card)
        if not item.path.parent.exists():
            make_folder(item.path.parent)
        remove_attempts(item.path.parent, item.path.name)
        write_frames(item.path, kind, decode_timed(tokenizer, codes, info), _shape(info), crf)
        return item.place.key

    return decode


def _write_stretch(
    tokens: Path, checkpoint: Path, known: list[TokenLocation], stretch: Stretch, path: Path, config: DecodeConfig
) -> None:
    found = find_stretch(tokens, known, stretch)
    sizes = {(each.info.height, each.info.width) for each in found}
    if len(sizes) > 1:
        raise UsageError(f"{stretch.source} changes its size within the stretch; decode its clips one by one, --key")
    torch.set_num_threads(1)
    tokenizer, card = open_tokenizer(tokens, checkpoint)
    timed = chain.from_iterable(_decode(tokenizer, card, each.place, stretch) for each in found)
    shape = replace(_shape(found[0].info), num_frames=sum(each.num_frames for each in found))
    write_frames(path, config.format_for(path), timed, shape, config.crf)


def _decode(tokenizer: Tokenizer, card: TokenizerCard, place: TokenLocation, stretch: Stretch) -> Iterator[Timed]:
    yield from within(stretch, decode_timed(tokenizer, *place.read(card)))


def _stretch_path(out: Path, kind: str, stretch: Stretch) -> Path:
    if out.suffix[1:].lower() in _FILES:
        return out
    edges = [f"-{name}-{float(edge):g}" for name, edge in (("from", stretch.start), ("to", stretch.end)) if edge]
    stem = Path(stretch.source).stem + "".join(edges)
    return out / (stem if kind == "png" else f"{stem}.{kind}")


def _shape(info: TokenInfo) -> Shape:
    return Shape(info.num_frames, info.height, info.width, info.seconds_per_tick)


def _settle(out: Path, tokens: Path, card: TokenizerCard, kind: str, config: DecodeConfig) -> None:
    """Refuse to mix what different settings make: what is in ``out`` is not made again."""
    settings = {
        "tokens": read_plan(tokens).plan_id if (tokens / "plan.json").is_file() else None,
        "token_fingerprint": card.token_fingerprint,
        "decoder_fingerprint": card.decoder_fingerprint,
        "format": kind,
        "crf": config.crf if kind == "mp4" else None,
    }
    make_folder(out)
    if create_once(out / SETTINGS, pretty_json(settings)):
        return
    was = read_json(out / SETTINGS)
    for name, value in settings.items():
        if was.get(name) != value:
            raise UsageError(f"{out} was decoded with {name}={was.get(name)}, now {value}; give another --out")
