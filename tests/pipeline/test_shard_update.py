"""Updates of a corpus: only affected shards are made again, and every item stays accounted for."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from vidvq.formats.clip_shard import read_clips
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import read_plan
from vidvq.formats.tar import read_samples

SETTINGS = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 clips_per_shard=2".split()
INLINE = "runtime.workers=0"


def sources(folder: Path) -> dict[str, int]:
    """Number of clips by name of the source, from the content of all shards."""
    found: dict[str, int] = {}
    for path in folder.glob("*.tar"):
        for _, _, info in read_clips(path):
            name = Path(info.source).name
            found[name] = found.get(name, 0) + 1
    return found


@pytest.fixture
def corpus(tmp_path, make_video, vidvq) -> tuple[Path, Path]:
    """Four videos and a broken one, sharded: ``(videos, out)``."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name, frames in (("a", 12), ("b", 9), ("d", 8), ("e", 5)):
        make_video(videos / f"{name}.mp4", frames, size=(32, 64 + 2 * frames))
    (videos / "c.mp4").write_bytes(b"RIFF")
    assert vidvq("shard", videos, "--out", out, *SETTINGS, INLINE).code == 1
    assert sources(out) == {"a.mp4": 3, "b.mp4": 2, "d.mp4": 2, "e.mp4": 1}
    return videos, out


def test_new_inputs_make_new_shards_and_leave_the_old_ones_alone(corpus, tmp_path, make_video, snapshot, vidvq):
    videos, out = corpus
    before = snapshot(out)
    make_video(videos / "f.mp4", 8, size=(32, 96))
    shutil.copy(videos / "a.mp4", videos / "again.mp4")
    ran = vidvq("shard", videos, "--out", out, "--add", INLINE, "max_failed=1")
    assert ran.code == 0, ran.err
    after = snapshot(out)
    accounts = {"summary.json", "report.html"}
    assert {name: after.get(name) for name in before.keys() - accounts} == {
        name: before[name] for name in before.keys() - accounts
    }
    assert sources(out)["f.mp4"] == 2 and "again.mp4" not in sources(out)
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["filtered"]["duplicate"]["count"] == 1 and summary["planned"] == 9 + 3
    assert vidvq("verify", out).code == 0
    assert vidvq("shard", videos, "--out", out, "--add", INLINE, "max_failed=1").code == 0
    assert snapshot(out) == after, "adding the same again changes nothing"
    assert vidvq("shard", videos, "--out", out, *SETTINGS, INLINE, "max_failed=1").code == 0
    assert snapshot(out) == after, "the whole list is what the corpus was made from"


def test_a_removed_input_leaves_its_shards_and_stays_in_the_plan(corpus, snapshot, vidvq):
    videos, out = corpus
    before = snapshot(out)
    ran = vidvq("shard", "--out", out, "--remove", f"{videos}/../{videos.name}/d.mp4", INLINE, "max_failed=1")
    assert ran.code == 0, ran.err
    assert sources(out) == {"a.mp4": 3, "b.mp4": 2, "e.mp4": 1}
    touched = {name for name in before if name.endswith(".tar")} - snapshot(out).keys()
    assert 1 <= len(touched) <= 2, "only the shards that held it"
    for name in touched:
        assert not (out / "commits" / f"{name}.json").exists()
    removed = [
        outcome
        for name in read_plan(out).shard_names()
        if (commit := read_commit(out, name))
        for outcome in commit.filtered
        if outcome.reason == "removed"
    ]
    assert len(removed) == 2 and all("d.mp4" in outcome.detail for outcome in removed)
    assert vidvq("verify", out).code == 0
    # Its file may still exist: the original command does not add it again.
    assert vidvq("shard", videos, "--out", out, *SETTINGS, INLINE, "max_failed=1").code == 0
    assert "d.mp4" not in sources(out)
    # Only --add does.
    assert vidvq("shard", videos / "d.mp4", "--out", out, "--add", INLINE, "max_failed=1").code == 0
    assert sources(out) == {"a.mp4": 3, "b.mp4": 2, "d.mp4": 2, "e.mp4": 1}
    assert vidvq("verify", out).code == 0


def test_an_input_that_is_removed_again_is_not_subtracted_twice(corpus, vidvq):
    videos, out = corpus
    for names in (["d.mp4"], ["d.mp4", "b.mp4"]):
        uris = [each for name in names for each in ("--remove", videos / name)]
        assert vidvq("shard", "--out", out, *uris, INLINE, "max_failed=1").code == 0
    ran = vidvq("shard", videos, "--out", out, *SETTINGS, INLINE, "max_failed=1")
    assert ran.code == 0, ran.err


def test_a_repaired_file_gets_its_clips_by_a_retry(corpus, make_video, snapshot, vidvq):
    videos, out = corpus
    before = snapshot(out)
    make_video(videos / "c.mp4", 12, size=(32, 80))
    assert vidvq("shard", "--out", out, "--retry-failed=decode_error", INLINE).code == 1, "another reason"
    assert snapshot(out) == before
    ran = vidvq("shard", "--out", out, "--retry-failed", INLINE)
    assert ran.code == 0, ran.err
    assert sources(out)["c.mp4"] == 3
    assert vidvq("verify", out).code == 0
    kept = [name for name in before if name.endswith(".tar") and snapshot(out).get(name) == before[name]]
    assert len(kept) >= 3, "shards without a failed item stay as they are"
    assert vidvq("shard", videos, "--out", out, *SETTINGS, INLINE).code == 0


def test_a_retry_of_a_damaged_file_changes_nothing(corpus, snapshot, vidvq):
    _, out = corpus
    before = snapshot(out)
    ran = vidvq("shard", "--out", out, "--retry-failed", INLINE)
    assert ran.code == 1 and "1 failed item to retry: 0 items to make" in ran.err
    assert snapshot(out) == before and not (out / "planning").exists()


def test_the_failures_of_an_update_are_told_from_earlier_ones(corpus, make_video, vidvq):
    videos, out = corpus
    make_video(videos / "f.mp4", 8, size=(32, 96))
    (videos / "g.mp4").write_bytes(b"RIFF")
    shutil.copy(videos / "a.mp4", videos / "again.mp4")
    ran = vidvq("shard", videos, "--out", out, "--add", INLINE, "--json")
    assert ran.code == 1, "the threshold is for all items"
    assert "failed not_a_video: 1" in ran.err and "g.mp4: " in ran.err and "c.mp4" not in ran.err
    assert "failed before this update: not_a_video 1" in ran.err
    assert "filtered duplicate: 1" in ran.err and "filtered before" not in ran.err
    account, summary = json.loads(ran.out), json.loads((out / "summary.json").read_bytes())
    assert account["failed"]["not_a_video"]["count"] == 2 and account["new_failed"]["not_a_video"]["count"] == 1
    assert summary == {name: value for name, value in account.items() if not name.startswith("new_")}
    # As after a kill: the shard in which g.mp4 fails was committed, the one before it was not.
    plan = read_plan(out)
    assert plan.num_shards == plan.header.first_shard + 2
    (out / "commits" / f"{plan.shard_name(plan.header.first_shard)}.json").unlink()
    ran = vidvq("shard", videos, "--out", out, "--add", INLINE)
    assert "failed not_a_video: 1" in ran.err and "g.mp4: " in ran.err and "c.mp4" not in ran.err
    ran = vidvq("shard", videos, "--out", out, "--add", INLINE, "--json")
    assert ran.code == 1 and "failed before this update: not_a_video 2" in ran.err and ".mp4: " not in ran.err
    assert json.loads(ran.out)["new_failed"] == {}
    ran = vidvq("shard", videos, "--out", out, *SETTINGS, INLINE)
    assert ran.code == 1 and "failed not_a_video: 2" in ran.err, "the original command shows all"


def test_a_retry_under_raised_limits_makes_what_they_refused_and_leaves_the_rest(corpus, snapshot, vidvq, tmp_path):
    videos, whole = corpus
    out, retry = tmp_path / "limited", ("shard", "--out", tmp_path / "limited", "--retry-failed=too_large", INLINE)
    # Frames of a.mp4 have 32 * 88 pixels, those of the others less.
    job = ("shard", videos, "--out", out, *SETTINGS, INLINE, "limits.deadline_s=300")
    assert vidvq(*job, "limits.max_pixels=2700").code == 1
    assert sources(out) == {"b.mp4": 2, "d.mp4": 2, "e.mp4": 1}
    before = snapshot(out)
    for lower in ("limits.deadline_s=299", "limits.max_pixels=2699", "limits.max_gap_s=99", "limits.max_side=99"):
        ran = vidvq(*retry, lower)
        assert ran.code == 2 and f"{lower.partition('=')[0]} was " in ran.error and "may raise max_pixels" in ran.error
    for other in (["--add", videos], ["--remove", videos / "b.mp4"]):
        ran = vidvq("shard", "--out", out, INLINE, *other, "limits.max_pixels=2817")
        assert ran.code == 2 and "--retry-failed may raise" in ran.error
    assert snapshot(out) == before
    raised = ("limits.max_pixels=2817", "limits.deadline_s=301", "limits.max_side=9000")
    ran = vidvq(*retry, *raised)
    assert ran.code == 1 and "1 failed item to retry: 3 items to make" in ran.err
    assert sources(out) == sources(whole) and vidvq("verify", out).code == 0
    tars = {name for name in before if name.endswith(".tar")}
    kept = {name for name in tars if snapshot(out).get(name) == before[name]}
    assert len(kept) == len(tars) - 1, "the shard that the video failed in is made again"
    samples = [
        {key: files for path in folder.glob("*.tar") for key, files in read_samples(path)} for folder in (out, whole)
    ]
    assert samples[0] == samples[1]
    assert [(limits["max_pixels"], limits["deadline_s"]) for limits in limits_of(out)] == [(2700, 300.0), (2817, 301.0)]
    after = snapshot(out)
    assert vidvq(*job, "limits.max_pixels=2700").code == 2
    assert vidvq(*job, *raised).code == vidvq(*retry).code == vidvq(*retry, *raised).code == 1, "c.mp4 is no video"
    assert snapshot(out) == after


def limits_of(folder: Path) -> list[dict[str, float]]:
    return [header.made_from["limits"] for header in read_plan(folder).headers]


def test_a_clip_that_failed_to_be_cut_is_cut_and_its_neighbours_are_copied(corpus, monkeypatch, vidvq, tmp_path):
    videos, out = corpus
    import vidvq.shard.cut as cut

    whole = cut.encode_mp4
    calls = []

    def torn_disk(frames, *rest):
        calls.append(len(frames))
        if len(calls) == 2:
            raise cut.VideoError("decode_error", "for this once")
        return whole(frames, *rest)

    other = tmp_path / "other"
    monkeypatch.setattr(cut, "encode_mp4", torn_disk)
    assert vidvq("shard", videos, "--out", other, *SETTINGS, INLINE).code == 1
    assert json.loads((other / "summary.json").read_bytes())["failed"]["decode_error"]["count"] == 1
    calls.clear()
    monkeypatch.setattr(cut, "encode_mp4", lambda *job: (calls.append(1), whole(*job))[1])
    assert vidvq("shard", "--out", other, "--retry-failed=decode_error", INLINE).code == 1
    assert len(calls) == 1, "the rest of the shard was not cut again"
    assert sources(other) == sources(out)
    assert vidvq("verify", other).code == 0


def test_a_clip_that_failed_to_be_cut_is_cut_from_the_file_as_it_is_now(tmp_path, make_video, monkeypatch, vidvq):
    import vidvq.shard.cut as cut

    def torn_disk(*_):
        raise cut.VideoError("decode_error", "for this once")

    video, out = make_video(tmp_path / "a.mp4", 5), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(cut, "encode_mp4", torn_disk)
        assert vidvq("shard", video, "--out", out, *SETTINGS, INLINE).code == 1
    make_video(video, 12)
    ran = vidvq("shard", "--out", out, "--retry-failed", INLINE)
    assert ran.code == 0, ran.err
    assert sources(out) == {"a.mp4": 3}
    assert vidvq("shard", video, "--out", out, *SETTINGS, INLINE).code == 0, "it is the input as it is now"


def test_an_update_takes_the_settings_of_the_corpus_and_those_that_change_nothing(corpus, make_video, tmp_path, vidvq):
    _, out = corpus
    new = make_video(tmp_path / "new.mp4", 8, size=(32, 96))
    own = tmp_path / "own.yaml"
    own.write_text("clip: {num_frames: 4, short_side: 16}\n")
    changeable = ("limits.download_deadline_s=9", "limits.allow_denied=true", "max_failed=1", INLINE)
    ran = vidvq("shard", new, "--out", out, "--add", "--config", own, *SETTINGS, *changeable)
    assert ran.code == 0, ran.err
    assert sources(out)["new.mp4"] == 2


def test_a_resumed_job_with_other_inputs_is_told_how_to_change_them(corpus, make_video, vidvq):
    videos, out = corpus
    make_video(videos / "f.mp4", 8, size=(32, 96))
    ran = vidvq("shard", videos, "--out", out, *SETTINGS, INLINE)
    assert ran.code == 2 and "f.mp4 was added" in ran.error and "--add" in ran.error and "--remove" in ran.error
    ran = vidvq("shard", videos, "--out", out, *SETTINGS[1:], INLINE)
    (videos / "f.mp4").unlink()
    ran = vidvq("shard", videos, "--out", out, *SETTINGS[1:], INLINE)
    assert ran.code == 2 and "clip.num_frames was 4, now 33" in ran.error and "--add" not in ran.error


def test_a_killed_update_resumes(corpus, snapshot, vidvq, tmp_path):
    videos, out = corpus
    twin = Path(shutil.copytree(out, tmp_path / "twin"))
    assert vidvq("shard", "--out", out, "--remove", videos / "a.mp4", INLINE, "max_failed=1").code == 0
    # As after a kill between writing the plan's generation and the first shard.
    for name in ("plan-0001.json", *(path.name for path in out.glob("plan-0001-*.parquet"))):
        shutil.copy(out / name, twin / name)
    ran = vidvq("verify", twin)
    assert ran.code == 1 and "is superseded by" in ran.out
    assert vidvq("shard", videos, "--out", twin, *SETTINGS, INLINE, "max_failed=1").code == 0
    assert snapshot(twin) == snapshot(out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--remove", "/nowhere.mp4"], "has no input /nowhere.mp4"),
        (["--remove", "/nowhere/a.mp4"], "has no input /nowhere/a.mp4; did you mean /"),
        (["--remove", "/x.mp4", "--add"], "exclude each other"),
        (["x.mp4", "--remove", "/x.mp4"], "take no videos"),
        (["--retry-failed", "clip.crf=3"], "clip.crf=3 cannot be changed"),
        (["--retry-failed", "clip.crf=3"], "keeps its clip.crf=17"),
        (["--retry-failed", "--config", "demo-shard"], "cannot be changed"),
        (["--retry-failed=decode_eror"], "fails for the reason decode_eror; give one"),
        (["--retry-failed=decode_eror"], "failed: not_a_video (1)"),
        (["nowhere.mp4", "--add"], "nowhere.mp4 does not exist"),
    ],
)
def test_a_usage_error_in_an_update_changes_nothing(corpus, snapshot, vidvq, arguments, said):
    _, out = corpus
    before = snapshot(out)
    ran = vidvq("shard", "--out", out, INLINE, *arguments)
    assert ran.code == 2 and said in ran.error
    assert snapshot(out) == before


def test_a_changed_input_must_be_removed_first(corpus, make_video, vidvq):
    videos, out = corpus
    make_video(videos / "a.mp4", 8)
    ran = vidvq("shard", videos, "--out", out, "--add", INLINE)
    assert ran.code == 2 and f"--remove {videos / 'a.mp4'}" in ran.error
    assert vidvq("shard", "--out", out, "--remove", videos / "a.mp4", INLINE, "max_failed=1").code == 0
    assert vidvq("shard", videos, "--out", out, "--add", INLINE, "max_failed=1").code == 0
    assert sources(out)["a.mp4"] == 2
    assert vidvq("verify", out).code == 0
    # The video has lost one of its three clips.
    assert vidvq("shard", videos, "--out", out, *SETTINGS, INLINE, "max_failed=1").code == 0


def test_a_failed_file_that_came_back_shorter_is_known_as_it_is_now(corpus, make_video, snapshot, vidvq):
    videos, out = corpus
    whole = make_video(videos / "c.mp4", 120, size=(32, 80), container_options={"movflags": "faststart"}).read_bytes()
    (videos / "c.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    assert vidvq("shard", "--out", out, "--retry-failed", INLINE).code == 1
    assert sources(out)["c.mp4"] > 3, "the file ends early, and that stays a failure"
    make_video(videos / "c.mp4", 12, size=(32, 80))
    ran = vidvq("shard", "--out", out, "--retry-failed", INLINE)
    assert ran.code == 0, ran.err
    assert sources(out)["c.mp4"] == 3
    assert json.loads((out / "summary.json").read_bytes())["filtered"]["gone"]["count"] > 0
    after = snapshot(out)
    assert vidvq("shard", videos, "--out", out, "--add", INLINE).code == 0
    assert vidvq("shard", videos, "--out", out, *SETTINGS, INLINE).code == 0
    assert snapshot(out) == after


def test_a_copy_of_a_removed_video_is_no_duplicate(tmp_path, make_video, vidvq):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    first = make_video(videos / "a.mp4", 8)
    shutil.copy(first, videos / "b.mp4")
    assert vidvq("shard", videos, "--out", out, *SETTINGS, INLINE).code == 0 and sources(out) == {"a.mp4": 2}
    assert vidvq("shard", "--out", out, "--remove", first, INLINE).code == 0 and sources(out) == {}
    shutil.copy(first, tmp_path / "c.mp4")
    assert vidvq("shard", tmp_path / "c.mp4", "--out", out, "--add", INLINE).code == 0
    assert sources(out) == {"c.mp4": 2}


def truncated(path: Path, frames: int, make_video) -> Path:
    """A video whose file ends early, which fails once more than its clips."""
    whole = make_video(path, frames, size=(32, 80), container_options={"movflags": "faststart"}).read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    return path


def test_a_copy_of_what_a_changed_video_was_before_is_no_duplicate(corpus, tmp_path, make_video, vidvq):
    videos, out = corpus
    truncated(videos / "c.mp4", 120, make_video)
    assert vidvq("shard", "--out", out, "--retry-failed", INLINE).code == 1
    before = sources(out)["c.mp4"]
    shutil.copy(videos / "c.mp4", tmp_path / "copy.mp4")
    make_video(videos / "c.mp4", 12, size=(32, 80))
    assert vidvq("shard", "--out", out, "--retry-failed", INLINE).code == 0
    assert vidvq("shard", tmp_path / "copy.mp4", "--out", out, "--add", INLINE).code == 1
    assert sources(out)["copy.mp4"] == before


def test_a_retry_of_a_truncated_video_makes_its_failed_clip_alone(tmp_path, make_video, monkeypatch, snapshot, vidvq):
    import vidvq.shard.cut as cut

    video, out, whole, calls = truncated(tmp_path / "a.mp4", 40, make_video), tmp_path / "out", cut.encode_mp4, []

    def torn_disk(*given):
        calls.append(given)
        if len(calls) == 1:
            raise cut.VideoError("decode_error", "for this once")
        return whole(*given)

    monkeypatch.setattr(cut, "encode_mp4", torn_disk)
    assert vidvq("shard", video, "--out", out, *SETTINGS, INLINE).code == 1
    planned = len(calls)
    assert sources(out) == {"a.mp4": planned - 1}
    assert vidvq("shard", "--out", out, "--retry-failed", INLINE).code == 1
    assert sources(out) == {"a.mp4": planned} and len(calls) == planned + 1
    before = snapshot(out)
    assert vidvq("shard", "--out", out, "--retry-failed", INLINE).code == 1
    assert snapshot(out) == before, "the end of the file is still missing"


def test_a_failed_file_that_came_back_shorter_twice_is_known_as_it_is_now(corpus, make_video, snapshot, vidvq):
    videos, out = corpus
    for frames in (160, 120):
        truncated(videos / "c.mp4", frames, make_video)
        assert vidvq("shard", "--out", out, "--retry-failed", INLINE).code == 1
    make_video(videos / "c.mp4", 12, size=(32, 80))
    assert vidvq("shard", "--out", out, "--retry-failed", INLINE).code == 0
    after = snapshot(out)
    ran = vidvq("shard", videos, "--out", out, "--add", INLINE)
    assert ran.code == 0, ran.err
    assert snapshot(out) == after


def test_a_repaired_tar_gets_its_clips_by_a_retry(tmp_path, make_video, vidvq):
    whole = [make_video(tmp_path / f"{name}.mp4", 12, size=(32, 64 + 8 * name)) for name in range(3)]
    tar, out = tmp_path / "videos.tar", tmp_path / "out"

    def pack(sizes: list[float]) -> None:
        with tarfile.open(tar, "w") as file:
            for path, size in zip(whole, sizes, strict=False):
                info = tarfile.TarInfo(path.name)
                info.size = int(path.stat().st_size * size)
                file.addfile(info, io.BytesIO(path.read_bytes()))

    pack([0.5, 0.5, 1])
    assert vidvq("shard", tar, "--out", out, *SETTINGS, INLINE).code == 1
    assert sources(out) == {"videos.tar#2.mp4": 3}
    # The second video is not where it was.
    pack([1])
    assert vidvq("shard", "--out", out, "--retry-failed", INLINE).code == 1
    assert json.loads((out / "summary.json").read_bytes())["failed"].keys() == {"missing"}
    pack([1, 1, 1])
    ran = vidvq("shard", "--out", out, "--retry-failed", INLINE)
    assert ran.code == 0, ran.err
    assert sources(out) == {f"videos.tar#{name}.mp4": 3 for name in range(3)}
    assert vidvq("verify", out).code == 0


def test_a_retry_does_not_read_what_a_list_may_not_name(tmp_path, make_video, snapshot, vidvq):
    allowed, out, names = tmp_path / "allowed", tmp_path / "out", tmp_path / "list.csv"
    allowed.mkdir()
    secret, video = make_video(tmp_path / "secret.mp4", 5), make_video(allowed / "a.mp4", 5)
    names.write_text(f"path,start,end\n{video},,\n{secret},,\n{video},2,1\n")
    assert vidvq("shard", names, "--out", out, *SETTINGS, f"lists.roots=[{allowed}]", INLINE).code == 1
    assert json.loads((out / "summary.json").read_bytes())["failed"].keys() == {"not_allowed", "bad_range"}
    before = snapshot(out)
    assert vidvq("shard", "--out", out, "--retry-failed", INLINE).code == 1
    assert snapshot(out) == before
