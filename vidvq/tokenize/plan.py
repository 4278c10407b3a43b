"""Which token shard each clip goes into: one token shard per clip shard."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.formats.commit import Commit, read_commit
from vidvq.formats.plan import Plan, ensure_plan, read_plan
from vidvq.formats.token_shard import PREFIX, TokenizerCard
from vidvq.storage import sha256_bytes
from vidvq.tokenize.config import TokenizeConfig

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("clip_shard", pa.string()),
        ("clip_shard_sha256", pa.string()),
    ]
)


def plan_tokens(out: Path, clips: Path, config: TokenizeConfig, card: TokenizerCard) -> Plan:
    """The plan of an output directory, made now or on an earlier run.

    Args:
        clips: a directory that ``vidvq shard`` finished.
        config: how samples are written.
        card: of the tokenizer.

    Raises:
        ValueError: ``clips`` is unfinished or empty, or the plan there was made from other clips or another tokenizer.
    """
    source = read_plan(clips)
    if source.header["stage"] != "shard":
        raise ValueError(f"{clips} was written by vidvq {source.header['stage']}; give a directory of clip shards")
    commits = [_finished(clips, shard) for shard, _ in source.shards()]
    rows: list[dict[str, Any]] = []
    full = [commit for commit in commits if commit.sha256]
    if not full:
        raise ValueError(f"{clips} holds no clips; nothing to tokenize")
    for index, commit in enumerate(full):
        for key in dict.fromkeys(member.key for member in commit.members):
            rows.append({"key": key, "shard": index, "clip_shard": commit.shard, "clip_shard_sha256": commit.sha256})
    made_from = {
        "clips": {
            "plan_id": source.plan_id,
            "sha256": sha256_bytes("\n".join(commit.sha256 or "" for commit in full).encode()),
        },
        "token_fingerprint": card.token_fingerprint,
    } | written_as(config, card)
    return ensure_plan(out, "tokenize", PREFIX, made_from, lambda: pa.Table.from_pylist(rows, schema=SCHEMA))


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


def _finished(clips: Path, shard: str) -> Commit:
    commit = read_commit(clips, shard)
    if commit is None:
        raise ValueError(f"{clips}: {shard} is not committed; finish vidvq shard first")
    return commit
