"""Script: run a command line many times and kill it, or run it several times at once. Each run is a fork.

`kill OUT_ROOT ARGUMENTS...` runs ARGUMENTS with OUT_ROOT/N/out for @OUT, kills it with SIGKILL before its N-th file
operation in that folder, then runs it again to the end. N counts up from 0 until a run ends before its N-th operation.
`kill/K` does so for each K-th N.
`race/K OUT_ROOT ARGUMENTS...` runs three processes at once with OUT_ROOT/N/out, for N below K.
Prints the exit codes of the last runs as a JSON list.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jinja2  # noqa: F401
import PIL.Image  # noqa: F401

from vidvq import runtime
from vidvq.cli.main import run

# Imported once, so that a fork starts at once.
if {"tokenize", "decode", "generate"} & {*sys.argv}:
    import torch
    import torch._dynamo

    import vidvq.decode
    import vidvq.generate.sampling.pipeline
    import vidvq.tokenize.thumbnails
    import vidvq.tokenize.worker

    torch.set_num_threads(1)
else:
    import vidvq.jobs.report
    import vidvq.shard.worker  # noqa: F401

# fsync protects against power cuts, not against kills, and is slow.
os.fsync = lambda file: None
# Calls run in the process that is killed, so that their file operations are counted too, and no run starts a child.
runtime.InlinePool.map = lambda self, function, items, **options: ((item, function(item)) for item in items)  # pyright: ignore[reportAttributeAccessIssue]
runtime.Feeder.feed = lambda self, function, item, *limits: (result for result in function(item))  # pyright: ignore[reportAttributeAccessIssue]
runtime.warm_up = lambda module: None
EVENTS = {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir"}


def fork(action: Callable[[], int]) -> int:
    child = os.fork()
    if not child:
        sys.stderr = Path(os.devnull).open("w")
        code = 99
        try:
            code = action()
        finally:
            os._exit(code)
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_before(operation: int, folder: str) -> None:
    left = operation

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return  # reading changes nothing
        if event in EVENTS and str(arguments[0]).startswith(folder):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    mode, root, *arguments = sys.argv[1:]
    codes: list[int] = []

    def command(out: Path) -> int:
        return run([str(out) if argument == "@OUT" else argument for argument in arguments])

    def killed(turn: int, out: Path) -> int:
        die_before(turn, str(out))
        return command(out)

    def at(start: float, out: Path) -> int:
        while time.monotonic() < start:
            pass
        return command(out)

    mode, _, every = mode.partition("/")
    for turn in range(int(every)) if mode == "race" else range(0, 10_000, int(every or 1)):
        out = Path(root) / str(turn) / "out"
        if mode == "race":
            start = time.monotonic() + 0.05
            drivers = [fork(lambda out=out, start=start: at(start, out)) for _ in range(3)]
            codes += [wait(driver) for driver in drivers]
            continue
        first = wait(fork(lambda turn=turn, out=out: killed(turn, out)))
        if first >= 0:
            codes.append(first)
            break
        codes.append(wait(fork(lambda out=out: command(out))))
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
