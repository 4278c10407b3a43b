"""The export job: write ``export.json``, then export each token shard, idempotently."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vidvq.config import checked, is_mapping
from vidvq.errors import UsageError
from vidvq.export.config import ExportConfig
from vidvq.export.target import Target, TokenSequence, write_part
from vidvq.export.targets import TARGETS, target_of
from vidvq.export.verify import compare_part, damaged_files
from vidvq.formats.commit import FOLDER, Commit, read_finished, record_path
from vidvq.formats.export_records import (
    ExportHeader,
    Part,
    PartFile,
    encode_part,
    read_part,
    redo_hint,
    tokens_digest,
)
from vidvq.formats.plan import read_plan
from vidvq.formats.sequence import AXES, Layout, grid_to_sequence
from vidvq.formats.token_shard import CARD, PREFIX, encode_tokenizer_card, read_tokenizer_card, read_tokens
from vidvq.log import counted, in_bytes, progress
from vidvq.storage import (
    DIGEST_KEY,
    PREFLIGHT_MARKER,
    create_once,
    differences,
    file_exists,
    make_folder,
    pretty_json,
    read_json,
    remove_attempts,
    resolve_path,
    sha256_file,
    unless_done,
    write_shared,
)


@dataclass(frozen=True)
class ExportSummary:
    """Counts of an export.

    Attributes:
        clips: number of clips.
        ids: number of ids, special tokens included.
        bytes: size of the files of all parts.
        parts: number of parts, one per token shard.
    """

    target: str
    clips: int
    ids: int
    bytes: int
    parts: int

    def lines(self) -> list[str]:
        """The counts as text."""
        counts = f"{counted(self.clips, 'clips')}, {counted(self.ids, 'ids')}, {counted(self.parts, 'parts')}"
        return [f"{self.target}: {counts}, {in_bytes(self.bytes)}"]


def run_export(
    tokens: str | Path, target: str, out: str | Path, config: ExportConfig, check: bool = False
) -> ExportSummary:
    """Export a directory of token shards, or resume an interrupted export.

    Args:
        tokens: a directory that ``vidvq tokenize`` finished.
        target: one of :data:`vidvq.export.targets.TARGETS`.
        check: read the export back at the end and compare it with the token shards, id by id.

    Raises:
        UsageError: an argument is wrong, a shard is damaged, or ``check`` found a difference.
        OSError: the disk is full or not writable; finished parts are kept.
    """
    if target not in TARGETS:
        raise UsageError(f"{target} is not a target; give --to {' | '.join(TARGETS)}")
    config = checked(ExportConfig, config)
    tokens, out = resolve_path(tokens), resolve_path(out)
    if config.samples and target != "megatron":
        raise UsageError(f"samples=true is for --to megatron; {target} has metadata of its own, or no grid")
    layout = Layout(read_tokenizer_card(tokens), config)
    shards = _committed(tokens)
    kind = target_of(_write_header(out, target, layout, shards, config))
    if config.samples:
        write_shared(out / CARD, encode_tokenizer_card(layout.card))
    parts = []
    with progress("export", len(shards), "shards") as bar:
        for shard in shards:
            parts.append(_export(tokens, kind, out, shard, layout))
            bar.advance()
    dtype = kind.dtype(layout.vocabulary)
    for name, data in kind.index_files(parts, dtype).items():
        write_shared(out / name, data)
        remove_attempts((out / name).parent)
    remove_attempts(out)
    remove_attempts(out / FOLDER)
    if check:
        for shard, part in zip(shards, parts, strict=True):
            stem = _stem(shard)
            # Damage may also be outside the ids.
            for line in damaged_files(out, part):
                raise UsageError(f"{out}: {line}; {redo_hint(stem)}")
            paths = [out / (stem + suffix) for suffix in kind.suffixes]
            compare_part(paths, kind, dtype, _sequences(tokens / shard.shard, layout), stem)
    return ExportSummary(
        target,
        sum(part.clips for part in parts),
        sum(part.ids for part in parts),
        sum(file.bytes for part in parts for file in part.files),
        len(parts),
    )


def _committed(tokens: Path) -> list[Commit]:
    plan = read_plan(tokens)
    if plan.header.prefix != PREFIX:
        raise UsageError(f"{tokens} was written by vidvq {plan.stage}; give a directory of token shards")
    # Without the members, which are as many as the samples of the corpus.
    commits = [replace(commit, members=()) for commit in read_finished(tokens, plan)]
    if not commits:
        raise UsageError(f"{tokens} has no tokens to export")
    return commits


def _stem(commit: Commit) -> str:
    return commit.shard.removesuffix(".tar")


def _write_header(out: Path, target: str, layout: Layout, shards: list[Commit], config: ExportConfig) -> ExportHeader:
    card = layout.card
    made = ExportHeader(
        target=target,
        dtype=TARGETS[target].dtype(layout.vocabulary).name,
        token_fingerprint=card.token_fingerprint,
        tokens_sha256=tokens_digest([commit.sha256 or "" for commit in shards]),
        codebooks=card.codebooks,
        vocabulary=layout.vocabulary,
        specials=layout.specials,
        order=layout.config.order,
        axes=AXES[layout.config.order],
        parts=tuple(_stem(commit) for commit in shards),
        samples=config.samples,
    )
    header = made.to_json()
    path = out / "export.json"
    if not path.exists():
        ours = ("export.json.", PREFLIGHT_MARKER)
        if out.exists() and (found := sorted(p.name for p in out.iterdir() if not p.name.startswith(ours))):
            raise UsageError(f"{out} is not empty and has no export.json (found {found[0]}); give an empty --out")
        make_folder(out)
        create_once(path, pretty_json(header))
    there = read_json(path)
    if is_mapping(there) and DIGEST_KEY not in there:
        # An older version wrote no digest.
        header.pop(DIGEST_KEY)
    if found := list(differences("", there, header)):
        raise UsageError(f"{out} was made from other tokens or settings: {'; '.join(found[:4])}; give another --out")
    return made


def _sequences(path: Path, layout: Layout) -> Iterator[TokenSequence]:
    for key, codes, info in read_tokens(path, layout.card):
        yield TokenSequence(key, grid_to_sequence(codes, layout), info)


def _export(tokens: Path, target: Target, out: Path, commit: Commit, layout: Layout) -> Part:
    stem, path = _stem(commit), tokens / commit.shard
    if part := read_part(out, stem):
        for line in damaged_files(out, part, content=False):
            raise UsageError(f"{out}: {line}; {redo_hint(stem)}")
        return part
    if commit.sha256 is None or not path.is_file() or sha256_file(path) != commit.sha256:
        raise UsageError(f"{path} is missing or differs from its commit record; run vidvq verify {tokens}")
    clips = ids = 0

    def count() -> Iterator[TokenSequence]:
        nonlocal clips, ids
        for sequence in _sequences(path, layout):
            clips, ids = clips + 1, ids + len(sequence.ids)
            yield sequence

    record = record_path(out, stem)
    with unless_done(lambda: file_exists(record)):
        paths = write_part(target, out, stem, count(), commit.ok, layout.vocabulary)
        if clips != commit.ok:
            raise UsageError(f"{path} has {clips} clips, its record has {commit.ok}; run vidvq verify {tokens}")
        files = tuple(PartFile(file.name, file.stat().st_size, sha256_file(file)) for file in paths)
        create_once(record, encode_part(Part(commit.shard, commit.sha256, clips, ids, files)))
    recorded = read_part(out, stem)
    assert recorded is not None
    return recorded
