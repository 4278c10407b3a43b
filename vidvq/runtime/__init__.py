"""Where work runs: in local processes or on Ray. The only place that imports Ray, and not before it is needed.

Ray schedules, spreads, retries and restarts; nothing here does it again. A unit of work must be idempotent.
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
