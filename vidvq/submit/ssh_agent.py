"""Runs a command on one host for :mod:`vidvq.submit.ssh_launcher`, and ends it when the launcher is gone.

The first line on stdin is the request (JSON). Later lines are ``heartbeat``, or ``stop``, which ends the command with
time to save. End of file, or a minute without a line, ends the command at once.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

_SILENCE_LIMIT_S = 60
_SAVE_LIMIT_S = 600
_KILL_LIMIT_S = 10


def main() -> int:
    """Run the requested command; returns its exit code (128 + N for signal N)."""
    request = json.loads(sys.stdin.buffer.readline())
    process = subprocess.Popen(
        request["command"],
        cwd=request["folder"],
        env=os.environ | request["environment"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    last_line, deadline = time.monotonic(), float("inf")
    while process.poll() is None:
        now = time.monotonic()
        try:
            line = lines.get(timeout=0.1)
            last_line = now
        except queue.Empty:
            line = b"" if now - last_line > _SILENCE_LIMIT_S else None
        if line == b"stop\n":
            _signal(process.pid, signal.SIGTERM)
            deadline = now + _SAVE_LIMIT_S
        elif line == b"" and deadline > now + _KILL_LIMIT_S:
            _signal(process.pid, signal.SIGTERM)
            deadline = now + _KILL_LIMIT_S
        if now > deadline:
            _signal(process.pid, signal.SIGKILL)
    # Processes that the command left running.
    _signal(process.pid, signal.SIGTERM)
    code = process.returncode
    return 128 - code if code < 0 else code


def _read_lines(lines: "queue.Queue[bytes]") -> None:
    while line := sys.stdin.buffer.readline():
        lines.put(line)
    lines.put(b"")


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    # The launcher may be gone while the command still has to be ended.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    code = main()
    os._exit(code)
