"""Samples scored in flight: by the frames that `vidvq decode` gives, and poor ones stop the job."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vidvq.corpus.frames import ClipFrames, decode_items
from vidvq.formats.plan import read_plan
from vidvq.formats.token_shard import TokenInfo, read_tokenizer_card, read_tokens
from vidvq.metrics.pixel import psnr
from vidvq.model.pixels import to_frames
from vidvq.model.step_shape import StepShape
from vidvq.pretrained import load_tokenizer
from vidvq.tokenize.config import QualityPolicy
from vidvq.tokenize.quality import ScoreQueue, Scorer, is_scored, keep_frames

INLINE = "runtime.workers=0"


def infos(folder) -> dict[str, TokenInfo]:
    card = read_tokenizer_card(folder)
    return {key: info for shard in sorted(folder.glob("*.tar")) for key, _, info in read_tokens(shard, card)}


def test_a_share_chosen_by_key_carries_what_decoding_gives(vidvq, clips_dir, checkpoint_dir, tmp_path):
    out, decoded = tmp_path / "out", tmp_path / "decoded"
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, INLINE, "quality.share=0.5")
    assert vidvq(*command).code == 0
    assert vidvq("decode", out, "--checkpoint", checkpoint_dir, "--out", decoded, "format=npy").code == 0
    found = infos(out)
    assert {key for key, info in found.items() if info.quality} == {key for key in found if is_scored(key, 0.5)}
    assert 0 < sum(info.quality is not None for info in found.values()) < len(found)
    rows = {row["key"]: row for row in read_plan(out).table.to_pylist()}
    for key, info in found.items():
        if info.quality:
            work = ClipFrames(clips_dir / rows[key]["clip_shard"], frozenset([key]))
            frames = np.concatenate([piece.frames for piece in decode_items(work) if piece.frames is not None])
            assert info.quality == {"psnr": round(psnr(frames, np.load(decoded / f"{key}.npy")), 2)}
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["stats"]["scored"] == sum(info.quality is not None for info in found.values())
    assert vidvq("verify", out).code == 0


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_code_usage_is_said_of_all_that_was_encoded(vidvq, clips_dir, checkpoint_dir, tmp_path, workers):
    out = tmp_path / "out"
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, f"runtime.workers={workers}")
    ran = vidvq(*command)
    card, said = read_tokenizer_card(out), ran.err + ran.out
    groups = [
        (card.codebook_of(t), group)
        for shard in sorted(out.glob("*.tar"))
        for _, codes, _ in read_tokens(shard, card)
        for t, group in enumerate(codes)
    ]
    for book in card.codebooks:
        found = np.concatenate([group.ravel() for of, group in groups if of == book])
        shares = np.unique(found, return_counts=True)[1] / len(found)
        line = f"{book.name} codebook: {len(shares)} of {book.size} codes in use, perplexity "
        line += f"{np.exp(-(shares * np.log(shares)).sum()):.0f}, over {len(found)} tokens of this run"
        assert line in " ".join(said.split())
    again = vidvq(*command)
    assert again.code == 0 and "codes in use" not in again.err + again.out


def test_workers_change_no_score(vidvq, clips_dir, checkpoint_dir, tmp_path, snapshot):
    for workers in (0, 2):
        where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / str(workers))
        assert vidvq("tokenize", clips_dir, *where, "quality.share=0.5", f"runtime.workers={workers}").code == 0
    assert snapshot(tmp_path / "0") == snapshot(tmp_path / "2")


def test_a_poor_shard_stops_the_job_and_what_is_committed_stays(
    vidvq, clips_dir, checkpoint_dir, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, INLINE)
    command = (*command, "quality.share=1", "quality.min_psnr=30")

    def told(scorer, codes, frames):
        # The first shard is good, all behind it are not.
        return [{"psnr": 10.0 if list(out.glob("commits/*.json")) else 40.0}] * len(frames)

    monkeypatch.setattr("vidvq.tokenize.quality.Scorer.score", told)
    ran = vidvq(*command)
    assert ran.code == 1
    assert [path.name for path in out.glob("*.tar")] == ["tokens-000000.tar"]
    assert "tokens-000001.tar: mean PSNR of" in ran.error and "quality.min_psnr=30" in ran.error
    assert [path.name for path in out.glob("commits/*")] == ["tokens-000000.tar.json"]
    assert not list(out.glob("*.tmp.*"))
    monkeypatch.undo()
    # min_psnr is no part of the plan: lowered, the same job goes on.
    assert vidvq(*command[:-1], "quality.min_psnr=1").code == 0
    assert vidvq("verify", out).code == 0


def test_a_threshold_without_a_share_is_refused(vidvq, clips_dir, checkpoint_dir, tmp_path):
    where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / "out")
    ran = vidvq("tokenize", clips_dir, *where, "quality.min_psnr=30", INLINE)
    assert (ran.code, "min_psnr=30.0 needs share above 0" in ran.error) == (2, True)


def test_without_a_share_nothing_is_said_of_quality(tokens_dir):
    assert "quality" not in read_plan(tokens_dir).made_from
    for path in tokens_dir.glob("*.tar"):
        assert b'"quality"' not in path.read_bytes()


def test_of_a_long_stream_the_first_frames_are_kept_and_scored(checkpoint_dir):
    tokenizer, _ = load_tokenizer(checkpoint_dir)
    rng, kept = np.random.default_rng(0), []
    chunks = [rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8) for length in (33, *[32] * 9)]
    assert len(list(keep_frames(tokenizer, chunks, kept))) == 10
    assert sum(map(len, kept)) == 129
    codes = np.zeros(tokenizer.latent_shape(321, 16, 16), np.int64)
    scorer = Scorer(tokenizer, QualityPolicy(share=1))
    frames = [np.concatenate(kept)]
    whole = scorer.score([codes], frames)
    assert whole == scorer.score([codes[: tokenizer.latent_shape(129, 16, 16)[0]]], frames)
    assert whole[0]["psnr"] > 0


@pytest.mark.parametrize(
    ("factor", "lengths", "expected"),
    [
        # A clip is one chunk.
        (4, [201], 129),
        (5, [201], 126),
        (4, [129], 129),
        # The last chunk would fit, but does not follow.
        (5, [31, 30, 30, 30, 30, 5], 121),
    ],
)
def test_kept_frames_are_consecutive_and_whole_groups(factor, lengths, expected):
    frames = np.arange(sum(lengths))[:, None, None, None]
    chunks, kept = np.split(frames, np.cumsum(lengths)[:-1]), []
    assert (
        list(map(len, keep_frames(SimpleNamespace(supports_streaming=True, temporal_factor=factor), chunks, kept)))
        == lengths
    )
    assert np.concatenate(kept).ravel().tolist() == list(range(expected))


def test_a_clip_longer_than_is_kept_is_scored(vidvq, make_video, checkpoint_dir, tmp_path):
    make_video(tmp_path / "long.mp4", 140, size=(16, 16))
    cut = vidvq("shard", tmp_path / "long.mp4", "--out", tmp_path / "clips", "clip.num_frames=140", INLINE)
    assert cut.code == 0
    out = tmp_path / "out"
    command = ("tokenize", tmp_path / "clips", "--checkpoint", checkpoint_dir, "--out", out, INLINE, "quality.share=1")
    assert vidvq(*command).code == 0
    ((info,),) = (infos(out).values(),)
    assert info.num_frames == 140 and info.quality["psnr"] > 0


def test_the_score_is_of_each_frame_against_its_own(checkpoint_dir):
    tokenizer, card = load_tokenizer(checkpoint_dir)
    codes = np.random.default_rng(0).integers(0, min(book.size for book in card.codebooks), (4, 2, 3))
    # 12 of the 13 frames that the codes decode to, and not all of their pixels: as of a clip that was padded.
    frames = to_frames(tokenizer.decode(torch.from_numpy(codes)[None], num_frames=12, size=(14, 20)))
    scorer = Scorer(tokenizer, QualityPolicy(share=1))
    assert scorer.score([codes], [frames]) == [{"psnr": 100.0}]
    assert scorer.score([codes], [frames[::-1]])[0]["psnr"] < 100


def test_the_perceptual_score_is_of_frames_of_the_sample(checkpoint_dir):
    tokenizer, _ = load_tokenizer(checkpoint_dir)
    codes = np.random.default_rng(0).integers(0, 32, (4, 4, 4))
    frames = to_frames(tokenizer.decode(torch.from_numpy(codes)[None]))
    scorer = Scorer(tokenizer, QualityPolicy(share=1, perceptual=True))
    assert scorer.score([codes], [frames]) == [{"psnr": 100.0, "st_lpips": 0.0}]
    others = frames.copy()
    # Frames 0, 4, 8 and 12 of 13 are compared; what is between is not.
    others[5:8] = 255 - others[5:8]
    assert scorer.score([codes], [others])[0]["st_lpips"] == 0
    others[12] = np.random.default_rng(1).integers(0, 256, others[12].shape)
    assert scorer.score([codes], [others])[0]["st_lpips"] > 0.01


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_is_met(share):
    chosen = sum(is_scored(f"key-{index}", share) for index in range(2000)) / 2000
    assert chosen == pytest.approx(share, abs=0.04) and (share not in (0, 1) or chosen == share)


def test_samples_scored_together_have_the_scores_of_each_alone(checkpoint_dir):
    tokenizer = load_tokenizer(checkpoint_dir)[0]
    rng = np.random.default_rng(0)
    kept = [[rng.integers(0, 256, (9, 24, size, 3), dtype=np.uint8)] for size in (40, 40, 32, 40, 40)]
    codes = [rng.integers(0, 32, (3, 3, size // 8)) for size in (40, 40, 32, 40, 40)]
    for shape in (StepShape(1, 1), StepShape(3, 2)):
        tokenizer.decode_shape = shape
        scorer = Scorer(tokenizer, QualityPolicy(share=1))
        alone = [scorer.score([one], frames)[0] for one, frames in zip(codes, kept, strict=True)]
        together: dict[int, dict[str, float]] = {}
        calls, decode = [], type(tokenizer).decode_step

        def count(self, codes, state=None, calls=calls, decode=decode):
            calls.append(len(codes))
            return decode(self, codes, state)

        def keep(index, scores, together=together):
            together[index] = scores

        queue = ScoreQueue(scorer, 3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(tokenizer), "decode_step", count)
            # The slot of a sample in the batch is that of its stream; the third sample has another size.
            for index, slot in enumerate((0, 2, 1, 1, 1)):
                queue.put(slot, codes[index], kept[index], partial(keep, index))
            assert len(together) == 4
            queue.flush()
        assert [together[index] for index in range(5)] == alone
        assert set(calls) == ({1, 2} if shape.streams == 1 else {3})
