"""A job whose tokens go bad stops on its way, by means over many shards, and goes on where it is told to."""

import json

import numpy as np
import pytest

from vidvq.errors import JobStopped
from vidvq.formats.commit import Commit, read_commit
from vidvq.formats.token_shard import Codebook, TokenizerCard
from vidvq.jobs.stage import ShardResult
from vidvq.metrics.codes import CodeCounts
from vidvq.runtime import InlinePool, WorkerDied
from vidvq.tokenize.config import QualityPolicy
from vidvq.tokenize.quality_gates import QualityGates, ShardDetails

CARD = TokenizerCard("t", "d", (Codebook("spatial", 4, 0), Codebook("temporal", 8, 4)), 4, 8, {})


def shard(number: int, scored: int, psnr: float) -> Commit:
    stats = {"scored": scored, "psnr_e4": round(scored * psnr * 10_000)}
    return Commit(f"tokens-{number:06d}.tar", "plan", "", 0, scored, (), (), stats=stats)


def result(shard: str, counted: CodeCounts) -> ShardResult:
    return ShardResult(Commit(shard, "plan", "", 0, 1, (), ()), "worker", 1.0, {}, details=ShardDetails(counted))


def counts(codes: np.ndarray) -> CodeCounts:
    counted = CodeCounts(CARD)
    counted.add(codes)
    return counted


def test_a_fall_below_the_first_samples_stops_the_job_once_64_are_that_low():
    gates = QualityGates(CARD, QualityPolicy(share=1, max_drop=3))
    for number in range(4):
        gates.on_commit(shard(number, 20, 30.0))  # 80 samples are the reference: whole shards until there are 64
    for number in range(4, 8):
        gates.on_commit(shard(number, 20, 27.5))
    for number in range(8, 11):
        gates.on_commit(shard(number, 20, 26.9))
    # The last 80 samples have 26.9 dB on their mean now, no shard of 27.5 among them.
    with pytest.raises(JobStopped, match=r"tokens-000011.tar: .* last 80 scored samples fell to 26.90 dB"):
        gates.on_commit(shard(11, 20, 26.9))


# The first 64 samples are in shards 1 to 7; the shard after them is judged together with later ones.
@pytest.mark.parametrize("bad", [9, 31])
def test_one_bad_shard_is_not_a_fall(bad):
    gates = QualityGates(CARD, QualityPolicy(share=1, max_drop=3))
    for number in range(40):
        gates.on_commit(shard(number, 16, 20.0 if number == bad else 30.0) if number % 2 else shard(number, 0, 0))


def test_a_better_rest_is_no_fall():
    gates = QualityGates(CARD, QualityPolicy(share=1, max_drop=1))
    for number in range(20):
        gates.on_commit(shard(number, 64, 20.0 + number))


def test_a_collapse_is_seen_behind_a_good_beginning():
    rng = np.random.default_rng(0)
    gates = QualityGates(CARD, QualityPolicy(min_usage=0.5))
    for number in range(100):
        gates.on_result(result(f"shard {number}", counts(rng.integers(0, [[[4]]] + [[[8]]] * 8, (9, 4, 4)))))
    collapsed = rng.integers(0, 4, (9, 4, 4))
    collapsed[1:] = 5
    with pytest.raises(JobStopped, match=r"temporal codebook: .* quality.min_usage=0.5"):
        for number in range(100, 120):
            gates.on_result(result(f"shard {number}", counts(collapsed)))
    assert 100 < number < 112  # 800 tokens of the temporal codebook at 128 a shard, and what was left over before
    assert gates._total.use()[0].tokens == 16 * (number + 1)


def test_few_tokens_are_not_judged():
    gates = QualityGates(CARD, QualityPolicy(min_usage=1))
    gates.on_result(
        result("shard", counts(np.zeros((7, 8, 16), np.int64)))
    )  # 128 and 768 tokens of the 400 and 800 that it takes
    with pytest.raises(JobStopped, match="12.5% of its size, over the last 896 tokens"):
        gates.on_result(result("shard", counts(np.zeros((2, 8, 16), np.int64))))


def test_a_collapsed_checkpoint_stops_the_command_and_what_is_committed_stays(
    vidvq, clips_dir, checkpoint_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr("vidvq.tokenize.quality_gates._TOKENS_PER_CODE", 2)
    out = tmp_path / "out"
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, "runtime.workers=2")
    ran = vidvq(*command, "quality.min_usage=0.99")
    assert ran.code == 1
    assert "codebook: " in ran.error and "quality.min_usage=0.99; committed shards stay" in ran.error
    assert list(out.glob("commits/*.json"))
    assert json.loads((out / "metrics.json").read_bytes())["frames"] > 0
    # The threshold is no part of the plan.
    assert vidvq(*command).code == 0
    assert vidvq("verify", out).code == 0


def test_a_fall_is_found_again_by_the_run_that_resumes(vidvq, clips_dir, checkpoint_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("vidvq.tokenize.quality_gates._SCORED", 4)
    out = tmp_path / "out"
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, "runtime.workers=0")
    command = (*command, "quality.share=1", "quality.max_drop=2")

    def told(scorer, codes, frames):
        return [{"psnr": 30.0 if len(list(out.glob("commits/*.json"))) < 2 else 20.0}] * len(frames)

    monkeypatch.setattr("vidvq.tokenize.quality.Scorer.score", told)
    first = vidvq(*command)
    assert first.code == 1 and "samples fell to 20.00 dB" in first.error
    assert "from 30.00 dB of the first 4; quality.max_drop=2" in first.error
    made = sorted(path.name for path in out.glob("*.tar"))
    metrics = json.loads((out / "metrics.json").read_bytes())
    frames = [read_commit(out, name).stats["frames"] for name in made]
    assert metrics["frames"] == sum(frames) and "% encoding" in first.err
    assert sum(book["tokens"] for book in metrics["codebooks"]) == metrics["tokens"]
    again = vidvq(*command)
    assert again.code == 1 and again.error == first.error
    assert sorted(path.name for path in out.glob("*.tar")) == made
    assert vidvq(*command, "quality.max_drop=20").code == 0
    stats = json.loads((out / "summary.json").read_bytes())["stats"]
    assert f"mean psnr {stats['psnr_e4'] / stats['scored'] / 1e4:.4g}" in " ".join(vidvq("inspect", out).out.split())


def test_a_run_that_a_dead_worker_ends_tells_how_it_went_until_then(
    vidvq, clips_dir, checkpoint_dir, tmp_path, monkeypatch
):
    whole = InlinePool.map_stateful

    def die_at_the_third(pool, make, items, **resources):
        for number, (item, made) in enumerate(whole(pool, make, items, **resources)):
            yield item, made if number < 2 else WorkerDied("was killed")

    out = tmp_path / "out"
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, "runtime.workers=0")
    with monkeypatch.context() as patch:
        patch.setattr(InlinePool, "map_stateful", die_at_the_third)
        ran = vidvq(*command)
    assert ran.code == 1 and "tokens-000002.tar: was killed; run the same command again" in ran.error
    shards = [f"tokens-00000{number}.tar" for number in range(2)]
    stats = [read_commit(out, shard).stats["frames"] for shard in shards]
    assert json.loads((out / "metrics.json").read_bytes())["frames"] == sum(stats)
    assert vidvq(*command).code == 0
