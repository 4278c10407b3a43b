"""What each process of a small local job imports: a start is fast where little is loaded. Counted, not timed."""

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

# Found by every Python process first; notes each module that it looks for.
_HOOK = """
import os, sys
_log = os.open(os.path.join({folder!r}, str(os.getpid())), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(_log, (" ".join(sys.orig_argv) + chr(10)).encode())
sys.addaudithook(lambda event, args: os.write(_log, (args[0] + chr(10)).encode()) if event == "import" else None)
"""
HEAVY = {"ray", "deepspeed", "transformers", "diffusers", "scipy", "skimage", "matplotlib", "tensorboard"}


@dataclass(frozen=True)
class Process:
    """A process of a job: its command line, and the modules that it imported."""

    command: str
    modules: frozenset[str]

    def loads(self, *names: str) -> set[str]:
        """Those of some packages that it imported."""
        return {module for module in self.modules if module in names}


def processes_of(folder: Path, *command: object) -> tuple[Process, list[Process]]:
    """Run `vidvq`; returns its process, and those that it started for calls that may crash."""
    log = folder / "log"
    log.mkdir()
    (folder / "sitecustomize.py").write_text(_HOOK.format(folder=str(log)))
    path = os.pathsep.join([str(folder), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "vidvq", *map(str, command)]
    subprocess.run(line, env=environment, capture_output=True, check=True, timeout=300)
    processes = []
    for file in sorted(log.iterdir()):
        first, *modules = file.read_text().splitlines()
        processes.append(Process(first, frozenset(modules)))
    (driver,) = [process for process in processes if "-m vidvq" in process.command]
    return driver, [process for process in processes if "vidvq.runtime.feeder" in process.command]


def test_help_loads_no_library_of_a_stage(tmp_path):
    driver, children = processes_of(tmp_path, "--help")
    assert not driver.loads("torch", "av", "pyarrow", "PIL", *HEAVY)
    assert len(driver.modules) < 450
    assert not children


def test_a_small_shard_job_loads_neither_ray_nor_torch(tmp_path, make_video, tiny_settings):
    out, video = tmp_path / "out", make_video(tmp_path / "a.mp4")
    driver, children = processes_of(tmp_path, "shard", video, "--out", out, *tiny_settings, "runtime.workers=1")
    assert (out / "summary.json").is_file()
    assert not driver.loads("torch", *HEAVY)
    assert len(driver.modules) < 750
    # One process probes and cuts.
    (child,) = children
    assert child.loads("av") and not child.loads("torch", *HEAVY)
    assert len(child.modules) < 620


def test_a_small_tokenize_job_loads_torch_where_it_encodes_alone(tmp_path, make_video, checkpoint_dir):
    out, video = tmp_path / "out", make_video(tmp_path / "a.mp4")
    settings = ["gop_frames=5", "video.short_side=32", "video.multiple=8", "runtime.workers=1"]
    where = ["--checkpoint", checkpoint_dir, "--out", out]
    driver, children = processes_of(tmp_path, "tokenize", video, *where, *settings)
    assert (out / "summary.json").is_file()
    lazy = {"torch._dynamo", "torch._inductor", "torchvision", "sympy"}
    assert len(driver.modules) < 1700
    assert driver.loads("torch") and not driver.loads(*lazy, *HEAVY)
    # One process probes, decodes for the encoder, and decodes for the contact sheet.
    (child,) = children
    assert child.loads("av") and not child.loads("torch", *HEAVY)
    assert len(child.modules) < 620


EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Packages whose modules have other names.
MODULES = {
    "pillow": "PIL",
    "scikit-image": "skimage",
    "scenedetect-headless": "scenedetect",
    "universal-pathlib": "upath",
    "huggingface-hub": "huggingface_hub",
    "stlpips-pytorch": "stlpips_pytorch",
}


def modules_of(*extras: str) -> set[str]:
    """Modules of the packages that extras install."""
    found: set[str] = set()
    for needed in (each for extra in extras for each in EXTRAS[extra]):
        if inner := re.fullmatch(r"vidvq\[(.*)\]", needed):
            found |= modules_of(*inner[1].split(","))
        else:
            name = re.match(r"[\w-]+", needed)[0]
            found.add(MODULES.get(name, name))
    return found


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        (None, "verify {tokens}"),
        (None, "export {tokens} --to parquet --out {out}"),
        ("tokenize", "tokenize {clips} --checkpoint {checkpoint} --out {out} runtime.workers=0"),
        pytest.param("shard", "shard {video} --out {out} clip.short_side=32 runtime.workers=0", marks=pytest.mark.slow),
        pytest.param("decode", "decode {tokens} --checkpoint {checkpoint} --out {out}", marks=pytest.mark.slow),
        pytest.param("view", "view {tokens} --checkpoint {checkpoint} --out {out} --first 1", marks=pytest.mark.slow),
        pytest.param("evaluate", "evaluate {clips} --checkpoint {checkpoint} --report {out}", marks=pytest.mark.slow),
    ],
)
def test_a_command_needs_no_library_outside_its_extra(
    tmp_path, demo_videos, clips_dir, tokens_dir, checkpoint_dir, extra, command
):
    missing = modules_of("all", "interop") - (modules_of(extra) if extra else set())
    assert "matplotlib" in missing
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({missing!r}))")
    values = {"clips": clips_dir, "tokens": tokens_dir, "checkpoint": checkpoint_dir, "out": tmp_path / "out"}
    line = command.format(video=demo_videos / "heldout/cup.webm", **values)
    path = os.pathsep.join([str(tmp_path), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "vidvq", *line.split()], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# Libraries of the extras; importing one of them fails as if it were not installed.
_CORE_ALONE = """
import sys
sys.modules |= dict.fromkeys(("av", "decord", "deepspeed", "jinja2", "PIL", "ray", "torch", "webdataset"))
from vidvq.cli import main
main()
"""


@pytest.mark.parametrize("artifact", ["clips_dir", "tokens_dir", "checkpoint_dir"])
def test_the_core_inspects_and_verifies_every_artifact(artifact, request):
    path = request.getfixturevalue(artifact)
    for command in ("inspect", "verify"):
        line = [sys.executable, "-c", _CORE_ALONE, command, str(path)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
