"""`vidvq train --profile`: time of a few steps by phase and by operator, and their launches, reads and copies."""

import gzip
import json
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType, _profiler_enabled
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from vidvq.log import info, warn
from vidvq.storage import write_atomic

# Phases of a step, marked by the loop and the trainer.
DATA = "waiting for data"
FORWARD = "generator, forward"
LOSSES = "generator, losses"
BACKWARD = "generator, backward and step"
DISCRIMINATOR = "discriminator"
AVERAGE = "average of weights"
PHASES = (DATA, FORWARD, LOSSES, BACKWARD, DISCRIMINATOR, AVERAGE)
_WAIT, _WARMUP, _ACTIVE = 5, 2, 3
_ROWS = 15
# Operators that return a value to the host, which waits for the device.
_READS = {"aten::_local_scalar_dense", "aten::nonzero"}


@contextmanager
def phase(name: str) -> Generator[None, None, None]:
    """Mark a phase of a step. While a profile is recorded, the phase lasts until the device has done its work."""
    with record_function(name):
        yield
        if torch.cuda.is_available() and _profiler_enabled():
            torch.cuda.synchronize()


class Profiler:
    """Profiles a few steps after a warm-up; writes ``profile.txt`` and ``profile.json.gz`` to the run directory.

    Args:
        run: run directory.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._left = run, _WAIT + _WARMUP + _ACTIVE
        self._cuda = torch.cuda.is_available()
        self._profile = profile(
            activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._cuda else []),
            schedule=schedule(wait=_WAIT, warmup=_WARMUP, active=_ACTIVE, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,
        )
        self._profile.start()

    def step(self) -> None:
        """Record the end of a training step."""
        if not self._left:
            return
        self._profile.step()
        self._left -= 1
        if not self._left:
            self._profile.stop()

    def close(self) -> None:
        """Stop profiling; warns if the run ended before the profile was complete."""
        if self._left:
            self._left = 0
            self._profile.stop()
            first = _WAIT + _WARMUP + 1
            warn(f"no profile was written: the run ended before step {first + _ACTIVE - 1} after its start")

    def _write(self, recorded: profile) -> None:
        trace = self._run / "profile.json.gz"
        recorded.export_chrome_trace(str(trace))
        events = list(recorded.key_averages())
        with gzip.open(trace) as file:
            counts = list(device_table(json.load(file)["traceEvents"]))
        tables = [phase_table(events), counts, operator_table(events, self._cuda)]
        text = "\n".join(line for table in tables for line in (*table, ""))
        write_atomic(self._run / "profile.txt", text.encode())
        for line in (*text.splitlines(), f"wrote {self._run / 'profile.txt'}, and {trace} for https://ui.perfetto.dev"):
            info(line)


def phase_table(events: Iterable[Any]) -> list[str]:
    """Return the lines of a table of the phases of a step, by CPU time.

    Args:
        events: averages of a profile by name. Marks that the profiler repeats for the GPU have no CPU time.
    """
    by_name = {event.key: event.cpu_time_total for event in events if event.device_type == DeviceType.CPU}
    whole_us = next(us for name, us in by_name.items() if name.startswith("ProfilerStep"))
    spent = {name: by_name[name] for name in PHASES if name in by_name}
    spent["other"] = whole_us - sum(spent.values())
    lines = [f"a step takes {whole_us / _ACTIVE / 1000:.1f} ms, mean of {_ACTIVE}", ""]
    lines.append(f"{'phase':<44} {'ms':>9} {'share':>7}")
    return lines + [_row(name, us, whole_us) for name, us in spent.items()]


def operator_table(events: Iterable[Any], cuda: bool, steps: int = _ACTIVE) -> list[str]:
    """Return the lines of a table of the most expensive operators.

    Args:
        events: averages of a profile by name.
        cuda: whether to list GPU kernels instead: the time of an operator includes that of its kernels.
        steps: number of steps in the profile.
    """
    if cuda:
        kernels = (each for each in events if each.device_type != DeviceType.CPU and not each.is_user_annotation)
        spent = [(each.self_device_time_total, each) for each in kernels]
    else:
        spent = [(each.self_cpu_time_total, each) for each in events]
    marks = (*PHASES, "ProfilerStep")
    spent = sorted(((us, each) for us, each in spent if not each.key.startswith(marks)), key=lambda pair: -pair[0])
    whole_us = sum(us for us, _ in spent)
    title = "kernel, GPU time" if cuda else "operator, self CPU time"
    lines = [f"{title:<44} {'ms':>9} {'share':>7} {'calls':>7}"]
    return lines + [
        f"{_row(each.key, us, whole_us, steps)} {each.count / steps:>7.0f}" for us, each in spent[:_ROWS] if us
    ]


def device_table(events: Iterable[Mapping[str, Any]], steps: int = _ACTIVE) -> Iterable[str]:
    """Yield the lines of a table of the launches, reads by the host, and bytes copied in a step.

    Args:
        events: events of a trace. Without a GPU, operators are counted instead of kernels, and values read by Python
            instead of copies.
        steps: number of steps in the trace.
    """
    counts: Counter[str] = Counter()
    copied: Counter[str] = Counter()
    for event in events:
        name, category = event.get("name", ""), event.get("cat")
        if category == "kernel":
            counts["kernels"] += 1
        elif category == "cpu_op" and name.startswith("aten::"):
            counts["operators"] += 1
            counts["values"] += name in _READS
        elif category == "gpu_memcpy":
            for direction in ("HtoD", "DtoH"):
                if direction in name:
                    counts[direction] += 1
                    copied[direction] += event["args"]["bytes"]
    launched, read = ("kernels", "DtoH") if counts["kernels"] else ("operators", "values")
    yield f"{f'{launched} launched per step':<44} {counts[launched] / steps:>9.0f}"
    yield f"{'reads by the host per step':<44} {counts[read] / steps:>9.1f}"
    yield f"{'MiB copied to the device per step':<44} {copied['HtoD'] / steps / 2**20:>9.1f}"
    yield f"{'MiB copied from the device per step':<44} {copied['DtoH'] / steps / 2**20:>9.1f}"


def _row(name: str, us: float, whole_us: float, steps: int = _ACTIVE) -> str:
    shown = name if len(name) <= 44 else name[:41] + "..."
    return f"{shown:<44} {us / steps / 1000:>9.1f} {us / max(whole_us, 1):>7.1%}"
