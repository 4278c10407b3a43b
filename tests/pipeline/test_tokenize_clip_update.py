"""Tokens after updates of their clips: only the token shards of changed clip shards are made again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vidvq.formats.clip_shard import read_clips
from vidvq.formats.plan import read_plan
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens

SETTINGS = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 clips_per_shard=2".split()
INLINE = ("runtime.workers=0", "max_failed=1")


@pytest.fixture
def corpus(tmp_path, make_video, vidvq) -> tuple[Path, Path]:
    """Videos, and their clips in three shards; ``broken.mp4`` gave none."""
    videos, clips = tmp_path / "videos", tmp_path / "clips"
    videos.mkdir()
    for name, frames in (("a", 12), ("b", 8)):
        make_video(videos / f"{name}.mp4", frames, size=(32, 64 + 2 * frames))
    (videos / "broken.mp4").write_bytes(b"RIFF")
    assert vidvq("shard", videos, "--out", clips, *SETTINGS, *INLINE).code == 0
    return videos, clips


@pytest.fixture
def tokenize(corpus, checkpoint_dir, vidvq) -> Callable[..., Path]:
    """Tokenize the clips as they are now, into a directory, and verify it."""

    def run(out: Path, *settings: str) -> Path:
        ran = vidvq("tokenize", corpus[1], "--checkpoint", checkpoint_dir, "--out", out, *INLINE, *settings)
        assert ran.code == 0, ran.err
        assert vidvq("verify", out).code == 0
        return out

    return run


def tokens_of(folder: Path) -> dict[str, bytes]:
    card = read_tokenizer_card(folder)
    return {key: codes.tobytes() for path in folder.glob("*.tar") for key, codes, _ in read_tokens(path, card)}


def change(vidvq, corpus: tuple[Path, Path], make_video: Callable[..., Path], kind: str) -> None:
    videos, clips = corpus
    if kind == "add":
        make_video(videos / "new.mp4", 12, size=(32, 96))
        job = (videos, "--add")
    elif kind == "retry":
        make_video(videos / "broken.mp4", 12, size=(32, 80))
        job = ("--retry-failed",)
    else:
        job = ("--remove", videos / f"{kind}.mp4")
    ran = vidvq("shard", *job, "--out", clips, *INLINE)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("changes", [["add"], ["a"], ["b"], ["retry"], ["add", "a", "retry", "b"]])
def test_after_an_update_of_the_clips_only_the_tokens_of_changed_shards_are_made_again(
    changes, corpus, tokenize, make_video, snapshot, vidvq, tmp_path
):
    out = tokenize(tmp_path / "tokens")
    for kind in changes:
        before, times = snapshot(out), {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
        clips_before = snapshot(corpus[1])
        change(vidvq, corpus, make_video, kind)
        rewritten = sum(name.endswith(".tar") for name in clips_before.keys() - snapshot(corpus[1]).keys())
        tokenize(out)
        kept = {path.name for path in out.glob("*.tar")} & times.keys()
        assert len(times) - len(kept) == rewritten, "as many token shards went as clip shards did"
        for name in kept:
            assert snapshot(out)[name] == before[name] and (out / name).stat().st_mtime_ns == times[name]
    clips = {key for path in corpus[1].glob("*.tar") for key, _, _ in read_clips(path)}
    assert tokens_of(out).keys() == clips
    assert tokens_of(out) == tokens_of(tokenize(tmp_path / "anew"))
    # The account says what went; and nothing is left to do.
    summary, after = json.loads((out / "summary.json").read_bytes()), snapshot(out)
    assert summary["ok"] == len(clips) and summary["planned"] == read_plan(out).table.num_rows
    tokenize(out)
    assert snapshot(out) == after


def test_a_killed_update_resumes(corpus, tokenize, make_video, snapshot, vidvq, tmp_path):
    out = tokenize(tmp_path / "tokens")
    twin = Path(shutil.copytree(out, tmp_path / "twin"))
    change(vidvq, corpus, make_video, "a")
    tokenize(out)
    # A kill right after the plan's generation was written.
    for name in ("plan-0001.json", *(path.name for path in out.glob("plan-0001-*.parquet"))):
        shutil.copy(out / name, twin / name)
    assert vidvq("verify", twin).code == 1
    assert snapshot(tokenize(twin)) == snapshot(out)


def test_other_clips_or_settings_are_refused_as_before(
    corpus, tokenize, make_video, clips_dir, checkpoint_dir, other_checkpoint, snapshot, vidvq, tmp_path
):
    out = tokenize(tmp_path / "tokens")
    change(vidvq, corpus, make_video, "add")
    before = snapshot(out)
    for clips, checkpoint, settings, said in (
        (clips_dir, checkpoint_dir, [], "clips.plan_id was"),
        (corpus[1], other_checkpoint, [], "token_fingerprint was"),
        (corpus[1], checkpoint_dir, ["pack=true"], "pack was absent"),
    ):
        ran = vidvq("tokenize", clips, "--checkpoint", checkpoint, "--out", out, *INLINE, *settings)
        assert ran.code == 2 and said in ran.error
    assert snapshot(out) == before
