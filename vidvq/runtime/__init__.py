"""Worker pools, in local processes or on Ray. The only package that imports Ray, and only once a job needs it.

Scheduling, placement, retries and restarts are left to Ray. A unit of work must therefore be idempotent.
"""

from vidvq.runtime.feeder import Feeder, start_ahead
from vidvq.runtime.inline import InlinePool
from vidvq.runtime.interface import Measure, Pool, RuntimeConfig, WorkerDied
from vidvq.runtime.pools import Pools, open_pools, start

__all__ = [
    "Feeder",
    "InlinePool",
    "Measure",
    "Pool",
    "Pools",
    "RuntimeConfig",
    "WorkerDied",
    "open_pools",
    "start",
    "start_ahead",
]
