"""Several drivers on one corpus, like the jobs of a Slurm array: the same bytes as one driver alone."""

import subprocess
import sys

import pytest

from vidvq.jobs import listing
from vidvq.shard import stage as stages
from vidvq.shard import worker

SETTINGS = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 clips_per_shard=1".split()


@pytest.fixture
def jobs(tiny_corpus, tiny_clips, checkpoint_dir):
    return {
        "shard": ["shard", tiny_corpus, *SETTINGS, "runtime.workers=0"],
        "tokenize": ["tokenize", tiny_clips, "--checkpoint", checkpoint_dir, "runtime.workers=0"],
    }


@pytest.mark.parametrize("verb", ["shard", pytest.param("tokenize", marks=pytest.mark.slow)])
def test_all_parts_at_once_make_what_one_driver_makes(verb, jobs, tmp_path, vidvq, snapshot):
    assert vidvq(*jobs[verb], "--out", tmp_path / "alone").code in {0, 1}
    command = [sys.executable, "-m", "vidvq", *map(str, jobs[verb]), "--out", str(tmp_path / "shared")]
    drivers = [subprocess.Popen([*command, f"runtime.part={part}/3"], stderr=subprocess.PIPE) for part in range(3)]
    told = [driver.communicate(timeout=120)[1].decode() for driver in drivers]
    assert all("Traceback" not in text for text in told), told
    assert snapshot(tmp_path / "shared") == snapshot(tmp_path / "alone")


def test_one_part_alone_ends_with_the_whole(jobs, tmp_path, vidvq, snapshot):
    vidvq(*jobs["shard"], "--out", tmp_path / "alone")
    vidvq(*jobs["shard"], "--out", tmp_path / "last", "runtime.part=2/3")
    assert snapshot(tmp_path / "last") == snapshot(tmp_path / "alone")


def test_planning_is_shared_too(jobs, tmp_path, vidvq, snapshot, monkeypatch):
    vidvq(*jobs["shard"], "--out", tmp_path / "alone")
    monkeypatch.setattr(listing, "_SOURCES_PER_PART", 1)
    looked: list[str] = []
    probe = stages.probe_clips
    monkeypatch.setattr(
        stages, "probe_clips", lambda source, config: looked.append(source.uri[-8:]) or probe(source, config)
    )
    vidvq(*jobs["shard"], "--out", tmp_path / "last", "runtime.part=2/3")
    assert [uri[-7:] for uri in looked] == ["two.mkv", "one.mp4", "ort.mp4"]
    assert snapshot(tmp_path / "last") == snapshot(tmp_path / "alone")


@pytest.mark.parametrize("before", [0, 1])
def test_a_plan_that_another_driver_finished_meanwhile_is_taken(jobs, tmp_path, vidvq, snapshot, monkeypatch, before):
    """Also where it has deleted parts that this one saved before, and takes for granted."""
    vidvq(*jobs["shard"], "--out", tmp_path / "alone")
    monkeypatch.setattr(listing, "_SOURCES_PER_PART", 1)
    probe, told = stages.probe_clips, []

    def slow(source, config):
        told.append(source)
        if len(told) == before + 1:
            command = [sys.executable, "-m", "vidvq", *map(str, jobs["shard"]), "--out", str(tmp_path / "out")]
            subprocess.run(command, check=False, capture_output=True)
        return probe(source, config)

    monkeypatch.setattr(stages, "probe_clips", slow)
    assert "Traceback" not in vidvq(*jobs["shard"], "--out", tmp_path / "out").err
    assert not (tmp_path / "out/planning").exists()
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "alone")


def test_of_two_drivers_that_add_the_same_videos_the_later_one_is_told_to_resume(
    jobs, make_video, tmp_path, vidvq, snapshot, monkeypatch
):
    (tmp_path / "more").mkdir()
    for name in ("a", "b"):
        make_video(tmp_path / f"more/{name}.mp4", 5)
    vidvq(*jobs["shard"], "--out", tmp_path / "out")
    command = ["shard", "--add", tmp_path / "more", "--out", tmp_path / "out", "runtime.workers=0"]
    monkeypatch.setattr(listing, "_SOURCES_PER_PART", 1)
    probe, looked = stages.probe_clips, []

    def slow(source, config):
        looked.append(source)
        if len(looked) == 2:
            # The first one is saved.
            assert vidvq(*command).code == 0
            looked.append(snapshot(tmp_path / "out"))
        return probe(source, config)

    monkeypatch.setattr(stages, "probe_clips", slow)
    ran = vidvq(*command)
    assert (ran.code, "was changed by another driver in the meantime" in ran.error) == (1, True)
    assert vidvq(*command).code == 0
    assert snapshot(tmp_path / "out") == looked[-1]


@pytest.mark.parametrize(("change", "started"), [("add", False), ("remove", False), ("remove", True)])
def test_a_driver_that_outlasts_a_change_of_the_corpus_leaves_the_changed_one(
    change, started, jobs, tiny_corpus, make_video, tmp_path, vidvq, snapshot, monkeypatch
):
    made = make_video(tmp_path / "more.mp4", 5)
    update = ["shard", "--add", made] if change == "add" else ["shard", "--remove", tiny_corpus / "one.mp4"]
    for out in ("alone", "out"):
        vidvq(*jobs["shard"], "--out", tmp_path / out)
    vidvq(*update, "--out", tmp_path / "alone", "runtime.workers=0")
    # A driver is about to make a shard that another one makes before it, which then changes the corpus.
    (tmp_path / "out/commits/clips-000000.tar.json").unlink()
    commit = worker.commit_shard

    def late(folder, shard, plan_id, fill):
        def overtake():
            monkeypatch.setattr(worker, "commit_shard", commit)
            vidvq(*jobs["shard"], "--out", tmp_path / "out")
            vidvq(*update, "--out", tmp_path / "out", "runtime.workers=0")

        def fill_late(draft):
            if started:
                overtake()
            fill(draft)

        if not started:
            overtake()
        return commit(folder, shard, plan_id, fill_late)

    monkeypatch.setattr(worker, "commit_shard", late)
    ran = vidvq(*jobs["shard"], "--out", tmp_path / "out")
    assert ran.code == 1 and "was changed by another driver in the meantime" in ran.error
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "alone")
