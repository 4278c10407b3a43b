"""Each exception becomes one line and an exit code; a bug leaves a log file."""

import errno
import os
import pickle
import re
import tempfile
import threading
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from vidvq.cli.main import BUG, FAILED, INTERRUPTED, OK, TERMINATED, USAGE, cli
from vidvq.config import ConfigError
from vidvq.errors import JobStopped, JobTerminated, StoreError, UsageError, WorkerLost, is_gpu_full
from vidvq.runtime import Feeder
from vidvq.video import VideoError

OURS = [
    UsageError("size=3 must be even"),
    ConfigError("config has 1 wrong field"),
    JobStopped("PSNR fell"),
    WorkerLost("a worker died"),
    StoreError("the object store does not answer"),
    VideoError("decode_error", "torn"),
]


@pytest.fixture
def raising(monkeypatch, vidvq):
    """Run a command that raises an exception."""

    def ran(error: BaseException):
        @click.command()
        def fail() -> int:
            raise error

        monkeypatch.setitem(cli.commands, "fail", fail)
        return vidvq("fail")

    return ran


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The only folder where a log file may be written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


def _torch_error(function) -> Exception:
    try:
        function()
    except RuntimeError as error:
        return error
    raise AssertionError


class _NoCredentials(Exception):
    __module__ = "botocore.exceptions"


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OutOfMemoryError("allocation on device 0"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (_torch_error(lambda: torch.empty(1 << 60)), False),
        (MemoryError("CUDA out of memory"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_errors_of_a_full_gpu_are_known_by_type_or_message(error, full):
    assert is_gpu_full(error) == full


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("size=3 must be even;\ngive 4"), 2, "size=3 must be even; give 4"),
        (ConfigError("clip.fps=x is no number"), 2, "clip.fps=x is no number"),
        (VideoError("decode_error", "torn"), 2, "decode_error: torn"),
        (click.UsageError("No such option"), 2, "No such option"),
        (
            click.NoSuchOption("--clip.fps"),
            2,
            "No such option '--clip.fps'. Settings have no dashes: KEY=VALUE.",
        ),
        (
            click.NoSuchOption("--aut", possibilities=["--out"]),
            2,
            "No such option '--aut'. Did you mean '--out'?",
        ),
        (ModuleNotFoundError(name="skimage.metrics"), 2, "skimage is not installed; run `pip install 'vidvq[all]'`"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.tar"), 2, "No such file: a.tar"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "Not a directory: a/b"),
        (JobStopped("PSNR fell"), 1, "PSNR fell"),
        (JobTerminated("step 4 is saved"), 143, "step 4 is saved"),
        (SystemExit(15), 143, "terminated; run the same command again"),
        (WorkerLost("a worker died"), 1, "a worker died"),
        (StoreError("Ray failed"), 1, "Ray failed"),
        (_NoCredentials("no credentials"), 1, "the object store cannot be reached: no credentials"),
        (TimeoutError("no answer"), 1, "no answer"),
        (OSError(errno.ENOSPC, "No space left", "x"), 1, "No space left: x; fix this and run the same command again"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "Permission denied: x; fix this"),
        (MemoryError("3 GiB"), 1, "out of memory 3 GiB; use"),
        (OutOfMemoryError("CUDA"), 1, "out of memory CUDA; use"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), 1, "out of memory CUDA error: CUBLAS_STATUS"),
        (_torch_error(lambda: torch.empty(1 << 60)), 1, "out of memory [enforce fail"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again"),
    ],
)
def test_an_exception_becomes_a_line_and_an_exit_code(raising, temporary, error, code, line):
    ran = raising(error)
    assert ran.code == code
    assert ran.error.startswith(f"vidvq: {line}")
    assert not list(temporary.iterdir())


def test_a_path_that_may_not_be_read_is_the_users_mistake_and_named_from_the_outside(raising, monkeypatch, tmp_path):
    (tmp_path / "secret/clips").mkdir(parents=True)
    monkeypatch.setattr("os.access", lambda path, mode: "secret" not in str(path))
    ran = raising(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "secret/clips/plan.json")))
    assert ran.code == 2
    said = f"vidvq: {tmp_path}/secret cannot be read (Permission denied); give this user access to it, or another path"
    assert ran.error == said


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SystemExit(15), "terminated"),
        (KeyboardInterrupt(), "interrupted"),
        (OSError(5, "Input/output error", "x"), "x"),
    ],
)
def test_a_command_that_only_reads_has_nothing_to_resume(monkeypatch, vidvq, error, line):
    @click.command()
    def fail() -> int:
        raise error

    for name, resumes in (("view", False), ("verify", False), ("shard", True)):
        monkeypatch.setitem(cli.commands, name, fail)
        ran = vidvq(name)
        assert line in ran.error and ("run the same command again to resume" in ran.error) == resumes


@pytest.mark.parametrize("error", [SystemExit(1), StoreError("Ray failed"), RuntimeError("a bug")])
def test_whatever_ends_a_terminated_command_gives_143(raising, temporary, monkeypatch, error):
    terminated = threading.Event()
    terminated.set()
    monkeypatch.setattr(import_module("vidvq.cli.main"), "_terminated", terminated)
    ran = raising(error)
    assert (ran.code, ran.error) == (143, "vidvq: terminated; run the same command again to resume")
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no\nway"),
        KeyError("x"),
        RuntimeError(),
        EOFError("torn"),
        AssertionError(),
        ModuleNotFoundError("No module named 'vidvq.gone'", name="vidvq.gone"),
    ],
)
def test_any_other_exception_is_a_bug_with_a_log_file(raising, temporary, error):
    ran = raising(error)
    assert ran.code == 70
    assert ran.error.startswith(f"vidvq: internal error: {type(error).__name__}: ")
    assert "please report it" in ran.error
    (log,) = temporary.iterdir()
    assert str(log) in ran.error
    text = log.read_text()
    assert "arguments: ['fail']" in text and "Traceback" in text and "raise error" in text


def test_a_stray_error_of_numpy_is_not_the_users_mistake(monkeypatch, temporary, vidvq):
    @click.command()
    def fail() -> int:
        np.zeros(3).reshape(2)
        return 0

    monkeypatch.setitem(cli.commands, "fail", fail)
    ran = vidvq("fail")
    assert ran.code == 70
    assert "ValueError: cannot reshape array of size 3" in ran.error
    (log,) = temporary.iterdir()
    assert "np.zeros(3).reshape(2)" in log.read_text()


def test_a_bug_where_no_file_can_be_written_shows_its_traceback(raising, monkeypatch):
    def refuse(*_: object, **__: object):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    ran = raising(ValueError("no"))
    assert ran.code == 70
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].endswith("with the traceback above")


@pytest.mark.parametrize("error", [UsageError("a mistake"), ValueError("a bug")])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(raising, temporary, monkeypatch, error):
    monkeypatch.setenv("VIDVQ_DEBUG", "1")
    ran = raising(error)
    assert ran.code == (2 if isinstance(error, UsageError) else 70)
    assert "Traceback" in ran.err and ran.err.splitlines()[-1].startswith("vidvq: ")


@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
def test_an_exception_survives_a_pickle(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.args) == (str(error), error.args)


def raise_it(error: Exception):
    raise error
    yield


@pytest.mark.parametrize("error", [*OURS, EOFError("torn")], ids=lambda error: type(error).__name__)
def test_an_exception_keeps_its_type_out_of_a_process(error):
    feeder = Feeder()
    with pytest.raises(type(error), match=re.escape(str(error))) as caught:
        list(feeder.feed(raise_it, error))
    assert type(caught.value) is type(error)
    # Its traceback was in that process.
    assert "in raise_it" in "".join(caught.value.__notes__)


def test_the_exit_codes_are_documented():
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for code in (OK, FAILED, USAGE, BUG, INTERRUPTED, TERMINATED):
        assert re.search(rf"^\| {code} ", page, re.MULTILINE)
    assert BUG == os.EX_SOFTWARE
