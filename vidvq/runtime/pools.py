"""The pool that a job needs: local processes for little work, Ray for the rest, started when first needed."""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from vidvq.errors import UsageError
from vidvq.runtime.inline import InlinePool
from vidvq.runtime.interface import Pool, RuntimeConfig


class Pools:
    """Hands out the pool for an amount of work. Made by :func:`open_pools`."""

    def __init__(self, config: RuntimeConfig, stack: ExitStack) -> None:
        self._config, self._stack = config, stack
        self._inline = InlinePool()
        self._ray: Pool | None = None

    def get(self, units: int) -> Pool:
        """The pool for so many independent pieces of work.

        Ray takes longer to start than one piece of work to finish, so one piece runs without it. Once Ray runs, it
        serves every later call.

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
            return self._config.workers == 0
        return units <= 1 if self._config.workers is None else self._config.workers <= 1

    def _start_ray(self) -> Pool:
        # Ray reports usage to its makers by default; a corpus job must not reach out of its cluster.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            from vidvq.runtime.ray_pool import RayPool
            from vidvq.runtime.ray_start import connect
        except ImportError as error:
            raise UsageError(
                "Ray is not installed; run `pip install 'vidvq[ray]'`, or give workers=0 to run inline"
            ) from error
        return RayPool(self._stack.enter_context(connect(self._config)))


@contextmanager
def open_pools(config: RuntimeConfig) -> Generator[Pools, None, None]:
    """Open the pools of a job; Ray, where it was started, stops at the end."""
    with ExitStack() as stack:
        yield Pools(config, stack)


@contextmanager
def start(config: RuntimeConfig) -> Generator[Pool, None, None]:
    """Open the one pool of a job whose amount of work is not known.

    Raises:
        UsageError: Ray is not installed.
        StoreError: Ray does not start, or the cluster cannot be reached.
    """
    with open_pools(config) as pools:
        yield pools.get(units=2)
