"""Commands in forks of a process that has imported the libraries: a test of a whole command pays for its work alone.

A fork has its own process id, signals, environment, working folder, stdout and stderr, as a started interpreter would.
What an interpreter does before `main()`, and what an environment variable changes during an import, need a real one.
Run as a script, this file is the process that forks.
"""

import atexit
import fcntl
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

# Bytes before a request that say its length; descriptors with it; a number above those that a test's processes use.
_LENGTH, _MAX_DESCRIPTORS, _ABOVE = 4, 16, 512
COMMAND = "from vidvq.cli import main\nmain()"


class Fork:
    """A running command."""

    def __init__(self, control: socket.socket, files: list[IO[bytes]]) -> None:
        self._control, self._files = control, files
        self.pid = int.from_bytes(control.recv(4), "little")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, that of a signal negative; None while it runs."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        if self._await(timeout) is None:
            raise subprocess.TimeoutExpired("warm", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return stdout and stderr."""
        self.wait(timeout)
        for file in self._files:
            file.seek(0)
        out, err = (file.read().decode() for file in self._files)
        return out, err

    def _await(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._control], [], [], timeout)[0]:
            status = self._control.recv(4)
            assert status, "the process that forks is gone"
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(status, "little"))
            self._control.close()
        return self.returncode


class WarmInterpreter:
    """Starts forks of one process; see :func:`warm_interpreter`."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests

    def start(
        self,
        *arguments: object,
        code: str = COMMAND,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> Fork:
        """Run ``code`` with these arguments, like ``python -c CODE ARGUMENTS``; by default, ``vidvq ARGUMENTS``."""
        files = [tempfile.TemporaryFile() for _ in ("stdout", "stderr")]
        standard = {1: files[0].fileno(), 2: files[1].fileno()}
        return Fork(self._fork(code, arguments, env, standard, start_new_session), files)

    def run(self, *arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run it to the end; the options are those of :meth:`start`."""
        fork = self.start(*arguments, **options)
        try:
            out, err = fork.communicate(timeout)
        except subprocess.TimeoutExpired:
            fork.kill()
            raise
        return subprocess.CompletedProcess(["vidvq", *map(str, arguments)], fork.wait(), out, err)

    def popen(
        self, command: Sequence[str], *, env: Mapping[str, str], pass_fds: Iterable[int] = (), **streams: Any
    ) -> Fork:
        """In place of ``subprocess.Popen``, for ``python -c CODE`` with its streams in ``/dev/null``."""
        _, option, code = command
        assert option == "-c" and set(streams.values()) == {subprocess.DEVNULL}
        with open(os.devnull, "r+b") as null:  # noqa: PTH123
            passed = dict.fromkeys((0, 1, 2), null.fileno()) | {number: number for number in pass_fds}
            return Fork(self._fork(code, (), env, passed, False), [])

    def _fork(
        self,
        code: str,
        arguments: Iterable[object],
        env: Mapping[str, str] | None,
        passed: dict[int, int],
        start_new_session: bool,
    ) -> socket.socket:
        """Request a fork with the descriptors ``passed``, by their numbers there; returns its control socket."""
        request = {
            "arguments": [str(argument) for argument in arguments],
            "code": code,
            "environment": dict(os.environ if env is None else env),
            "folder": str(Path.cwd()),
            "path": sys.path,
            "session": start_new_session,
            "numbers": list(passed),
        }
        data = json.dumps(request).encode()
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = [theirs.fileno(), *passed.values()]
            socket.send_fds(self._requests, [len(data).to_bytes(_LENGTH, "little")], descriptors)
            self._requests.sendall(data)
        return ours


@contextmanager
def warm_interpreter(*modules: str) -> Iterator[WarmInterpreter]:
    """Start a process that has imported these modules, and end it afterwards."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # One thread: others would not live on in a fork.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, __file__, str(theirs.fileno()), *modules]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        yield WarmInterpreter(ours)
    process.wait()


def serve(requests: socket.socket) -> None:
    """Fork for each request, until the other end is closed."""
    while True:
        length, descriptors, _, _ = socket.recv_fds(requests, _LENGTH, _MAX_DESCRIPTORS)
        if not length:
            return
        data = requests.recv(int.from_bytes(length, "little"), socket.MSG_WAITALL)
        if not os.fork():
            requests.close()
            _watch(json.loads(data), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _watch(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Fork again, and report the process id and the status of that process."""
    control = descriptors.pop(0)
    pid = os.fork()
    if not pid:
        os.close(control)
        _run(request, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    os.write(control, pid.to_bytes(4, "little"))
    status = os.waitpid(pid, 0)[1]
    os.write(control, status.to_bytes(4, "little"))
    os._exit(0)


def _run(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    code = 1
    try:
        if request["session"]:
            os.setsid()
        # First to numbers that are above all wanted ones.
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _ABOVE) for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        for descriptor, number in zip(high, request["numbers"], strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.path[:] = request["path"]
        sys.argv[:] = ["-c", *request["arguments"]]
        tempfile.tempdir = None
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(request["code"], "<string>", "exec"), main.__dict__)
        code = 0
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
    finally:
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    serve(socket.socket(fileno=int(sys.argv[1])))
