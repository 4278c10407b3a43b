"""The tokenization job: plan, then one idempotent unit of work per shard."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from vidvq.corpus.frames import VideoPolicy
from vidvq.errors import JobStopped, UsageError, WorkerLost
from vidvq.formats.commit import read_commits
from vidvq.formats.plan import Plan
from vidvq.formats.summary import JobSummary, summarize
from vidvq.formats.token_shard import TokenizerCard, write_tokenizer_card
from vidvq.log import info, progress
from vidvq.pretrained import find_tokenizer, load_tokenizer
from vidvq.runtime import Pool, WorkerDied, start
from vidvq.storage import place, refuse_unwritable
from vidvq.tokenize.account import Account, RunMetrics
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.live import Live
from vidvq.tokenize.plan import plan_tokens
from vidvq.tokenize.quality import Scorer
from vidvq.tokenize.videos import plan_videos, refuse_gop
from vidvq.tokenize.watch import Watch
from vidvq.tokenize.worker import ShardMaker, TokenJob

_GPU_BATCH = 8


@dataclass(frozen=True)
class Opened:
    """A job whose arguments are known to be right.

    Attributes:
        folder: of the checkpoint.
        card: of its tokenizer.
        clips: the directory of clip shards, None for raw video.
        config: with what depends on the machine filled in.
        gpus: of each worker.
    """

    folder: Path
    card: TokenizerCard
    clips: Path | None
    config: TokenizeConfig
    gpus: int


def open_job(sources: list[str], checkpoint: Path, config: TokenizeConfig) -> Opened:
    """Look at what a job was told, before anything is done.

    Raises:
        ValueError: a mistake in it.
    """
    folder = find_tokenizer(checkpoint)
    tokenizer, card = load_tokenizer(folder)
    clips = _clip_shards(sources)
    if clips is None:
        refuse_gop(config.gop_frames, card.temporal_factor)
        if config.gop_frames is None and not tokenizer.supports_streaming:
            raise UsageError(
                f"gop_frames=null needs a tokenizer that supports streaming; {type(tokenizer).__name__} does not"
            )
    elif config.video != VideoPolicy():
        raise UsageError(f"video.* is for raw video; the clips in {clips} have the size and rate they were cut with")
    gpus = 1 if torch.cuda.is_available() else 0
    # What scoring lacks is said before there is a plan.
    Scorer(tokenizer, config.quality)
    return Opened(folder, card, clips, replace(config, batch=config.batch or (_GPU_BATCH if gpus else 1)), gpus)


def run_tokenize(sources: list[str], checkpoint: Path, out: Path, config: TokenizeConfig) -> JobSummary:
    """Tokenize clip shards or raw video, or finish a job that was interrupted.

    Args:
        sources: a directory that ``vidvq shard`` finished; or video files, folders, globs, lists and URLs.
        checkpoint: a checkpoint, or a training run.
        out: the output directory.
        config: how.

    Raises:
        ValueError: a mistake in the arguments; nothing was changed.
        OSError: the disk is full or not writable, or the tokens are poorer than ``quality`` lets them be; what was
            committed stays.
    """
    job = open_job(sources, checkpoint, config)

    def plan(pool: Pool) -> Plan:
        if job.clips:
            return plan_tokens(out, job.clips, job.config, job.card)
        return plan_videos(out, sources, job.config, job.card, pool)

    return make_tokens(job, out, plan)


def make_tokens(job: Opened, out: Path, plan_with: Callable[[Pool], Plan]) -> JobSummary:
    """Plan, make every shard that is not committed, and add up."""
    refuse_unwritable(out)
    with start(job.config.runtime) as pool:
        plan = plan_with(pool)
        write_tokenizer_card(out, job.card)
        items, tokenizer = plan.header["items"], job.card.token_fingerprint
        info(f"plan {plan.plan_id[:12]}: {items} clips in {plan.num_shards} shards by {tokenizer[:12]}")
        account, watch = Account(), Watch(job.card, job.config.quality)
        try:
            _make_shards(job, out, plan, pool, account, watch)
        except (JobStopped, WorkerLost, OSError):
            # Whoever looks into what ended it wants to see how it went until then; the disk may be what did.
            with suppress(OSError):
                _tell(account.report(watch.total), out)
            raise
        _tell(account.report(watch.total), out)
    return summarize(out, plan)


def _tell(metrics: RunMetrics, out: Path) -> None:
    if metrics.workers:
        metrics.write(out)
    for line in metrics.lines():
        info(line)


def _clip_shards(sources: list[str]) -> Path | None:
    """The directory of clip shards that is meant, or None where it is raw video."""
    planned = [place(source) for source in sources if (place(source) / "plan.json").is_file()]
    if planned and len(sources) > 1:
        raise UsageError(f"{planned[0]} is a directory of shards; give it alone")
    return planned[0] if planned else None


def _make_shards(job: Opened, out: Path, plan: Plan, pool: Pool, account: Account, watch: Watch) -> None:
    config, live = job.config, Live(pool)
    with progress("tokenize", plan.header["items"], "clips") as bar:

        def jobs() -> Iterator[TokenJob]:
            order = config.runtime.order(plan.num_shards)
            commits = read_commits(out, plan.shard_names(order))
            for index, (shard, rows), commit in zip(order, plan.shards(order), commits, strict=True):
                if commit:
                    watch.see(commit)
                    bar.advance(len(rows), live.earlier(commit))
                else:
                    yield TokenJob(job.clips, out, shard, plan.id_of(index), rows, config, plan.older(index))

        make = partial(ShardMaker, job.folder, config.quality)
        for work, made in pool.map_stateful(make, jobs(), gpus=job.gpus):
            if isinstance(made, WorkerDied):
                raise WorkerLost(f"{work.shard}: {made.message}; run the same command again to go on")
            account.add(made)
            bar.advance(made.commit.items, live.made(made, account.report(watch.total).efficiency))
            watch.count(work.shard, made.counts)
            watch.see(made.commit)
