"""The commands and programs of the README's start, the tutorial and the Python page, run in order as a reader would."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What is added to a command so that it ends, and ends soon.
ADDED = {"train": ["steps=20"], "view": ["--out", "runs/view.html"]}
# Objects that a program of the Python page is about.
GIVEN = "import torch; video = torch.zeros(1, 3, 5, 64, 64)\n"


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and content."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def run(tmp_path):
    """Run a program in a folder with a copy of the checkout's videos; returns its stderr."""
    videos = tmp_path / "vidvq/demo/videos"
    videos.parent.mkdir(parents=True)
    videos.symlink_to(ROOT / "vidvq/demo/videos")

    def run_python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stderr

    return run_python


@pytest.mark.slow
def test_the_pages_run(run):
    shown = ""
    commands = 0
    readme = blocks("README.md")[0]
    for language, block in [readme, *blocks("docs/tutorial.md")]:
        if language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["vidvq"]:
                    commands += 1
                    shown += run("-m", *words, *ADDED.get(words[1], []))
        elif language == "python":
            run("-c", block)
        else:
            assert block in shown
    assert commands > 15
    for language, block in blocks("docs/python.md"):
        if language == "python" and '"cuda"' not in block:
            run("-c", GIVEN + block)
