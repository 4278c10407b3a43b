"""Metrics of a running job, exported by Ray. Every node serves them to Prometheus on its metrics port."""

from ray.util.metrics import Counter, Gauge

from vidvq.runtime.interface import Metric

# Ray rejects a second metric of the same name in one process.
_counters: dict[str, Counter] = {}
_gauges: dict[str, Gauge] = {}


def count(metric: Metric, amount: float, **labels: str) -> None:
    """Add to a counter, which Ray exports as ``ray_NAME_total``."""
    if metric.name not in _counters:
        _counters[metric.name] = Counter(metric.name, metric.description, metric.labels)
    if amount > 0:
        _counters[metric.name].inc(amount, labels)


def gauge(metric: Metric, value: float, **labels: str) -> None:
    """Set a gauge, which Ray exports as ``ray_NAME``."""
    if metric.name not in _gauges:
        _gauges[metric.name] = Gauge(metric.name, metric.description, metric.labels)
    _gauges[metric.name].set(value, labels)
