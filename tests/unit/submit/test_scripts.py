"""Every script that ships or is generated passes shellcheck, whatever the names in it are; the Dockerfile hadolint."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vidvq.cli import ray_job
from vidvq.submit import VERBS, Job, Resources
from vidvq.submit.backend import get_backend
from vidvq.submit.job_directory import JobDirectory

ROOT = Path(__file__).parents[3]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
NAMES = ["plain", "a b'c\"d$(touch harm)`touch harm`;touch harm\\n*", "-rf", "#SBATCH --wrap=x %j über"]
RESOURCES = {
    "local": Resources(gpus=2),
    "slurm": Resources(nodes=2, gpus=8, cpus=16, time="1-00:30:00", queue="long"),
    "slurm-array": Resources(array=8, cpus=16),
    "ssh": Resources(nodes=2, hostfile="/h/host's $(touch harm)"),
    "kubernetes": Resources(nodes=2, gpus=8, image="vidvq:0.1", volumes=("data:/data",)),
}


def check(paths: list[Path]) -> str:
    return subprocess.run([SHELLCHECK, *paths], capture_output=True, text=True, check=False).stdout


def test_shipped_scripts_are_clean():
    assert check([*ROOT.glob("launch/*.sh"), ROOT / ".ci/run"]) == ""


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (["base", "out=a b"], ["train", "base", "out=a b"]),
        (["train", "base"], ["train", "base"]),
        (["generate train", "x"], ["train", "generate train", "x"]),
        (["generate", "train", "t o"], ["generate", "train", "t o"]),
    ],
)
def test_torchrun_takes_both_trainings(tmp_path, given, command):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "NPROC": "1"}
    script = ["bash", ROOT / "launch/torchrun.sh", *given]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    found = done.stdout.splitlines()
    assert found[found.index("vidvq") + 1 :] == command


@pytest.mark.parametrize(
    ("script", "variables", "said"),
    [
        ("node.sh", {"HEAD": "node0"}, "HEAD=node0 must be HOST:PORT"),
        ("node.sh", {"HEAD": "node0:"}, "HEAD=node0: must be HOST:PORT"),
        ("ssh.sh", {"HOSTFILE": "/missing"}, "hostfile /missing cannot be read"),
    ],
)
def test_a_mistake_in_a_variable_of_a_script_is_no_traceback(tmp_path, script, variables, said):
    environment = os.environ | variables | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = ["bash", ROOT / "launch" / script, "train", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "said"),
    [("ssh.sh", "HOSTFILE: set it to"), ("slurm.sh", "start it with sbatch"), ("node.sh", "give the command")],
)
def test_a_script_names_what_it_lacks(script, said):
    environment = {"PATH": os.environ["PATH"]}
    ran = subprocess.run(
        ["bash", ROOT / "launch" / script], env=environment, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, said in ran.stderr, ran.stderr.count("\n")) == (1, True, 1)


def test_a_ray_job_without_a_cluster_is_no_traceback(tmp_path, monkeypatch, capsys):
    def check_cluster(shared):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to.")

    monkeypatch.setattr(ray_job, "check_cluster", check_cluster)
    monkeypatch.setenv("SHARED", str(tmp_path))
    assert ray_job.main() == 1
    problem = "preflight: Could not find any running Ray instance. Please specify the one to connect to.\n"
    assert capsys.readouterr().err == problem


def test_the_dockerfile_is_clean():
    hadolint = SHELLCHECK.with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "docker/Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("backend", RESOURCES)
def test_generated_scripts_are_clean(tmp_path, backend, verb, name):
    arguments = (f"/v/{name}", f"--out=/{name}")
    asked = replace(RESOURCES[backend], array=None) if "train" in verb else RESOURCES[backend]
    job = Job(verb, arguments, {}, f"/o/{name}", backend.partition("-")[0], asked, f"/f/{name}", f"/p/{name}")
    run = JobDirectory(Path("/runs", name))
    for file, text in get_backend(job.backend).files(job, run).items():
        if file.endswith(".sh"):
            path = tmp_path / file
            path.write_text(text)
            assert check([path]) == ""
            subprocess.run(["bash", "-n", path], check=True)
