"""The far end of :mod:`vidvq.submit.fanout`, on each host: runs a command, and ends it when whoever asked is gone.

The first line on stdin says what to run. Then come ``beat``, or ``stop``: ask the command to end and give it time. The
end of stdin, or a minute's silence, ends it at once. It is known by its process group, never by a name.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

_SILENCE_S = 60
_SAVING_S = 600
_ENDING_S = 10


def main() -> int:
    """The command."""
    errand = json.loads(sys.stdin.buffer.readline())
    process = subprocess.Popen(
        errand["command"],
        cwd=errand["folder"],
        env=os.environ | errand["environment"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    said: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(said,), daemon=True).start()
    heard, deadline = time.monotonic(), float("inf")
    while process.poll() is None:
        now = time.monotonic()
        try:
            line = said.get(timeout=0.1)
            heard = now
        except queue.Empty:
            line = b"" if now - heard > _SILENCE_S else None
        if line == b"stop\n":
            _signal(process.pid, signal.SIGTERM)
            deadline = now + _SAVING_S
        elif line == b"" and deadline > now + _ENDING_S:
            _signal(process.pid, signal.SIGTERM)
            deadline = now + _ENDING_S
        if now > deadline:
            _signal(process.pid, signal.SIGKILL)
    # What it left behind.
    _signal(process.pid, signal.SIGTERM)
    code = process.returncode
    return 128 - code if code < 0 else code


def _listen(said: "queue.Queue[bytes]") -> None:
    while line := sys.stdin.buffer.readline():
        said.put(line)
    said.put(b"")


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    # Its reader may be gone; what it runs is to be ended all the same.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    code = main()
    os._exit(code)
