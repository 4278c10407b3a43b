"""`vidvq train --profile`: where the time of a few steps goes."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from vidvq.log import info

_WAIT, _WARMUP, _ACTIVE = 5, 2, 3
_ROWS = 15


class Profiler:
    """Records a few steps after the first ones; writes ``profile.json`` (open it in chrome://tracing or Perfetto)."""

    def __init__(self, run: Path) -> None:
        self._path = run / "profile.json"
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=_WAIT, warmup=_WARMUP, active=_ACTIVE, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )
        self._profile.start()
        self._left: int | None = _WAIT + _WARMUP + _ACTIVE

    def step(self) -> None:
        """Count a step of training."""
        if self._left is None:
            return
        self._profile.step()
        self._left -= 1
        if not self._left:
            self._profile.stop()
            self._left = None

    def _write(self, recorded: profile) -> None:
        recorded.export_chrome_trace(str(self._path))
        by = "cuda_time_total" if torch.cuda.is_available() else "cpu_time_total"
        info(recorded.key_averages().table(sort_by=by, row_limit=_ROWS))
        info(f"wrote {self._path}: {_ACTIVE} steps")
