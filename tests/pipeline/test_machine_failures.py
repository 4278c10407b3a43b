"""Full disks and crashing decoders: a one-line error, no partial files, and a job that resumes afterwards."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from vidvq.formats.clip_shard import read_clips
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import read_plan

INLINE = "runtime.workers=0"


def check_nothing_half_done(out: Path, whole: dict[str, str], snapshot: Callable[[Path], dict[str, str]]) -> None:
    found = snapshot(out) if out.exists() else {}
    assert not [name for name in found if ".tmp." in name]
    assert found.items() <= whole.items(), "what has its final name is what it would be in the end"


@pytest.mark.parametrize("kib", [4, 12, 40, 60, 84])
def test_a_job_on_a_full_disk_resumes_once_there_is_room(
    kib, small_disk, demo_videos, tiny_settings, clips_dir, snapshot, vidvq
):
    out = small_disk(kib) / "out"
    job = ("shard", demo_videos / "train/carphone.mp4", "--out", out, *tiny_settings, INLINE)
    ran = vidvq(*job)
    assert ran.code == 1
    assert "No space left on device" in ran.error and "run the same command again" in ran.error
    check_nothing_half_done(out, snapshot(clips_dir), snapshot)
    small_disk(4096)
    assert vidvq(*job).code == 0
    assert snapshot(out) == snapshot(clips_dir)


@pytest.mark.parametrize("kib", [4, 16, 60])
def test_tokenizing_onto_a_full_disk_resumes_once_there_is_room(
    kib, small_disk, clips_dir, checkpoint_dir, tokens_dir, snapshot, vidvq
):
    out = small_disk(kib) / "out"
    job = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, INLINE)
    ran = vidvq(*job)
    assert ran.code == 1
    assert "No space left on device" in ran.error
    check_nothing_half_done(out, snapshot(tokens_dir), snapshot)
    small_disk(4096)
    assert vidvq(*job).code == 0
    assert snapshot(out) == snapshot(tokens_dir)


def check_resumes_once_there_is_room(job, kib, small_disk, tmp_path, snapshot, vidvq) -> None:
    """``job`` ends with ``--out``; a disk of so many KiB is too small for what it makes."""
    assert vidvq(*job, tmp_path / "whole").code == 0
    out = small_disk(kib) / "out"
    ran = vidvq(*job, out)
    assert ran.code == 1
    assert "No space left on device" in ran.error
    check_nothing_half_done(out, snapshot(tmp_path / "whole"), snapshot)
    small_disk(4096)
    assert vidvq(*job, out).code == 0
    assert snapshot(out) == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("kib", [4, 16, 24])
def test_tokenizing_videos_onto_a_full_disk_resumes_once_there_is_room(
    kib, small_disk, demo_videos, checkpoint_dir, tmp_path, snapshot, vidvq
):
    settings = "video.short_side=32 video.multiple=8 gop_frames=9 items_per_shard=4".split()
    job = ("tokenize", demo_videos / "train/carphone.mp4", "--checkpoint", checkpoint_dir, *settings, INLINE, "--out")
    check_resumes_once_there_is_room(job, kib, small_disk, tmp_path, snapshot, vidvq)


@pytest.mark.parametrize("kind", ["mp4", "png"])
def test_decoding_onto_a_full_disk_leaves_whole_clips_alone(
    kind, small_disk, tokens_dir, checkpoint_dir, tmp_path, snapshot, vidvq
):
    job = ("decode", tokens_dir, "--checkpoint", checkpoint_dir, f"format={kind}", "--out")
    check_resumes_once_there_is_room(job, 80, small_disk, tmp_path, snapshot, vidvq)


# Every Python of the job runs this first: readers that die on files of certain names.
DEADLY = """
import ctypes, time
try:
    from vidvq.video import decode
except ImportError:
    decode = None

def deadly(kind, names):
    make = kind.__init__
    def init(self, path, *arguments):
        if any(name in path.name for name in names):
            ctypes.PyDLL(None).sleep(600) if "hang" in path.name else ctypes.string_at(0)
        make(self, path, *arguments)
    kind.__init__ = init

if decode:
    deadly(decode._DecordReader, ("crash", "hang", "poison"))
    deadly(decode._PyAVReader, ("poison",))
"""
DEADLY_TO_PROBE = """
import ctypes
from vidvq.video import probe

look = probe._first_frame

def probe_or_die(path, *given):
    if "crash" in path.name or "hang" in path.name:
        ctypes.PyDLL(None).sleep(600) if "hang" in path.name else ctypes.string_at(0)
    return look(path, *given)

probe._first_frame = probe_or_die
"""


def test_a_decoder_that_dies_or_hangs_costs_its_own_clips_at_most(tmp_path, make_video):
    (tmp_path / "deadly").mkdir()
    (tmp_path / "deadly/sitecustomize.py").write_text(DEADLY)
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    for name in ("good", "crash", "hang", "poison"):
        make_video(corpus / f"{name}.mp4", 8)
    settings = "clip.num_frames=4 clip.min_frames=4 clips_per_shard=3 clip.short_side=32 limits.deadline_s=8".split()
    settings += ["filters.duplicates=false", "clip.decoder=decord"]
    done = subprocess.run(
        [sys.executable, "-m", "vidvq", "shard", corpus, "--out", out, *settings, "runtime.workers=2"],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "deadly")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "stdout is for results alone"
    clips = [info for path in sorted(out.glob("*.tar")) for _, _, info in read_clips(path)]
    made = Counter((Path(info.source).stem, info.decoder.split()[0]) for info in clips)
    assert made == {("good", "decord"): 2, ("crash", "pyav"): 2, ("hang", "pyav"): 2}
    records = [read_commit(out, name) for name in read_plan(out).shard_names()]
    failed = [outcome for record in records if record for outcome in record.failed]
    assert [outcome.reason for outcome in failed] == ["decoder_died", "decoder_died"]
    assert all("poison.mp4: every decoder crashed" in outcome.detail for outcome in failed)


@pytest.mark.parametrize("verb", ["shard", pytest.param("tokenize", marks=pytest.mark.slow)])
def test_an_inline_job_survives_a_video_that_crashes_the_prober(verb, tmp_path, make_video, checkpoint_dir):
    (tmp_path / "deadly").mkdir()
    (tmp_path / "deadly/sitecustomize.py").write_text(DEADLY_TO_PROBE)
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    for name in ("crash", "good", "hang"):
        make_video(corpus / f"{name}.mp4", 8)
    settings = {
        "shard": ["clip.num_frames=4", "clip.min_frames=4", "clip.short_side=32", "filters.duplicates=false"],
        "tokenize": ["--checkpoint", checkpoint_dir, "video.short_side=32", "video.multiple=8", "gop_frames=5"],
    }
    done = subprocess.run(
        [sys.executable, "-m", "vidvq", verb, corpus, "--out", out, *settings[verb], "limits.deadline_s=5", INLINE],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "deadly"), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    records = [read_commit(out, name) for name in read_plan(out).shard_names()]
    failed = [outcome for record in records if record for outcome in record.failed]
    assert [(outcome.reason, Path(outcome.detail.partition(":")[0]).stem) for outcome in failed] == [
        ("decoder_died", "crash"),
        ("decoder_died", "hang"),
    ]
    assert sum(record.ok for record in records if record) == 2
