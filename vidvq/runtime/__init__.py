"""Where work runs: on a Ray cluster, on a Ray that starts by itself, or inline. The only place that imports Ray.

Ray schedules, spreads, retries and restarts; nothing here does it again. A unit of work must be idempotent.
"""

from vidvq.runtime.feed import Feeder
from vidvq.runtime.inline import InlinePool
from vidvq.runtime.pool import Measure, Pool, RuntimeConfig, WorkerDied, start

__all__ = ["Feeder", "InlinePool", "Measure", "Pool", "RuntimeConfig", "WorkerDied", "start"]
