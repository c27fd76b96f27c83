"""What a server counts, for Prometheus and for the record of the job."""

from collections import Counter as Tally
from collections import deque

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from shoal.serving.models import Models

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LATEST, PERCENTILES = 10_000, (50, 95, 99)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server.

    Attributes:
        statuses: answers by HTTP status.
        rows: that were predicted.
    """

    def __init__(self) -> None:
        self.statuses: Tally[int] = Tally()
        self.rows = 0
        self._registry = CollectorRegistry()
        self._requests = Counter("shoal_requests", "Answers.", ("route", "status"), registry=self._registry)
        self._seconds = Histogram(
            "shoal_request_seconds",
            "From the first byte to the answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._batch_rows = Histogram(
            "shoal_batch_rows", "Rows that were predicted together.", buckets=ROWS, registry=self._registry
        )
        self._batch_seconds = Histogram(
            "shoal_batch_seconds", "Of a batch in the model.", buckets=SECONDS, registry=self._registry
        )
        self._takeovers = Counter(
            "shoal_takeovers", "Versions that took over from another.", ("model",), registry=self._registry
        )
        self._latencies_s: deque[float] = deque(maxlen=LATEST)
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.statuses[status] += 1
        self._latencies_s.append(seconds)
        if (route, status) not in self._children:  # looking a child up costs more than counting
            self._children[route, status] = self._requests.labels(route, status), self._seconds.labels(route)
        requests, histogram = self._children[route, status]
        requests.inc()
        histogram.observe(seconds)

    def latency_ms(self) -> dict[str, float]:
        """Return percentiles of the last requests."""
        if not self._latencies_s:
            return {}
        found = np.percentile(self._latencies_s, PERCENTILES) * 1000
        return {f"p{share}": round(float(ms), 3) for share, ms in zip(PERCENTILES, found, strict=True)}

    def batch(self, rows: int, seconds: float) -> None:
        """Count a batch."""
        self.rows += rows
        self._batch_rows.observe(rows)
        self._batch_seconds.observe(seconds)

    def took_over(self, model: str) -> None:
        """Count a new version."""
        self._takeovers.labels(model).inc()

    def watch(self, models: Models) -> None:
        """Show the models and their queues as they are when metrics are read."""
        self._registry.register(_State(models))

    def text(self) -> bytes:
        """Return all of it in Prometheus' format."""
        return generate_latest(self._registry)


class _State:
    """The gauges that are read, not counted."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> list[Metric]:
        info = GaugeMetricFamily(
            "shoal_model_info", "The version that answers.", labels=("model", "version", "digest")
        )
        waiting = GaugeMetricFamily(
            "shoal_requests_in_progress", "Requests that are being read or answered.", labels=("model",)
        )
        for name, version in self._models.identities.items():
            info.add_metric((name, version.number, version.digest), 1)
            waiting.add_metric((name,), version.batcher.requests)
        return [info, waiting]
