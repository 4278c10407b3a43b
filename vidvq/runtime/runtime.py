"""The runtime of a job: a local pool for one unit of work, Ray for more. Ray starts on first use."""

import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

from vidvq.errors import UsageError
from vidvq.runtime.cgroup import cpu_limit
from vidvq.runtime.inline import InlinePool
from vidvq.runtime.interface import Pool, RuntimeConfig


class Runtime:
    """Provides the pools of a job. Created by :func:`open_runtime`."""

    def __init__(self, config: RuntimeConfig, stack: ExitStack) -> None:
        self._config, self._stack = config, stack
        self._inline = InlinePool()
        self._ray: Pool | None = None

    def pool(self, units: int) -> Pool:
        """Return the pool for a number of independent units of work.

        Starting Ray takes longer than one unit of work, so a single unit runs inline. Once Ray runs, all later calls
        use it.

        Args:
            units: number of units of work, at least 0.

        Raises:
            UsageError: Ray is not installed.
            StoreError: Ray does not start, or the cluster cannot be reached.
        """
        if self._ray is None and self._runs_inline(units):
            return self._inline
        if self._ray is None:
            self._ray = self._start_ray()
        return self._ray

    def _runs_inline(self, units: int) -> bool:
        if self._config.address is not None:
            return False
        return units <= 1 if self._config.workers is None else self._config.workers <= 1

    def _start_ray(self) -> Pool:
        _prepare_ray()
        from vidvq.runtime.ray_pool import RayPool
        from vidvq.runtime.ray_start import connect

        return RayPool(self._stack.enter_context(connect(self._config)), self._config.workers)


@contextmanager
def open_runtime(config: RuntimeConfig) -> Generator[Runtime, None, None]:
    """Open the runtime of a job; Ray is stopped on exit if it was started."""
    with ExitStack() as stack:
        yield Runtime(config, stack)


def count_gpus(config: RuntimeConfig) -> float | None:
    """Return the GPUs of the cluster that a job joins; None if it joins none and has those of this machine.

    Raises:
        UsageError: Ray is not installed.
        StoreError: the cluster cannot be reached.
    """
    if config.address is None:
        return None
    _prepare_ray()
    from vidvq.runtime.ray_start import count_cluster_gpus

    return count_cluster_gpus(config.address)


def cores_per_worker(config: RuntimeConfig, on_gpu: bool) -> int:
    """Return the number of cores for the decoding processes of a worker (1 or more); called in a worker.

    They are the cores of this machine for each worker on it. With ``decode_on=cluster`` they are the CPUs of the
    cluster that workers do not occupy, for each worker of the job.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(int(min(cores, cpu_limit() or cores)), 1)
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return cores
    from vidvq.runtime.ray_start import count_spare_cpus, count_workers_here

    if config.decode_on == "cluster":
        return max(count_spare_cpus(config, on_gpu), 1)
    return max(cores // count_workers_here(config, on_gpu), 1)


def _prepare_ray() -> None:
    # Ray sends usage statistics by default; a corpus job must not contact hosts outside of its cluster.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if find_spec("ray") is None:
        raise UsageError(
            "Ray is not installed; run `pip install 'vidvq[ray]'`, or set runtime.workers=0 and no runtime.address to "
            "run inline"
        )
