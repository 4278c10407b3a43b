"""Metrics of a running job, exported by Ray. Every node serves them to Prometheus on its metrics port."""

from ray.util.metrics import Counter, Gauge

from vidvq.runtime.interface import Measure

# Ray rejects a second metric of the same name in one process.
_counters: dict[str, Counter] = {}
_gauges: dict[str, Gauge] = {}


def count(measure: Measure, amount: float, **labels: str) -> None:
    """Add to a counter, which Ray exports as ``ray_NAME_total``."""
    if measure.name not in _counters:
        _counters[measure.name] = Counter(measure.name, measure.description, measure.labels)
    if amount > 0:
        _counters[measure.name].inc(amount, labels)


def gauge(measure: Measure, value: float, **labels: str) -> None:
    """Set a gauge, which Ray exports as ``ray_NAME``."""
    if measure.name not in _gauges:
        _gauges[measure.name] = Gauge(measure.name, measure.description, measure.labels)
    _gauges[measure.name].set(value, labels)
