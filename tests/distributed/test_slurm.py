"""`vidvq submit --backend slurm`, on a real Slurm of two nodes."""

import json
import re
import subprocess

import pytest

from tests.helpers.slurm_cluster import slurm, why_not
from tests.helpers.submitted_runs import TINY, TINY_GENERATOR, has_ended, read_log, wait_until
from vidvq import submit as jobs
from vidvq.formats.checkpoint import list_steps, read_checkpoint
from vidvq.formats.generator import read_generator

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
NODES = ["--backend", "slurm", "--nodes", 2]


@pytest.fixture(scope="module")
def cluster(make_short_folder):
    with slurm(make_short_folder()) as environment, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        yield environment


def test_training_on_two_nodes_saves_at_the_time_limit_is_requeued_and_completes(cluster, clips_dir, tmp_path, vidvq):
    run, out = tmp_path / "run $(touch harm) '\"", tmp_path / "out"
    command = ["submit", "train", "demo", f"data.clips={clips_dir}", f"out={out}", "steps=40", *TINY]
    assert vidvq(*command, *NODES, "--job", run).code == 0
    assert "was already submitted: " in vidvq(*command, *NODES, "--job", run).err
    wait_until(lambda: bool(list_steps(out)) or has_ended(run), run)
    # The signal that Slurm sends shortly before the time limit.
    job = json.loads((run / "attempts/1.json").read_text())["job"]
    subprocess.run(["scancel", "--signal=USR2", "--batch", job], check=True)
    wait_until(lambda: "requeued" in read_log(run), run)
    saved = read_checkpoint(out).config["step"]
    assert saved < 40
    wait_until(lambda: has_ended(run), run)
    log = read_log(run)
    assert jobs.status(run).state == "done", log
    assert re.search(r"preflight: ready", log)
    assert f"step {saved} is saved" in log
    assert "resuming from" in log
    assert read_checkpoint(out).config["step"] == 40
    assert not list(tmp_path.rglob("harm"))


def test_a_preempted_training_is_requeued_and_completes(cluster, clips_dir, tmp_path, vidvq):
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["submit", "train", "demo", f"data.clips={clips_dir}", f"out={out}", "steps=40", *TINY]
    assert vidvq(*command, *NODES, "--job", run).code == 0
    wait_until(lambda: bool(list_steps(out)) or has_ended(run), run)
    # To the tasks alone, as when Slurm preempts a job and grants it some time.
    job = json.loads((run / "attempts/1.json").read_text())["job"]
    subprocess.run(["scancel", "--signal=TERM", job], check=True)
    wait_until(lambda: "stopped by SIGTERM: requeued" in read_log(run) or has_ended(run), run)
    saved = read_checkpoint(out).config["step"]
    assert saved < 40 and not has_ended(run), read_log(run)
    wait_until(lambda: has_ended(run), run)
    assert jobs.status(run).state == "done", read_log(run)
    assert "resuming from" in read_log(run) and read_checkpoint(out).config["step"] == 40


@pytest.mark.slow
def test_slurm_signals_the_time_limit(cluster, clips_dir, tmp_path, vidvq):
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["submit", "train", "demo", f"data.clips={clips_dir}", f"out={out}", "steps=100000", *TINY]
    assert vidvq(*command, *NODES, "--job", run, "--time", "0:03:00").code == 0
    wait_until(lambda: "requeued" in read_log(run) or has_ended(run), run, 170)
    assert f"step {read_checkpoint(out).config['step']} is saved" in read_log(run)
    vidvq("submit", "cancel", run)
    wait_until(lambda: has_ended(run), run)
    assert jobs.status(run).state == "cancelled"


def test_a_cancelled_training_of_a_generator_saves_a_checkpoint(cluster, tokens_dir, tmp_path, vidvq):
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["submit", "generate", "train", tokens_dir, "--out", out, "steps=100000", *TINY_GENERATOR]
    assert vidvq(*command, *NODES, "--job", run).code == 0
    wait_until(lambda: bool(list_steps(out)) or has_ended(run), run)
    assert vidvq("submit", "cancel", run).code == 0
    wait_until(lambda: has_ended(run), run)
    assert jobs.status(run).state == "cancelled"
    assert f"step {read_generator(out).step} is saved" in read_log(run)


def test_tokenization_runs_on_a_ray_cluster_inside_the_job(
    cluster, clips_dir, checkpoint_dir, tokens_dir, tmp_path, vidvq, snapshot
):
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["submit", "tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, "--cpus", 1]
    assert vidvq(*command, *NODES, "--job", run).code == 0
    wait_until(lambda: has_ended(run), run, 180)
    assert jobs.status(run).state == "done", read_log(run)
    assert snapshot(out) == snapshot(tokens_dir)
    subprocess.run(["scontrol", "ping"], check=True)


def test_the_jobs_of_an_array_share_a_corpus(cluster, clips_dir, checkpoint_dir, tokens_dir, tmp_path, vidvq, snapshot):
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["submit", "tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, "runtime.workers=0"]
    assert vidvq(*command, "--backend", "slurm", "--array", 2, "--job", run).code == 0
    wait_until(lambda: has_ended(run), run, 180)
    assert jobs.status(run).state == "done", read_log(run)
    assert len(list((run / "logs").iterdir())) == 2
    assert snapshot(out) == snapshot(tokens_dir)
    assert "was already submitted: done" in vidvq(*command, "--backend", "slurm", "--array", 2, "--job", run).err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--nodes", 3], 2, "nodes=3 exceeds the 2 nodes of partition main"),
        (["--queue", "gold"], 2, "queue='gold' is not a partition of this cluster; choose one of main"),
        (["--gpus", 8], 1, "sbatch failed: .*(node configuration|gres|GRES)"),
    ],
)
def test_unavailable_resources_are_a_one_line_error(cluster, clips_dir, tmp_path, vidvq, options, code, said):
    ran = vidvq(
        *["submit", "train", "demo", f"data.clips={clips_dir}", "data.batch_size=24", "--backend", "slurm"],
        *["--job", tmp_path / "r", *options],
    )
    assert ran.code == code
    assert re.search(said, ran.error)


def test_missing_slurm_is_a_one_line_error(clips_dir, tmp_path, vidvq, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    ran = vidvq("submit", "train", "demo", f"data.clips={clips_dir}", "--backend", "slurm", "--job", tmp_path / "r")
    assert ran.code == 2
    assert "sbatch is not on the path" in ran.error
