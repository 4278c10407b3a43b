"""Script: plan and resume `vidvq shard`, then `vidvq tokenize`, over many clips that do not exist.

`planner.py FOLDER CLIPS CLIPS_PER_SHARD`, in its own process, so that its peak memory can be read. Probing a video and
making a shard are replaced; everything else is real. Prints JSON: for each step its CPU time (seconds), the peak
memory until then (bytes), and the number of files opened, or of requests if FOLDER is on an object store.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from tarfile import RECORDSIZE

from vidvq.config import validate
from vidvq.corpus.source import Source
from vidvq.formats.commit import FOLDER, Commit, _encode, read_commits
from vidvq.formats.summary import summarize
from vidvq.formats.tar import BLOCK_BYTES, Member
from vidvq.formats.token_shard import Codebook, TokenizerCard
from vidvq.jobs import ClipRow, plan_videos
from vidvq.jobs.plan_clips import plan_clips
from vidvq.log import console
from vidvq.runtime import InlinePool
from vidvq.shard import ShardStage
from vidvq.shard.config import ShardConfig
from vidvq.shard.probe import _clip
from vidvq.shard.rows import PlannedClip
from vidvq.storage import is_remote, resolve_path
from vidvq.tokenize import TokenizeClips, TokenizeConfig

CLIPS_PER_VIDEO = 20
CARD = TokenizerCard("a" * 64, "b" * 64, (Codebook("spatial", 32, 0), Codebook("temporal", 64, 32)), 4, 8, {})
# fsync protects against power cuts and is slow.
os.fsync = lambda file: None
console.quiet = True
asked = 0


def ask(event: str, _: object) -> None:
    global asked
    asked += event in {"open", "os.listdir", "os.scandir"}


def count_requests() -> None:
    from s3fs import S3FileSystem

    real = S3FileSystem._call_s3

    async def call(self, *arguments, **options):
        global asked
        asked += 1
        return await real(self, *arguments, **options)

    S3FileSystem._call_s3 = call


steps: dict[str, dict[str, float]] = {}


@contextmanager
def step(name: str) -> Iterator[None]:
    before, cpu = asked, time.process_time()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps[name] = {"cpu_s": time.process_time() - cpu, "peak": peak, "asked": asked - before}


class CountedPool(InlinePool):
    """Calls functions in this process, where file operations and requests are counted."""

    def map(self, function, items, **options):
        """See :meth:`vidvq.runtime.Pool.map`."""
        return ((item, function(item)) for item in items)


class Runtime:
    """Always returns the same kind of pool."""

    def pool(self, units: int) -> CountedPool:
        """See :class:`vidvq.runtime.Runtime`."""
        return CountedPool()


@dataclass(frozen=True, kw_only=True)
class Stage(ShardStage):
    """Stage whose probe invents clips."""

    def probe(self, source: Source) -> list[PlannedClip]:
        """Twenty clips of a video."""
        digest = f"{int(source.uri[-12:-4]):064x}"
        return [_clip(source, digest, index, 33 * index, 33) for index in range(20)]


def main() -> None:
    folder, clips, per_shard = resolve_path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    count_requests() if is_remote(folder) else sys.addaudithook(ask)
    uris = (f"s3://a-bucket-of-films/{index % 997:03d}/film-{index:08d}.mp4" for index in range(clips // 20))
    sources = [Source(uri, 123_456_789, "d41d8cd98f00b204e9800998ecf8427e") for uri in uris]
    Stage.sources = lambda stage, inputs: iter(sources)
    stage = Stage(config=validate(ShardConfig, {"clips_per_shard": per_shard}))
    out, tokens = folder / "clips", folder / "tokens"
    with step("shard: plan"):
        plan = plan_videos.plan_videos(stage, [], out, Runtime())
    assert plan.num_items == clips
    for index, (name, rows) in enumerate(plan.shards(PlannedClip)):
        members = tuple(Member(f"{row.key}.{kind}", 1000, 1) for row in rows for kind in ("json", "mp4"))
        # Two blocks of content and a header for each member; a tar is filled up to whole records with its end.
        size = -(-(3 * BLOCK_BYTES * len(members) + 2 * BLOCK_BYTES) // RECORDSIZE) * RECORDSIZE
        record = Commit(name, plan.id_of(index), f"{index:064x}", size, len(rows), (), (), members, {"frames": 33})
        if not is_remote(out):
            (out / FOLDER).mkdir(exist_ok=True)
        (out / FOLDER / f"{name}.json").write_bytes(_encode(record))
    with step("shard: resume and add up"):
        plan = plan_videos.plan_videos(stage, [], out, Runtime())
        assert all(read_commits(out, plan.shard_names()))
        assert summarize(out, plan).ok == clips
    with step("tokenize: plan"):
        plan = plan_clips(TokenizeClips(clips=out, config=TokenizeConfig(), checkpoint=Path(), card=CARD), tokens)
    assert (plan.num_items, plan.num_shards) == (clips, -(-clips // per_shard))
    with step("tokenize: jobs"):
        jobs = zip(plan.shards(ClipRow), read_commits(tokens, plan.shard_names()), repeat(None))
        assert sum(len(rows) for (_, rows), commit, _ in jobs if commit is None) == clips
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
