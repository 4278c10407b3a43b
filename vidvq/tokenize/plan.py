"""Which token shard each clip goes into: one token shard per clip shard."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.errors import UsageError
from vidvq.formats.commit import Commit, read_commits
from vidvq.formats.plan import Plan, ensure_plan, read_plan, table_of
from vidvq.formats.token_shard import PREFIX, TokenizerCard
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.follow import follow_clips

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("clip_shard", pa.string()),
        # "" where the clip shard holds nothing any more.
        ("clip_shard_sha256", pa.string()),
        # Why there is nothing to encode; "" for a clip.
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
_PRESENT = {"reason": "", "detail": ""}


def plan_tokens(out: Path, clips: Path, config: TokenizeConfig, card: TokenizerCard) -> Plan:
    """The plan of an output directory, made now or on an earlier run. Where the clips have changed since, it follows.

    Args:
        clips: a directory that ``vidvq shard`` finished.
        config: how samples are written.
        card: of the tokenizer.

    Raises:
        ValueError: ``clips`` is unfinished or empty, or the plan there was made from other clips or another tokenizer.
    """
    source = read_plan(clips)
    digest = hashlib.sha256()
    table = table_of(_rows(clips, source, digest), SCHEMA)
    if not table.num_rows:
        raise UsageError(f"{clips} holds no clips; nothing to tokenize")
    made_from = {
        "clips": {"plan_id": source.plan_id, "sha256": digest.hexdigest()},
        "token_fingerprint": card.token_fingerprint,
    } | written_as(config, card)
    return follow_clips(out, source, made_from, table) or ensure_plan(out, "tokenize", PREFIX, made_from, lambda: table)


def _rows(clips: Path, source: Plan, digest: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of all clips, and take their shards' hashes, a line each, into ``digest``."""
    for index, commit in enumerate(clip_shards(clips, source)):
        digest.update(f"{chr(10) if index else ''}{commit.sha256}".encode())
        yield from (row | {"shard": index} for row in rows_of(commit))


def clip_shards(clips: Path, plan: Plan) -> Iterator[Commit]:
    """The records of the clip shards that hold something, in their order.

    Raises:
        ValueError: the directory holds something else, or is not finished.
    """
    if plan.header["stage"] != "shard":
        raise UsageError(f"{clips} was written by vidvq {plan.header['stage']}; give a directory of clip shards")
    for name, commit in zip(plan.shard_names(), read_commits(clips, plan.shard_names()), strict=True):
        if commit is None:
            raise UsageError(f"{clips}: {name} is not committed; finish vidvq shard first")
        if commit.sha256 is not None:
            yield commit


def rows_of(commit: Commit) -> list[dict[str, Any]]:
    """The rows of one clip shard's clips, but for the token shard they go into."""
    keys = dict.fromkeys(member.key for member in commit.members)
    return [_PRESENT | {"key": key, "clip_shard": commit.shard, "clip_shard_sha256": commit.sha256} for key in keys]


def written_as(config: TokenizeConfig, card: TokenizerCard) -> dict[str, Any]:
    """What a plan says of how samples are written: nothing where it is the default, so that plans keep their ids."""
    written: dict[str, Any] = {"pack": True} if config.pack else {}
    if (config.batch or 1) > 1:
        written["batch"] = config.batch
    if config.quality.share:
        # A score is of the decoder too.
        written["quality"] = {"share": config.quality.share, "decoder_fingerprint": card.decoder_fingerprint}
        written["quality"] |= {"perceptual": True} if config.quality.perceptual else {}
    return written
