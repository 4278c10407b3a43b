"""Execution of work in local processes or on Ray. The only package that imports Ray, and only once a job needs it.

Scheduling, placement, retries and restarts are left to Ray. A unit of work must therefore be idempotent.
"""

from vidvq.runtime.deaths import Deaths, describe_death
from vidvq.runtime.feeder import Feeder, warm_up
from vidvq.runtime.inline import InlinePool
from vidvq.runtime.interface import Metric, Pool, RuntimeConfig, WorkerDied
from vidvq.runtime.runtime import Runtime, cores_per_worker, count_gpus, open_runtime

__all__ = [
    "Deaths",
    "Feeder",
    "InlinePool",
    "Metric",
    "Pool",
    "Runtime",
    "RuntimeConfig",
    "WorkerDied",
    "cores_per_worker",
    "count_gpus",
    "describe_death",
    "open_runtime",
    "warm_up",
]
