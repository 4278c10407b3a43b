"""The command group, and the conversion of exceptions to an error line and an exit code.

====  ================================================================================================
code  meaning
====  ================================================================================================
0     Success.
1     More items failed than max_failed, a quality gate stopped the job, a worker, disk or store failed, or verify
      found problems.
2     Usage error: a wrong setting, a missing or damaged input, a library that is not installed.
70    A bug in vidvq. The traceback is in a log file.
130   Interrupted.
143   Terminated by SIGTERM.
====  ================================================================================================
"""

import atexit
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from vidvq import __version__, storage
from vidvq.cli.config import show_config
from vidvq.cli.convert import convert
from vidvq.cli.decode import decode
from vidvq.cli.demo import demo
from vidvq.cli.evaluate import evaluate
from vidvq.cli.export import export
from vidvq.cli.generate import generate
from vidvq.cli.inspect import inspect
from vidvq.cli.installed import CommandGroup
from vidvq.cli.map import map_clips
from vidvq.cli.shard import shard
from vidvq.cli.submit import submit
from vidvq.cli.tokenize import tokenize
from vidvq.cli.train import train
from vidvq.cli.verify import verify
from vidvq.cli.view import view
from vidvq.errors import JobStopped, JobTerminated, StoreError, UsageError, WorkerLost, is_out_of_memory
from vidvq.redact import printable, redact
from vidvq.video import VideoError

# In the order of the help.
COMMANDS = (
    demo,
    shard,
    map_clips,
    train,
    tokenize,
    decode,
    export,
    generate,
    view,
    evaluate,
    inspect,
    verify,
    convert,
    submit,
    show_config,
)

# Commands without work to resume.
_READERS = frozenset({"view", "inspect", "verify", "convert", "config"})
OK, FAILED, USAGE, BUG, INTERRUPTED, TERMINATED = 0, 1, 2, 70, 130, 143
# Set on SIGTERM. Libraries replace the exception that ends the command: Ray's calls raise SystemExit(1).
_terminated = threading.Event()


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vidvq")
def cli() -> None:
    """Turn a corpus of video into discrete tokens, and tokens back into video.

    \b
    videos --shard--> clip shards --train--> checkpoint
    clip shards, videos --tokenize--> token shards --decode---> frames
                                                   --export---> training sequences
                                                   --generate-> new clips

    Settings are key.sub=value after the arguments and override a YAML file. `vidvq config STAGE` prints all of them.
    VIDVQ_DEBUG=1 shows the traceback of an error. The manual, docs/ in the repository, has a page for each command.
    """


for command in COMMANDS:
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and exit."""
    if isinstance(sys.stdout, TextIOWrapper):
        # File names may be in any script; characters that stdout cannot encode are escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    _exit(run(sys.argv[1:]))


def _exit(code: int) -> NoReturn:
    """End this process as :mod:`multiprocessing` ends its children: the interpreter is not finalized.

    Finalization ends a daemon thread that returns from a native library by unwinding its stack, and C++ then aborts the
    process ("terminate called without an active exception", code 134 instead of ``code``).
    """
    # The command is over: there is nothing left to stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Join threads, run what is registered for the exit (which ends child processes), and flush.
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        # A pipe whose reader has closed it needs no output.
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind the stack, so that temporary files are deleted and child processes end."""
    # A second signal must not end the cleanup.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _terminated.set()
    sys.exit(number)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        _refuse_empty(arguments)
        with storage.store_errors():
            return cli.main(arguments, prog_name="vidvq", standalone_mode=False) or OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return OK
    except (SystemExit, Exception) as error:
        if _terminated.is_set() or (isinstance(error, SystemExit) and error.code == signal.SIGTERM):
            click.echo("; ".join(["vidvq: terminated", *_resume(arguments)]), err=True)
            return TERMINATED
        if isinstance(error, SystemExit):
            raise
        code, message = _describe(error, arguments)
        if os.environ.get("VIDVQ_DEBUG"):
            traceback.print_exc()
        click.echo(f"vidvq: {printable(redact(' '.join(message.split())))}", err=True)
        return code


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse an empty argument: an unset variable of a shell. As a path it would be the current folder."""
    for before, argument in pairwise(["vidvq", *arguments]):
        if not argument or re.fullmatch(r"--[\w-]+=", argument):
            raise UsageError(f"the argument after {argument or before} is empty; is a variable of the shell unset?")


def _describe(error: Exception, arguments: list[str]) -> tuple[int, str]:
    """Exit code and message of an exception."""
    if isinstance(error, click.Abort) and isinstance(error.__cause__, EOFError):
        # click takes every EOFError for one of the keyboard; here a truncated file raised it.
        error = error.__cause__
    match error:
        case click.NoSuchOption(possibilities=None | []):
            return USAGE, f"{error.format_message()} Settings have no dashes: KEY=VALUE."
        case click.MissingParameter(ctx=click.Context(command_path=command)):
            return USAGE, f"{error.format_message()} See `{command} --help`."
        case click.ClickException():
            return USAGE, error.format_message()
        case click.Abort():
            return INTERRUPTED, "; ".join(["interrupted", *_resume(arguments)])
        case UsageError() | VideoError():
            return USAGE, str(error)
        case JobTerminated():
            return TERMINATED, str(error)
        case JobStopped() | WorkerLost() | StoreError():
            return FAILED, str(error)
        case ModuleNotFoundError(name=str(name)) if not name.startswith("vidvq"):
            return USAGE, f"{name.partition('.')[0]} is not installed; run `pip install 'vidvq[all]'`"
        case FileNotFoundError() | NotADirectoryError() | IsADirectoryError() if error.filename:
            return USAGE, f"{error.strerror}: {error.filename}"
        case OSError(errno=None):
            return FAILED, str(error)
        case PermissionError(filename=str(name)) if blocked := _unreadable(Path(name)):
            return USAGE, f"{blocked} cannot be read ({error.strerror}); give this user access to it, or another path"
        case OSError():
            what = f"{error.strerror}: {error.filename}" if error.filename else f"{error.strerror}"
            return FAILED, "; ".join([what, *(f"fix this and {advice}" for advice in _resume(arguments))])
        case _ if is_out_of_memory(error):
            return FAILED, f"out of memory {error}".strip() + "; use smaller clips, shards or batches, or fewer workers"
    return BUG, f"internal error: {type(error).__name__}: {_first_line(error)}; {_write_log(error, arguments)}"


def _resume(arguments: list[str]) -> list[str]:
    """Advice on resuming, if the command is a job."""
    return [] if _READERS.intersection(arguments[:1]) else ["run the same command again to resume"]


def _unreadable(path: Path) -> Path | None:
    """The outermost part of a path that exists and that this user may not read or enter; None if there is none."""
    parts = (part for part in reversed([path, *path.parents]) if os.path.lexists(part))
    return next((part for part in parts if not os.access(part, os.R_OK | (os.X_OK if part.is_dir() else 0))), None)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


def _write_log(error: Exception, arguments: list[str]) -> str:
    """Write the traceback to a file and return where it is and what to do with it."""
    text = "".join(traceback.format_exception(error))
    try:
        # The first writable folder of $TMPDIR, /tmp, /var/tmp, /usr/tmp and the current one.
        handle, path = tempfile.mkstemp(prefix="vidvq-error-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"vidvq {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
            file.write(f"arguments: {arguments}\n{text}")
    except OSError:
        click.echo(text, err=True)
        return "please report it to the issue tracker of vidvq, with the traceback above"
    return f"the traceback is in {path}; please report it to the issue tracker of vidvq, with that file"
