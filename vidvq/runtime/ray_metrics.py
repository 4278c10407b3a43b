"""Metrics of a running job, exported by Ray. Every node serves them to Prometheus on its metrics port."""

from functools import cache

from ray.util.metrics import Counter, Gauge

from vidvq.runtime.interface import Metric

# Ray rejects a second metric of the same name in one process.
_counter, _gauge = cache(Counter), cache(Gauge)


def count(metric: Metric, amount: float, **labels: str) -> None:
    """Add to a counter, which Ray exports as ``ray_NAME_total``."""
    counter = _counter(metric.name, metric.description, metric.labels)
    if amount > 0:
        counter.inc(amount, labels)


def gauge(metric: Metric, value: float, **labels: str) -> None:
    """Set a gauge, which Ray exports as ``ray_NAME``."""
    _gauge(metric.name, metric.description, metric.labels).set(value, labels)
