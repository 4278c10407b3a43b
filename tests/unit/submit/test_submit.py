"""`vidvq submit`: what it refuses, what it keeps, and that submitting twice does no harm. On this machine alone."""

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.helpers.submitted_runs import TINY_GENERATOR, has_ended, read_log, wait_until
from vidvq import __version__
from vidvq.config import to_dict, validate
from vidvq.errors import StoreError
from vidvq.formats.checkpoint import list_steps
from vidvq.formats.generator import read_generator
from vidvq.submit import Job, Resources, Submitted, cancel, preview, status, submit, wait
from vidvq.submit.detached import DetachedBackend

SETTINGS = ["runtime.workers=0", "clip.short_side=32", "clip.num_frames=9", "clip.min_frames=5", "clip.multiple=8"]
# Each would do harm, or be lost, if a shell read it.
HOSTILE = "a b'c\"d$(touch harm)`touch harm`;touch harm\\n*"


@pytest.fixture
def there(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job_of(tmp_path: Path, seconds: float = 0, **resources: object) -> Job:
    """A job whose interpreter is a script that waits and says so."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho started\nexec sleep {seconds}\n")
    python.chmod(0o755)
    return Job("shard", (), {}, str(tmp_path / "out"), "local", Resources(**resources), str(tmp_path), str(python))


def test_a_job_with_hostile_names_runs_and_keeps_everything(there, demo_videos, vidvq):
    video = there / HOSTILE / "carphone.mp4"
    video.parent.mkdir()
    video.symlink_to(demo_videos / "train/carphone.mp4")
    command = ["submit", "shard", video.parent, "--out", f"out {HOSTILE}", "--job", f"run {HOSTILE}", *SETTINGS]
    ran = vidvq(*command, "--wait")
    assert ran.code == 0, ran.err
    run = there / f"run {HOSTILE}"
    assert vidvq("verify", there / f"out {HOSTILE}").code == 0
    assert not list(there.rglob("harm"))
    assert vidvq("submit", "status", run).out == "done\n"
    assert "4 ok" not in vidvq("submit", "logs", run).out.splitlines()[0]
    assert "failed, 0 filtered" in vidvq("submit", "logs", "-f", run).out
    assert yaml.safe_load((run / "config.yaml").read_text())["clip"]["short_side"] == 32
    assert json.loads((run / "environment.json").read_text())["vidvq"] == __version__
    again = vidvq(*command)
    assert "was already submitted: done" in again.err
    assert len(list((run / "attempts").iterdir())) == 1


def test_the_environment_that_is_kept_holds_no_secret(there, monkeypatch, demo_videos, vidvq):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    vidvq("submit", "shard", demo_videos / "train/carphone.mp4", "--out", "out", *SETTINGS, "--job", "run", "--wait")
    kept = (there / "run/environment.json").read_text()
    assert json.loads(kept)["variables"]["OMP_NUM_THREADS"] == "3"
    assert all("hunter2" not in path.read_text() for path in (there / "run").rglob("*") if path.is_file())


def test_a_dry_run_for_slurm_needs_no_slurm(there, demo_videos, monkeypatch, vidvq):
    monkeypatch.setattr("vidvq.submit.slurm.shutil.which", lambda name: None)
    command = ["submit", "shard", demo_videos / "train", "--out", "out", *SETTINGS, "--backend", "slurm", "--nodes", 2]
    ran = vidvq(*command, "--dry-run")
    assert (ran.code, "#SBATCH --nodes=2" in ran.out, list(there.iterdir())) == (0, True, [])
    assert "sbatch is not on the path" in vidvq(*command).error


def test_a_dry_run_for_slurm_needs_no_controller(there, demo_videos, monkeypatch, vidvq):
    def fail(*command):
        raise StoreError(f"{command[0]} failed: no controller")

    monkeypatch.setattr("vidvq.submit.slurm.shutil.which", lambda name: name)
    monkeypatch.setattr("vidvq.submit.slurm._run", fail)
    command = ["submit", "shard", demo_videos / "train", "--out", "out", *SETTINGS, "--backend", "slurm", "--nodes", 2]
    ran = vidvq(*command, "--dry-run")
    assert (ran.code, "#SBATCH --nodes=2" in ran.out, list(there.iterdir())) == (0, True, [])
    assert ran.err == ("warning: sinfo failed: no controller; the partition and the number of nodes are not checked\n")
    ran = vidvq(*command)
    assert ran.code == 1 and "sinfo failed" in ran.error


def test_a_dry_run_prints_what_would_run_and_writes_nothing(there, demo_videos, vidvq):
    ran = vidvq("submit", "shard", demo_videos / "train", "--out", "out", *SETTINGS, "--dry-run")
    assert ran.code == 0
    script = ran.out.partition("script.sh\n")[2].partition("# ---- command")[0]
    assert script.startswith("#!/usr/bin/env bash\n")
    assert not list(there.iterdir())
    assert vidvq("submit", "shard", demo_videos / "train", "--out", "out", *SETTINGS, "--job", "r", "--wait").code == 0
    # The same but for its own folder.
    name = next(line for line in script.splitlines() if line.startswith("export JOB=")).partition("=")[2]
    assert (there / "r/script.sh").read_text().replace(str(there / "r"), name) == script


def test_many_submissions_at_once_are_one(tmp_path):
    job = job_of(tmp_path, seconds=30)
    with ThreadPoolExecutor(8) as pool:
        done: list[Submitted] = list(pool.map(lambda _: submit(job, tmp_path / "run"), range(8)))
    assert [item.status for item in done].count(None) == 1
    assert status(tmp_path / "run").state == "running"
    cancel(tmp_path / "run")
    assert wait(tmp_path / "run").state == "cancelled"
    assert len(list((tmp_path / "run/attempts").glob("*.json"))) == 1


def test_a_submission_killed_before_it_recorded_the_ids_is_found_again(tmp_path):
    job = job_of(tmp_path, seconds=30)
    submit(job, tmp_path / "run")
    (tmp_path / "run/attempts/1.json").unlink()
    again = submit(job, tmp_path / "run")
    assert again.status is not None and again.status.state == "running"
    cancel(tmp_path / "run")
    assert wait(tmp_path / "run").state == "cancelled"


@pytest.mark.parametrize("delay_s", [0, 0.003, 0.01, 0.03, 0.1])
def test_a_cancel_at_any_moment_stops_the_job(tmp_path, delay_s):
    job = job_of(tmp_path, seconds=60)
    submit(job, tmp_path / "run")
    time.sleep(delay_s)
    cancel(tmp_path / "run")
    deadline = time.monotonic() + 300
    while not (now := status(tmp_path / "run")).ended and time.monotonic() < deadline:
        time.sleep(0.02)
    assert now.state == "cancelled"


def test_a_cancelled_or_failed_job_resumes_with_the_same_command(tmp_path):
    job = job_of(tmp_path, seconds=60)
    submit(job, tmp_path / "run")
    cancel(tmp_path / "run")
    assert wait(tmp_path / "run").state == "cancelled"
    job_of(tmp_path, seconds="x")
    assert submit(job, tmp_path / "run").status is None
    assert wait(tmp_path / "run").state == "failed"
    job_of(tmp_path)
    assert submit(job, tmp_path / "run").status is None
    assert wait(tmp_path / "run").state == "done"
    assert submit(job, tmp_path / "run").status is not None
    assert len(list((tmp_path / "run/attempts").glob("*.json"))) == 3


def test_the_exit_code_of_an_attempt_is_gone_before_the_next_one(tmp_path, monkeypatch):
    job = job_of(tmp_path, seconds="x")
    submit(job, tmp_path / "run")
    assert wait(tmp_path / "run").state == "failed"

    def start(self, job, directory, attempt):
        assert (directory.exit_code(), attempt) == (None, 2)
        return {"pid": 1}

    monkeypatch.setattr(DetachedBackend, "submit", start)
    assert submit(job, tmp_path / "run").status is None


def test_a_job_that_was_killed_outright_is_lost(tmp_path):
    job = job_of(tmp_path, seconds=60)
    submitted = submit(job, tmp_path / "run")
    os.killpg(submitted.ids["pid"], signal.SIGKILL)
    assert wait(tmp_path / "run").state == "lost"


def test_another_job_in_the_same_job_directory_is_refused_and_changes_nothing(tmp_path, snapshot):
    submit(job_of(tmp_path), tmp_path / "run")
    wait(tmp_path / "run")
    before = snapshot(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another job: resources.gpus was 0, now 2. Give another --job"):
        submit(job_of(tmp_path, gpus=2), tmp_path / "run")
    assert snapshot(tmp_path / "run") == before


def test_retries_submit_again_up_to_a_cap(there, vidvq, demo_videos, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    ran = vidvq(
        *["submit", "shard", demo_videos, "--out", "out", *SETTINGS, "--job", "run", "--wait", "--retries", "2"]
    )
    assert ran.code == 1
    assert ran.err.count("failed (exit code 1)") == 3
    assert len(list((there / "run/attempts").glob("*.json"))) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "nosuch"], "backend='nosuch' is unknown; choose one of local, slurm, ssh, ray, kubernetes"),
        (["--nodes", "2"], "nodes=2 is not supported by the local backend"),
        (["--nodes", "0"], "nodes=0 must be 1 or more"),
        (["--gpus", "-1"], "gpus=-1 must be 0 or more"),
        (["--queue", "a;b"], "queue='a;b' must consist of letters"),
        (["--time", "soon"], "time='soon' must be H:MM:SS"),
        (["--volume", "claim"], "volume='claim' must be CLAIM:/path"),
        (["--image", "vidvq:0.1 $(touch harm)"], "image='vidvq:0.1 $(touch harm)' must consist of letters"),
        (["--image", "-vidvq"], "image='-vidvq' must consist of letters"),
        (["--secret", "A=b"], "secret='A=b' must be the name of a secret"),
        (["--retries", "2"], "retries=2 needs --wait"),
        (["--retries", "-1", "--wait"], "-1 is not in the range"),
        (["--job", "/proc/nosuch/run"], "/proc/nosuch"),
        (["--job", "a\nb"], "contains a control character"),
        (["clip.fps=-1"], "clip.fps=-1"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_submitted(there, demo_videos, vidvq, options, said):
    ran = vidvq("submit", "shard", demo_videos / "train", "--out", "out", *SETTINGS, *options)
    assert ran.code in (1, 2)
    assert said in ran.error
    assert not (there / "runs").exists()


@pytest.mark.parametrize("image", ["vidvq:0.1", "Registry.org:5000/a_b/vidvq@sha256:" + 64 * "0", "vidvq"])
def test_names_of_images_are_accepted(image):
    assert Resources(image=image).image == image


@pytest.mark.parametrize("content", [None, "null", "[1]"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, vidvq, content):
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    for verb in ("status", "logs", "cancel"):
        ran = vidvq("submit", verb, tmp_path)
        assert ran.code == 2
        assert "is not a job directory" in ran.error


def test_a_job_is_named_after_its_content(tmp_path):
    job, other = job_of(tmp_path), job_of(tmp_path, gpus=1)
    record = json.loads(json.dumps(to_dict(job)))
    assert validate(Job, record) == job
    later = record | {"field": 1, "resources": record["resources"] | {"field": 1}}
    assert validate(Job, later) == job
    assert job.name != other.name
    with pytest.raises(ValueError, match="verb='decode' cannot be submitted"):
        Job("decode", (), {}, "", "local", Resources(), "/", "python")


def test_the_nodes_of_a_job_with_remote_output_share_its_job_directory(tmp_path):
    job = replace(job_of(tmp_path), out="s3://bucket/out")
    assert f"export SHARED={tmp_path / 'run'}" in list(preview(job, tmp_path / "run"))


def test_a_batch_that_the_processes_cannot_divide_is_refused(there, vidvq):
    command = ["submit", "train", "demo", "data.clips=c", "data.batch_size=4", "--backend", "slurm", "--nodes", 3]
    ran = vidvq(*command, "--gpus", 2, "--dry-run")
    assert ran.code == 2 and "batch_size=4" in ran.error


def test_training_data_that_does_not_exist_is_refused_where_the_job_reads_it(there, monkeypatch, vidvq):
    monkeypatch.setattr("vidvq.submit.slurm.Backend.check", lambda *job: None)
    monkeypatch.setattr("vidvq.submit.slurm._run", lambda *command: "7")
    monkeypatch.setattr("vidvq.submit.detached.DetachedBackend.submit", lambda *job: {})
    (there / "hosts").write_text("a slots=1\n")
    (there / "there").mkdir()
    train = ["submit", "train", "demo", "--out", "out", "data.clips=[there,s3://bucket/clips,nowhere]"]
    generate = ["submit", "generate", "train", "nowhere", "--out", "out"]
    for command, name in ((train, "data.clips"), (generate, "data.tokens")):
        for options in (["--backend", "local"], ["--backend", "slurm"]):
            ran = vidvq(*command, *options)
            assert ran.code == 2 and f"{name}={there / 'nowhere'} does not exist; set it to" in ran.error
            assert not (there / "runs").exists()
            ran = vidvq(*command, *options, "--dry-run")
            assert ran.code == 0 and f"{name}={there / 'nowhere'} does not exist on this machine" in ran.err
        # This machine need not have the paths of the hosts.
        ran = vidvq(*command, "--backend", "ssh", "--hostfile", "hosts", "--job", f"ssh {name}")
        assert ran.code == 0 and f"{name}={there / 'nowhere'} does not exist on this machine" in ran.err


@pytest.mark.parametrize("verb", ["train", "generate train"])
def test_training_starts_as_many_processes_as_gpus(tmp_path, verb):
    arguments = [str(tmp_path / "python"), str(tmp_path)]
    job = Job(verb, (), {}, str(tmp_path / "out"), "local", Resources(gpus=3), arguments[1], arguments[0])
    assert "export NPROC=3" in list(preview(job, tmp_path / "run"))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["train", "demo", "data.clips=data", "--out", "out"], "train {config}"),
        (["generate", "train", "data", "--out", "out"], "generate train --config {config}"),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        ["--backend", "local", "--gpus", "1"],
        ["--backend", "slurm", "--nodes", "2", "--gpus", "1"],
        ["--backend", "ssh", "--hostfile", "hosts"],
        ["--backend", "kubernetes", "--nodes", "2", "--image", "vidvq:0.1"],
    ],
    ids=lambda options: options[1],
)
def test_a_dry_run_of_training_shows_its_command_under_torchrun(there, vidvq, monkeypatch, command, expected, options):
    monkeypatch.setattr("vidvq.submit.slurm.shutil.which", lambda name: None if name == "sbatch" else name)
    (there / "hosts").write_text("a slots=1\nb slots=1\n")
    (there / "data").mkdir()
    ran = vidvq("submit", *command, "--job", "run", "--dry-run", *options)
    data = "data.clips" if "data.clips=data" in command else "data.tokens"
    unmounted = {f"{data}={there / 'data'}": "pods cannot read it", f"out={there / 'out'}": "it is lost with its pod"}
    warnings = "".join(
        f"warning: {setting} is in no --volume: {effect}, unless the cluster mounts a volume there\n"
        for setting, effect in unmounted.items()
    )
    assert (ran.code, ran.err) == (0, warnings if "kubernetes" in options else "")
    config, _, rest = ran.out.removeprefix(f"# ---- {there / 'run/config.yaml'}\n").partition("# ---- ")
    assert yaml.safe_load(config)["out"] == str(there / "out")
    if "kubernetes" in options:
        files, _, made = json.loads(rest.partition("\n")[2].partition("# ---- command")[0])["items"]
        assert yaml.safe_load(files["data"]["config.yaml"])["out"] == str(there / "out")
        (container,) = made["spec"]["template"]["spec"]["containers"]
        assert container["command"][2:] == expected.format(config="/etc/vidvq/config.yaml").split()
    else:
        line = f"set -- {expected.format(config=there / 'run/config.yaml')}"
        assert line in ran.out.splitlines()
        assert f"export SHARED={there / 'out'}" in ran.out.splitlines()
    if "ssh" in options:
        # All hosts of the file.
        assert "export NODES=2" in ran.out.splitlines()


# By default, tests/distributed/test_slurm.py trains a generator.
@pytest.mark.slow
def test_a_local_training_of_a_generator_is_cancelled_resumes_and_completes(there, tokens_dir, vidvq):
    command = ["submit", "generate", "train", tokens_dir, "--out", "out", "steps=100", *TINY_GENERATOR, "--job", "run"]
    assert vidvq(*command).code == 0
    wait_until(lambda: bool(list_steps(there / "out")) or has_ended(there / "run"), there / "run")
    assert vidvq("submit", "cancel", "run").code == 0
    assert wait(there / "run").state == "cancelled"
    saved = read_generator(there / "out").step
    assert f"step {saved} is saved" in read_log(there / "run")
    assert vidvq(*command).code == 0
    assert wait(there / "run").state == "done", read_log(there / "run")
    assert (saved < 100, read_generator(there / "out").step) == (True, 100)
    assert "resuming from" in read_log(there / "run")
    assert "was already submitted: done" in vidvq(*command).err
