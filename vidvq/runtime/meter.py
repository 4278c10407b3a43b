"""Figures of a running job for Prometheus, by Ray's own exporter: every node serves them on its metrics port."""

from ray.util.metrics import Counter, Gauge

from vidvq.runtime.pool import Measure

# Of this process; Ray takes each name once.
_counters: dict[str, Counter] = {}
_gauges: dict[str, Gauge] = {}


def count(measure: Measure, amount: float, **labels: str) -> None:
    """Add to a figure, which Ray serves as ``ray_NAME_total``."""
    if measure.name not in _counters:
        _counters[measure.name] = Counter(measure.name, measure.description, measure.labels)
    if amount > 0:
        _counters[measure.name].inc(amount, labels)


def gauge(measure: Measure, value: float, **labels: str) -> None:
    """Tell a figure as it is now, which Ray serves as ``ray_NAME``."""
    if measure.name not in _gauges:
        _gauges[measure.name] = Gauge(measure.name, measure.description, measure.labels)
    _gauges[measure.name].set(value, labels)
