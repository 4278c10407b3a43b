"""Updates of tokens of raw video: only affected samples are encoded again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.decoders import decode_or_crash
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import read_plan
from vidvq.formats.tar import read_samples
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens

SETTINGS = "video.short_side=16 video.multiple=8 gop_frames=5 items_per_shard=2".split()
INLINE = ("runtime.workers=0", "max_failed=1")
ACCOUNTS = {"summary.json", "report.html"}


@pytest.fixture
def tokenize(checkpoint_dir, vidvq) -> Callable[..., Path]:
    """``tokenize(out, *arguments)``: run it to a good end, and verify."""

    def run(out: Path, *arguments: object) -> Path:
        ran = vidvq("tokenize", *arguments, "--checkpoint", checkpoint_dir, "--out", out, *INLINE)
        assert ran.code == 0, ran.err
        assert vidvq("verify", out).code == 0
        return out

    return run


@pytest.fixture
def videos(tmp_path, make_video) -> Path:
    """Three videos of 3, 2 and 1 samples, and a broken one between them."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, frames in (("a", 13), ("b", 9), ("d", 4)):
        make_video(folder / f"{name}.mp4", frames, size=(32, 64 + 2 * frames))
    (folder / "c.mp4").write_bytes(b"RIFF")
    return folder


@pytest.fixture
def tokens(videos, tokenize, tmp_path) -> Path:
    """Their tokens."""
    return tokenize(tmp_path / "tokens", videos, *SETTINGS)


def samples(folder: Path) -> dict[str, tuple[bytes, object]]:
    """Codes and JSON by key, over all shards; each shard read in full."""
    card = read_tokenizer_card(folder)
    return {
        key: (codes.tobytes(), info) for path in folder.glob("*.tar") for key, codes, info in read_tokens(path, card)
    }


def sources(folder: Path) -> dict[str, int]:
    """Number of samples by name of the source."""
    names = [Path(info.source).name for _, info in samples(folder).values()]
    return {name: names.count(name) for name in sorted(set(names))}


def frames_encoded(folder: Path) -> int:
    return json.loads((folder / "metrics.json").read_bytes())["frames"]


def kept(before: dict[str, str], after: dict[str, str]) -> bool:
    return all(after.get(name) == before[name] for name in before.keys() - ACCOUNTS)


def test_new_videos_make_new_shards_with_the_tokens_they_would_have_otherwise(
    videos, tokens, tokenize, make_video, snapshot, tmp_path
):
    before = snapshot(tokens)
    make_video(videos / "f.mp4", 9, size=(32, 96))
    tokenize(tokens, videos, "--add")
    after = snapshot(tokens)
    assert kept(before, after) and frames_encoded(tokens) == 9
    assert sources(tokens) == {"a.mp4": 3, "b.mp4": 2, "d.mp4": 1, "f.mp4": 2}
    anew = tokenize(tmp_path / "anew", videos, *SETTINGS)
    assert samples(tokens) == samples(anew)
    assert snapshot(tokenize(tokens, videos, "--add")) == after, "adding the same again changes nothing"
    assert snapshot(tokenize(tokens, videos, *SETTINGS)) == after, "the whole list is what they were made from"


def test_what_reads_tokens_reads_changed_ones(videos, tokens, tokenize, make_video, checkpoint_dir, tmp_path, vidvq):
    make_video(videos / "f.mp4", 9, size=(32, 96))
    make_video(videos / "c.mp4", 13, size=(32, 80))
    for change in (["--retry-failed"], [videos, "--add"], ["--remove", videos / "b.mp4"]):
        tokenize(tokens, *change)
    (videos / "b.mp4").unlink()
    anew = tokenize(tmp_path / "anew", videos, *SETTINGS)
    pixels = []
    for folder in tokens, anew:
        out = tmp_path / f"{folder.name}-decoded"
        ran = vidvq("decode", folder, "--checkpoint", checkpoint_dir, "--out", out, "format=npy", INLINE[0])
        assert ran.code == 0, ran.err
        pixels.append({path.name: path.read_bytes() for path in out.rglob("*.npy")})
    assert pixels[0] == pixels[1] and len(pixels[0]) == 9
    part = ("--source", videos / "c.mp4", "--from", "0.2", "--out", tmp_path / "late.mp4")
    assert vidvq("decode", tokens, "--checkpoint", checkpoint_dir, *part).code == 0
    ran = vidvq("export", tokens, "--to", "bin", "--out", tmp_path / "export", "--check")
    assert ran.code == 0, ran.err
    assert vidvq("verify", tmp_path / "export").code == 0


@pytest.mark.parametrize("settings", [[], ["pack=true"], ["quality.share=1"], ["batch=2"], ["gop_frames=null"]])
def test_a_removed_video_stays_in_the_plan_and_its_neighbours_are_copied(
    settings, videos, tokenize, snapshot, tmp_path, vidvq
):
    settings = [*SETTINGS, *settings]
    out = tokenize(tmp_path / "out", videos, *settings)
    whole, before = samples(out), snapshot(out)
    tokenize(out, "--remove", videos / "b.mp4")
    after = snapshot(out)
    assert samples(out) == {key: value for key, value in whole.items() if not value[1].source.endswith("b.mp4")}
    assert frames_encoded(out) == 0, "what stands was copied"
    touched = {name for name in before if name.endswith(".tar")} - after.keys()
    assert 1 <= len(touched) <= 2, "only the shards that held it"
    assert not any((out / "commits" / f"{name}.json").exists() for name in touched)
    removed = [
        outcome
        for name in read_plan(out).shard_names()
        if (commit := read_commit(out, name))
        for outcome in commit.filtered
        if outcome.reason == "removed"
    ]
    assert len(removed) == sum(value[1].source.endswith("b.mp4") for value in whole.values())
    assert all("b.mp4" in outcome.detail for outcome in removed)
    summary = json.loads((out / "summary.json").read_bytes())
    if "quality.share=1" in settings:
        assert summary["stats"]["scored"] == summary["ok"]
    # Again, and by the first command: its file still lies there, and is not brought back.
    assert snapshot(tokenize(out, "--remove", videos / "b.mp4")) == after
    assert snapshot(tokenize(out, videos, *settings)) == after
    # Only --add does.
    tokenize(out, videos / "b.mp4", "--add")
    assert samples(out) == whole


def test_a_repaired_file_gets_its_samples_by_a_retry(videos, tokens, tokenize, make_video, snapshot, tmp_path):
    before = snapshot(tokens)
    assert snapshot(tokenize(tokens, "--retry-failed")) == before, "a failure that lasts stays one"
    make_video(videos / "c.mp4", 13, size=(32, 80))
    assert snapshot(tokenize(tokens, "--retry-failed=decode_error")) == before, "another reason"
    tokenize(tokens, "--retry-failed")
    assert frames_encoded(tokens) == 13
    assert samples(tokens) == samples(tokenize(tmp_path / "anew", videos, *SETTINGS))
    after = snapshot(tokens)
    assert snapshot(tokenize(tokens, videos, *SETTINGS)) == snapshot(tokenize(tokens, "--retry-failed")) == after


def test_a_sample_that_failed_to_be_decoded_is_made_and_its_neighbour_is_copied(
    videos, tokens, tokenize, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("vidvq.tokenize.decoders.decode_items", decode_or_crash)
        out = tokenize(tmp_path / "out", videos, *SETTINGS)
    assert json.loads((out / "summary.json").read_bytes())["failed"]["decoder_died"]["count"] == 1
    assert sources(out)["a.mp4"] == 2
    tokenize(out, "--retry-failed=decoder_died")
    assert samples(out) == samples(tokens)
    assert frames_encoded(out) == 3, "the first sample of b.mp4, in the same shard, was not encoded again"


def test_a_killed_retry_resumes_before_another_one_begins(make_video, tokenize, tmp_path, monkeypatch):
    videos = [make_video(tmp_path / f"{name}.mp4", 13, size=(32, 64 + 2 * size)) for size, name in enumerate("ab")]
    with monkeypatch.context() as patch:
        patch.setattr("vidvq.tokenize.decoders.decode_items", decode_or_crash)
        out = tokenize(tmp_path / "out", *videos, *SETTINGS[:-1], "items_per_shard=3")
        tokenize(out, "--retry-failed")
    assert json.loads((out / "summary.json").read_bytes())["failed"]["decoder_died"]["count"] == 2
    # Killed after the first of two shards, whose item has failed again.
    for name in ("commits/tokens-000001-r1.tar.json", "tokens-000001-r1.tar"):
        (out / name).unlink()
    tokenize(out, "--retry-failed")
    assert len(read_plan(out).headers) == 2 and sources(out) == {"a.mp4": 2, "b.mp4": 3}
    tokenize(out, "--retry-failed")
    assert len(read_plan(out).headers) == 3 and sources(out) == {"a.mp4": 3, "b.mp4": 3}


def test_a_killed_update_resumes(videos, tokens, tokenize, snapshot, vidvq, tmp_path):
    twins = [Path(shutil.copytree(tokens, tmp_path / name)) for name in ("one", "two")]
    tokenize(tokens, "--remove", videos / "a.mp4")
    # A kill right after the plan's generation was written; what stood may be damaged by then.
    for twin in twins:
        for name in ("plan-0001.json", *(path.name for path in tokens.glob("plan-0001-*.parquet"))):
            shutil.copy(tokens / name, twin / name)
        ran = vidvq("verify", twin)
        assert ran.code == 1 and "is superseded by" in ran.out
    for path in twins[1].glob("*.tar"):
        path.write_bytes(path.read_bytes()[:1000])
    assert snapshot(tokenize(twins[0], "--remove", videos / "a.mp4")) == snapshot(tokens)
    for name in set(read_plan(tokens).shard_names()) & snapshot(twins[1]).keys():
        shutil.copy(tokens / name, twins[1] / name)
    assert snapshot(tokenize(twins[1], videos, *SETTINGS)) == snapshot(tokens)


def test_a_setting_that_is_given_again_unchanged_is_no_change(tokens, tokenize, snapshot):
    before = snapshot(tokens)
    again = ("device=cpu", "precision=fp32", "kernels=torch", "batch=1")
    assert snapshot(tokenize(tokens, "--retry-failed", *SETTINGS, *again)) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--remove", "/nowhere.mp4"], "has no input /nowhere.mp4"),
        (["--remove", "/x.mp4", "--add"], "exclude each other"),
        (["x.mp4", "--remove", "/x.mp4"], "take no videos"),
        (["--retry-failed", "gop_frames=9"], "gop_frames=9 cannot be changed"),
        (["--retry-failed", "quality.min_psnr=9"], "min_psnr=9.0 needs share above 0"),
        (["--retry-failed", "batch=9"], "batch=9 cannot be changed by an update"),
        (["--retry-failed=decode_eror"], "failed: not_a_video (1)"),
        (["nowhere.mp4", "--add"], "nowhere.mp4 does not exist"),
        (["{clips}", "--add"], "is a directory of shards; --add takes videos"),
        (["--retry-failed", "--checkpoint", "{other}"], "Give the --checkpoint or the function that made it"),
    ],
)
def test_a_usage_error_in_an_update_changes_nothing(
    tokens, clips_dir, other_checkpoint, checkpoint_dir, snapshot, vidvq, arguments, said
):
    before = snapshot(tokens)
    arguments = [argument.format(clips=clips_dir, other=other_checkpoint) for argument in arguments]
    ran = vidvq("tokenize", "--checkpoint", checkpoint_dir, "--out", tokens, INLINE[0], *arguments)
    assert ran.code == 2 and said in ran.error
    assert snapshot(tokens) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--add", "x.mp4"], "change those with vidvq shard --add, --remove or --retry-failed"),
        (["--remove", "x.mp4"], "change those with vidvq shard --add, --remove or --retry-failed"),
        (["--retry-failed"], "is made from clip shards; give their directory: vidvq tokenize CLIPS"),
    ],
)
def test_tokens_of_clips_follow_their_clips(tokens_dir, checkpoint_dir, snapshot, vidvq, change, said):
    before = snapshot(tokens_dir)
    ran = vidvq("tokenize", *change, "--checkpoint", checkpoint_dir, "--out", tokens_dir, INLINE[0])
    assert ran.code == 2 and said in ran.error
    assert snapshot(tokens_dir) == before


def test_failed_clips_are_retried(clips_dir, checkpoint_dir, tmp_path, snapshot, vidvq, monkeypatch):
    alone, out = tmp_path / "alone", tmp_path / "out"
    # Plans over clips record no limits, so that a retry takes any.
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, INLINE[0], "limits.deadline_s=900")
    assert vidvq(*command, "--out", alone).code == 0
    with monkeypatch.context() as patch:
        patch.setattr("vidvq.tokenize.decoders.decode_items", decode_or_crash)
        assert vidvq(*command, "--out", out).code == 1
    failed = json.loads((out / "summary.json").read_bytes())["failed"]["decoder_died"]["count"]
    ran = vidvq(*command, "--out", out, "--retry-failed=decoder_died")
    assert ran.code == 0 and f"{failed} failed item" in ran.err and " to retry" in ran.err
    assert vidvq(*command, "--out", out, "--retry-failed=decoder_died").code == 0, "none is left, which is no mistake"
    ran = vidvq(*command, "--out", out, "--retry-failed=decoder_dead")
    assert ran.code == 2 and "has no failed items; the reasons of vidvq are bad_name, " in ran.error
    assert vidvq("verify", out).code == 0
    samples = {key: files for path in sorted(alone.glob("*.tar")) for key, files in read_samples(path)}
    retried = {key: files for path in sorted(out.glob("*.tar")) for key, files in read_samples(path)}
    assert retried == samples
    # The clips are as they were, so the next run has nothing to do.
    after = snapshot(out)
    assert vidvq(*command, "--out", out).code == 0
    assert snapshot(out) == after
