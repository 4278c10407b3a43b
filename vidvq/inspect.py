"""Short text descriptions of videos, shards, plans, checkpoints and exports."""

import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from vidvq.config import leaves
from vidvq.corpus.inputs import SUFFIXES
from vidvq.corpus.lists import is_list, names_videos
from vidvq.corpus.tars import is_tar, open_tar, read_tar
from vidvq.errors import UsageError
from vidvq.export.targets import read_header
from vidvq.formats.checkpoint import checkpoint_name, find_checkpoint, is_generator, list_steps, read_checkpoint
from vidvq.formats.clip_shard import PREFIX as CLIPS
from vidvq.formats.clip_shard import media_of, parse_clip_info
from vidvq.formats.columns import PREFIX as COLUMNS
from vidvq.formats.columns import parse_columns
from vidvq.formats.commit import read_commit, read_commits
from vidvq.formats.decoded import DECODE_SETTINGS
from vidvq.formats.export_records import is_export, read_part
from vidvq.formats.generator import Generator, read_generator
from vidvq.formats.plan import read_plan
from vidvq.formats.summary import RecordSum, format_stats
from vidvq.formats.tar import read_headers, read_samples
from vidvq.formats.token_shard import MEDIA as TOKENS_MEDIA
from vidvq.formats.token_shard import PACKED, TokenizerCard, parse_tokens, read_tokenizer_card
from vidvq.log import counted, in_bytes
from vidvq.storage import canonical_json, read_json

_SHOWN = 10
# Files that are described with their directory.
_RECORDS = ("summary.json", "metrics.json", "export.json", DECODE_SETTINGS)
_REMEDY = "give a video, or a shard, plan, checkpoint or directory that vidvq wrote"


def describe(path: Path) -> Iterator[str]:
    """Describe the artifact at ``path``, line by line.

    Raises:
        UsageError: the path does not exist, or its type is unknown.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; {_REMEDY}")
    if path.is_dir():
        return _directory(path)
    if not path.is_file():
        # To open a named pipe would wait for its writer.
        raise UsageError(f"{path} is neither a regular file nor a directory; give a copy of what it holds")
    if is_tar(path):
        return _shard(path) if _is_shard(path) else _foreign_tar(path)
    if path.name in {"plan.json", "plan.parquet"}:
        return _job(path.parent)
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.name == "tokenizer.json":
        return _tokenizer(read_tokenizer_card(path.parent))
    if path.name in {"model.safetensors", "config.json", "fingerprint"}:
        return _checkpoint(path.parent)
    if path.suffix == ".json" and path.parent.name == "commits":
        return _commit(path)
    if path.name in _RECORDS:
        # Files of others have these names too.
        with suppress(UsageError):
            return _directory(path.parent)
    if is_list(path):
        raise UsageError(f"{path} is a list of videos; vidvq shard {path} --dry-run shows what it names")
    return _video(path)


def _directory(path: Path) -> Iterator[str]:
    if (path / "plan.json").is_file():
        return _job(path)
    if (path / "model.safetensors").is_file() or list_steps(path):
        return _checkpoint(path)
    if is_export(path):
        return _export(path)
    if (path / DECODE_SETTINGS).is_file():
        return _decoded(path)
    raise UsageError(
        f"{path} has no plan.json, model.safetensors or export.json; {_REMEDY}; "
        f"vidvq shard {path} --dry-run describes a folder of videos"
    )


def _decoded(folder: Path) -> Iterator[str]:
    settings = read_json(folder / DECODE_SETTINGS)
    names = [path.name for path in folder.iterdir() if path.name != DECODE_SETTINGS and ".tmp." not in path.name]
    yield f"{folder}: {counted(len(names), 'decoded clips')}"
    if isinstance(settings, dict):
        yield from _fields(dict(sorted(cast("dict[str, Any]", settings).items())))


def _fields(fields: dict[str, Any]) -> Iterator[str]:
    """One line for each field; a mapping as `key=value`, as settings are given."""
    for name, value in fields.items():
        found = [(path, leaf) for path, leaf in leaves(value) if leaf != {}]
        yield f"  {name}: {' '.join(f'{path}={_value(leaf)}' if path else _value(leaf) for path, leaf in found)}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value).decode()


def _export(folder: Path) -> Iterator[str]:
    header = read_header(folder)
    parts = [part for stem in header.parts if (part := read_part(folder, stem))]
    yield f"{folder}: an export to {header.target}, {len(parts)} of {counted(len(header.parts), 'parts')} finished"
    clips, ids = sum(part.clips for part in parts), sum(part.ids for part in parts)
    yield f"  {counted(clips, 'clips')}, {ids} ids of {header.dtype}"
    specials = ", ".join(f"{name} {number}" for name, number in header.specials.items())
    yield f"  vocabulary: {header.vocabulary} ids, special tokens: {specials or 'none'}"
    yield f"  order: {header.order} ({header.axes})"
    yield f"  token fingerprint: {header.token_fingerprint}"


def _job(folder: Path) -> Iterator[str]:
    plan, total, committed = read_plan(folder), RecordSum(), 0
    for commit in read_commits(folder, plan.shard_names()):
        if commit:
            total.add(commit)
            committed += 1
    summary = total.summary(plan)
    kinds = {"shard": "clip shards", "tokenize": "token shards", "generate": "token shards", "map": "columns"}
    kind = kinds.get(plan.stage, f"shards of vidvq {plan.stage}")
    yield f"{folder}: {kind} of plan {plan.plan_id[:12]}"
    yield f"  planned: {counted(plan.num_items, 'items')} in {counted(plan.num_shards, 'shards')}"
    yield f"  committed: {counted(committed, 'shards')}, {in_bytes(summary.bytes)}"
    yield f"  items: {summary.ok} ok, {summary.num_failed} failed, {summary.num_filtered} filtered"
    yield from (f"  {line}" for line in format_stats(summary.stats))
    yield "made from:"
    yield from _fields(plan.made_from)
    if (folder / "tokenizer.json").is_file():
        yield from (f"  {line}" for line in _tokenizer(read_tokenizer_card(folder)))


def _parquet(path: Path) -> Iterator[str]:
    """Describe a table of a job or an export, or one that vidvq did not write."""
    if is_export(path.parent):
        return _export(path.parent)
    if path.name.startswith("plan-") and (path.parent / "plan.json").is_file():
        return _job(path.parent)
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from error
    return _table(path, table)


def _table(path: Path, table: pq.ParquetFile) -> Iterator[str]:
    columns = [f"{field.name} ({field.type})" for field in table.schema_arrow]
    yield f"{path}: parquet file that vidvq did not write, {counted(table.metadata.num_rows, 'rows')}"
    yield f"  columns: {', '.join(columns[:_SHOWN])}" + (f" and {len(columns) - _SHOWN} more" * (len(columns) > _SHOWN))
    if names_videos(table.schema_arrow):
        yield f"  a list of videos; vidvq shard {path} --dry-run shows what it names"
    else:
        yield "  no column names videos; lists.uri=COLUMN makes a list of videos of it"


def _is_shard(path: Path) -> bool:
    """Whether a tar is a shard of vidvq: by the plan or the card beside it, or by its name and its first sample."""
    if path.suffix != ".tar":
        return False
    if (path.parent / "tokenizer.json").is_file() or (path.parent / "plan.json").is_file():
        return True
    if path.name.partition("-")[0] not in {CLIPS, COLUMNS}:
        return False
    try:
        key, files = next(read_samples(path))
        parse_clip_info(files["json"], key) if path.name.startswith(CLIPS) else parse_columns(files, key)
    except (StopIteration, KeyError, ValueError):
        return False
    return True


def _foreign_tar(path: Path) -> Iterator[str]:
    """Describe a tar that vidvq did not write, as `vidvq shard` would read it."""
    kinds, skipped = Counter[str](), Counter[str]()
    shown: list[str] = []
    videos = 0
    for source in read_tar(path, (), SUFFIXES, skipped):
        if source.failure:
            kinds[source.failure[0]] += 1
            continue
        videos += 1
        if len(shown) < _SHOWN:
            shown.append(f"  {source.member} ({source.size} bytes)")
    others = _other_members(path)
    if kinds["torn_tar"] and not videos and not others:
        raise UsageError(f"{path} is not a readable tar; it is damaged, or not a tar")
    yield f"{path}: tar that vidvq did not write, {counted(videos, 'videos')}, {in_bytes(path.stat().st_size)}"
    yield from shown
    if videos > len(shown):
        yield f"  and {videos - len(shown)} more"
    if others:
        yield f"  other members: {', '.join(f'{count} {kind}' for kind, count in others.most_common(_SHOWN))}"
    yield from (f"  {counted(count, 'members')} cannot be read: {reason}" for reason, count in sorted(kinds.items()))
    if videos:
        yield f"  vidvq shard {path} --out DIR makes clips of them"


def _other_members(path: Path) -> Counter[str]:
    """Number of members that are not videos, by suffix; in a damaged tar, of those before the damage."""
    found = Counter[str]()
    with suppress(tarfile.TarError, EOFError, OSError, zlib.error), open_tar(path) as file:
        for member in read_headers(file):
            suffix = Path(member.name).suffix.lower()
            if not member.isdir() and suffix not in SUFFIXES:
                found[suffix or "without a suffix"] += 1
    return found


def _shard(path: Path) -> Iterator[str]:
    card = read_tokenizer_card(path.parent) if (path.parent / "tokenizer.json").is_file() else None
    lines: list[str] = []
    count = 0
    for key, files in read_samples(path):
        count += 1
        if count <= _SHOWN:
            lines.append(f"  {key}: {_sample(path, key, files, card)}")
    kinds = {CLIPS: "clip shard", COLUMNS: "column shard"}
    kind = "token shard" if card else kinds.get(path.name.partition("-")[0], "tar")
    yield f"{path}: {kind}, {counted(count, 'samples')}, {in_bytes(path.stat().st_size)}"
    yield from lines
    if count > _SHOWN:
        yield f"  and {count - _SHOWN} more"


def _sample(path: Path, key: str, files: dict[str, bytes], card: TokenizerCard | None) -> str:
    if card and (TOKENS_MEDIA in files or PACKED in files):
        codes, info = parse_tokens(files, card, f"{path}: {key}")
        grid = "x".join(str(length) for length in codes.shape)
        form = f"{codes.dtype}, packed" if PACKED in files else codes.dtype
        return (
            f"{grid} codes ({counted(prod(codes.shape), 'tokens')}, {form}) of {counted(info.num_frames, 'frames')} "
            f"{info.width}x{info.height} at {info.fps:g} fps from {info.source}"
        )
    if path.name.startswith(CLIPS):
        media = media_of(files, f"{path}: {key}")
        info = parse_clip_info(files["json"], f"{path}: {key}")
        return (
            f"{counted(info.num_frames, 'frames')} {info.width}x{info.height} at {info.fps:g} fps, "
            f"{len(files[media])} bytes of {media}, clip {info.clip_index} of {info.source}"
        )
    if path.name.startswith(COLUMNS):
        return ", ".join(f"{name}={value!r}" for name, value in sorted(parse_columns(files, f"{path}: {key}").items()))
    return ", ".join(f"{extension} ({len(data)} bytes)" for extension, data in files.items())


def _tokenizer(card: TokenizerCard) -> Iterator[str]:
    books = ", ".join(f"{book.name} {book.size} (from {book.offset})" for book in card.codebooks)
    yield f"tokenizer {card.token_fingerprint[:12]}, decoder {card.decoder_fingerprint[:12]}"
    yield f"  compression {card.temporal_factor}x{card.spatial_factor}x{card.spatial_factor}, codebooks: {books}"
    yield f"  vocabulary {card.vocabulary}, raster order {card.raster_order}"


def _checkpoint(path: Path) -> Iterator[str]:
    folder = find_checkpoint(path)
    if is_generator(folder):
        yield from _generator(read_generator(folder))
        return
    checkpoint = read_checkpoint(folder)
    yield f"{checkpoint_name(checkpoint.path)}: checkpoint at step {checkpoint.config['step']}"
    yield f"  token fingerprint {checkpoint.fingerprints.token}"
    yield f"  decoder fingerprint {checkpoint.fingerprints.decoder}"
    for part in ("encoder", "quantizer", "decoder"):
        sizes = [tensor.size for name, tensor in checkpoint.tensors.items() if name.startswith(part + ".")]
        yield f"  {part}: {len(sizes)} tensors, {sum(sizes) / 1e6:.2f} M parameters"
    yield "model:"
    yield from _fields(checkpoint.config["model"])


def _generator(generator: Generator) -> Iterator[str]:
    card, sizes = generator.card, [tensor.size for tensor in generator.tensors.values()]
    yield f"{generator.path}: generator at step {generator.step}, {sum(sizes) / 1e6:.2f} M parameters"
    yield f"  fingerprint {generator.fingerprint}"
    yield f"  objective {card.objective}, tasks {', '.join(card.tasks)}"
    yield f"  trained on {'; '.join('x'.join(map(str, shape)) for shape in card.shapes)} latents, {card.fps:.3g} fps"
    for name, column in (("classes", card.label), ("actions", card.actions), ("texts", card.text)):
        if column:
            yield f"  {name} from the column {column}" + (f": {', '.join(card.labels)}" if name == "classes" else "")
    yield from (f"  {line}" for line in _tokenizer(card.tokenizer))


def _commit(path: Path) -> Iterator[str]:
    commit = read_commit(path.parent.parent, path.name.removesuffix(".json"))
    assert commit is not None
    yield f"{path}: commit record of {commit.shard}, plan {commit.plan_id[:12]}"
    yield f"  {commit.ok} ok, {len(commit.failed)} failed, {len(commit.filtered)} filtered; {commit.bytes} bytes"
    yield f"  sha256 {commit.sha256}"
    for outcome in (*commit.failed, *commit.filtered):
        yield f"  {outcome.key}: {outcome.reason}: {outcome.detail}"


def _video(path: Path) -> Iterator[str]:
    from vidvq.video import VideoError
    from vidvq.video.limits import Limits
    from vidvq.video.probe import probe

    try:
        info = probe(path, Limits())
    except VideoError as error:
        if path.suffix == ".json":
            content = read_json(path)
            kind = content.get("format", "unknown") if isinstance(content, dict) else "unknown"
            raise UsageError(f"{path} is JSON of format {kind}, not an artifact; {_REMEDY}") from error
        raise UsageError(f"{path} is not a usable video: {error}") from error
    yield f"{path}: {info.codec} video in {info.container}"
    duration_s = info.num_frames / info.fps
    yield f"  {info.num_frames} frames {info.width}x{info.height}, {info.fps:.3f} fps, {duration_s:.2f} s"
    steps = [b - a for a, b in zip(info.pts, info.pts[1:], strict=False)] or [0]
    # Times are rounded to ticks.
    varies = max(steps) - min(steps) > 1
    yield f"  time base {info.time_base}, {'variable' if varies else 'constant'} frame rate"
    if info.torn:
        yield "  the file ends early: its index points past its end"
