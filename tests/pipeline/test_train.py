"""Training as a user runs it: artifacts, resume after a kill or a SIGTERM, refusals, several processes."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.warm import COMMAND
from vidvq.cli.main import run
from vidvq.formats.checkpoint import list_steps, read_checkpoint

SETTINGS = [
    "steps=10",
    "checkpoint_every=4",
    "log_every=1",
    "data.batch_size=2",
    "data.crop=32",
    "data.num_frames=5",
    "model.encoder={channels: [16, 24], blocks: [1, 1]}",
    "model.decoder={channels: [16, 24], blocks: [1, 1]}",
    "model.quantizer.spatial={kind: vq, size: 32, warmup: 2}",
    "model.quantizer.temporal={kind: vq, size: 32, warmup: 6}",
    "discriminator={channels: 8, layers: 1}",
    "loss.adversarial_start=5",
    "loss.discriminator_warmup=2",
]


def command(clips_dir: Path, out: Path, *more: str) -> list[str]:
    return ["train", "demo", f"data.clips={clips_dir}", f"out={out}", *SETTINGS, *more]


@pytest.fixture(scope="module")
def train(warm) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda clips_dir, out, *more: warm.run(*command(clips_dir, out, *more))


def told(out: Path) -> list[dict]:
    timings = {"step_s", "data_wait", "frames_per_s", "tflops"}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timings} for line in lines]


@pytest.fixture(scope="module")
def whole(train, clips_dir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    done = train(clips_dir, out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_leaves_checkpoints_metrics_and_events(whole):
    assert [folder.name for folder in list_steps(whole)] == ["step-00000004", "step-00000008", "step-00000010"]
    assert read_checkpoint(whole).config["step"] == 10
    lines = told(whole)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert {"loss", "l1", "psnr", "usage_spatial", "perplexity_temporal"} <= lines[0].keys()
    assert "discriminator" not in lines[2]
    assert "discriminator" in lines[3]
    assert "adversarial" in lines[5]
    assert list((whole / "tensorboard").glob("events.*"))
    assert (whole / "config.yaml").is_file()


def test_a_run_describes_itself_first(train, clips_dir, tmp_path):
    done = train(clips_dir, tmp_path / "run", "steps=1")
    assert re.match(
        r"0\.\d M trainable parameters, fp32, on 1 x CPU; 2 of \d+ clips per step, 5 frames of 32x32\n", done.stderr
    )


def stop_at(warm, clips_dir: Path, out: Path, folder: str, number: signal.Signals) -> str:
    # Shells start background processes with SIGINT ignored, which children inherit.
    handled = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{COMMAND}"
    job = warm.start(*command(clips_dir, out), code=handled, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not (out / "checkpoints" / folder / "fingerprint").exists():
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # As a terminal does: the processes that read data receive Ctrl-C too.
        (os.killpg if number == signal.SIGINT else os.kill)(job.pid, number)
        _, stderr = job.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    return stderr


def test_a_killed_run_goes_on_to_the_same_weights(train, warm, clips_dir, whole, tmp_path):
    out = tmp_path / "run"
    stop_at(warm, clips_dir, out, "step-00000004", signal.SIGKILL)
    assert not (out / "checkpoints/step-00000010").exists()
    done = train(clips_dir, out)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    assert told(out) == told(whole)
    assert read_checkpoint(out).fingerprints == read_checkpoint(whole).fingerprints


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGTERM, "is saved, run the same command to resume"),
        (signal.SIGINT, "interrupted; run the same command again to resume"),
    ],
)
def test_a_stopped_run_saves_first(train, warm, clips_dir, whole, tmp_path, number, message):
    out = tmp_path / "run"
    stderr = stop_at(warm, clips_dir, out, "step-00000004", number)
    assert message in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert stderr.count("finishing this step") == (number == signal.SIGINT)
    # The step after it may have been the last one before.
    assert list_steps(out)[-1].name != "step-00000004"
    done = train(clips_dir, out)
    assert done.returncode == 0, done.stderr
    assert told(out) == told(whole)
    assert read_checkpoint(out).fingerprints == read_checkpoint(whole).fingerprints


def test_a_killed_process_that_reads_data_ends_the_run_with_a_remedy(warm, clips_dir, tmp_path):
    out = tmp_path / "run"
    job = warm.start(*command(clips_dir, out, "steps=100000"), start_new_session=True)
    try:
        while not (out / "checkpoints/step-00000004/fingerprint").exists():
            assert job.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        reader = next(pid for pid in children if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(int(reader), signal.SIGKILL)
        _, stderr = job.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 1, stderr
    last = stderr.splitlines()[-1]
    # It may have been about to hand a batch over, whose reader cannot know of the signal.
    assert re.match(r"vidvq: a process that reads the data (was killed \(Killed\)|exited), usually for want of", last)
    assert "set data.batch_size or data.workers lower" in last and "Traceback" not in stderr


def test_of_two_runs_at_once_in_one_directory_the_second_says_who_has_it(train, warm, clips_dir, whole, tmp_path):
    out = tmp_path / "run"
    first = warm.start(*command(clips_dir, out))
    lock = out / "lock.json"
    while not (lock.exists() and lock.read_bytes()):
        assert first.poll() is None
        time.sleep(0.02)
    # So that it cannot finish before the second one starts.
    first.send_signal(signal.SIGSTOP)
    try:
        second = train(clips_dir, out)
    finally:
        first.send_signal(signal.SIGCONT)
    _, stderr = first.communicate(timeout=300)
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].startswith(f"vidvq: {out} is in use by process {first.pid} on ")
    assert "Traceback" not in second.stderr
    assert first.returncode == 0, stderr
    assert told(out) == told(whole)


def test_a_finished_run_is_left_alone(train, clips_dir, whole):
    before = read_checkpoint(whole).fingerprints
    done = train(clips_dir, whole)
    assert done.returncode == 0
    assert "is already complete" in done.stderr
    assert read_checkpoint(whole).fingerprints == before


def test_another_config_in_the_same_place_is_refused(train, clips_dir, whole):
    done = train(clips_dir, whole, "generator.lr=5e-4")
    assert done.returncode == 2
    assert "generator.lr was 0.00" in done.stderr
    assert "now 0.0005" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.clips=/nowhere", "vidvq: /nowhere does not exist"),
        ("data.crop=64", "vidvq: data.clips has no usable clip"),
        ("steps=0", "vidvq: .*1 wrong field: steps=0"),
    ],
)
def test_a_mistake_is_one_line(train, clips_dir, tmp_path, change, message):
    done = train(clips_dir, tmp_path / "run", change)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert re.match(message, last), last


def test_an_unknown_config_is_one_line(capsys):
    assert run(["train", "nosuch"]) == 2
    assert capsys.readouterr().err.startswith("vidvq: config nosuch is not a file")
