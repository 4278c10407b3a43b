"""Changes to a finished directory of clip shards; see :mod:`vidvq.corpus.amend`."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from vidvq.config import apply_overrides, validate
from vidvq.corpus.amend import Change, Corpus
from vidvq.corpus.listing import Listing
from vidvq.corpus.planned import REMOVED, Row
from vidvq.errors import UsageError
from vidvq.formats.plan import Plan, read_plan
from vidvq.formats.summary import JobSummary
from vidvq.runtime import Pool
from vidvq.shard.config import ShardConfig
from vidvq.shard.job import make_shards
from vidvq.shard.plan import SCHEMA, deduplicate, made_from, probe_sources


def standing_config(out: Path, overrides: list[str]) -> ShardConfig:
    """The settings that a corpus was made with, and what a change to it may set.

    Raises:
        ValueError: there is no corpus, or an override is wrong.
    """
    header = read_plan(out).header
    if header["stage"] != "shard":
        raise UsageError(f"{out} was written by vidvq {header['stage']}; give a directory of clip shards")
    settings = {name: value for name, value in header["made_from"].items() if name != "inputs"}
    return validate(ShardConfig, apply_overrides(settings, overrides))


def amend(change: Change, out: Path, config: ShardConfig) -> JobSummary:
    """Change a corpus, and make the shards that this touches.

    Args:
        change: what is to become of it.
        out: its directory.
        config: as :func:`standing_config` gives it.

    Raises:
        ValueError: a mistake in the change; nothing was changed.
        OSError: the disk is full or not writable; what was committed stays.
    """

    def extend(pool: Pool) -> Plan:
        def look(listing: Listing, standing: Iterable[Row]) -> Iterable[Row]:
            return deduplicate(probe_sources(out, listing, config, pool), _hashes(standing), config)

        plan, per_shard = read_plan(out), config.clips_per_shard
        return change.extend(Corpus(out, plan, SCHEMA, per_shard, config.lists, partial(made_from, config), look))

    return make_shards(out, config, extend)


def _hashes(rows: Iterable[Row]) -> dict[str, str]:
    return {row["sha256"]: row["uri"] for row in rows if row["sha256"] and row["reason"] not in {REMOVED, "duplicate"}}
