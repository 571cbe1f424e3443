"""What /metrics of the reward service shows: its requests and scores, and the pool's figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import prometheus_client
from prometheus_client.core import GaugeMetricFamily

from rlvid.rewards.service.jobs import ScoringJobs
from rlvid.rewards.service.protocol import ScoreAnswer


class HasMetrics(Protocol):
    """What /metrics shows of the pool."""

    def metrics(self) -> dict[str, float]: ...


class Meters:
    """What /metrics shows."""

    def __init__(self, jobs: ScoringJobs, pool: HasMetrics | None) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Counter(
            "rlvid_requests", "requests of /v1/score by status", ["code"], registry=self.registry
        )
        self.scores = prometheus_client.Counter(
            "rlvid_scores", "scores by outcome", ["scorer", "outcome"], registry=self.registry
        )
        self.seconds = prometheus_client.Histogram(
            "rlvid_request_seconds", "seconds of a scored request", registry=self.registry
        )
        waiting = prometheus_client.Gauge(
            "rlvid_waiting_clips", "clips in the queue", registry=self.registry
        )
        waiting.set_function(lambda: float(jobs.num_clips))
        if pool is not None:
            self.registry.register(_PoolCollector(pool))

    def count(self, answer: ScoreAnswer) -> None:
        """Count the scores of an answer."""
        for group in answer.groups:
            for score in group.scores:
                outcome = "missing" if score.value is None else "scored"
                self.scores.labels(score.scorer, outcome).inc()


class _PoolCollector(prometheus_client.registry.Collector):
    """The pool's own figures, by their names in rlvid's table of metrics."""

    def __init__(self, pool: HasMetrics) -> None:
        self._pool = pool

    def describe(self) -> Iterable[Any]:
        return []

    def collect(self) -> Iterable[Any]:
        family = GaugeMetricFamily("rlvid_pool", "figures of the reward pool", labels=["name"])
        for name, value in self._pool.metrics().items():
            family.add_metric([name], value)
        yield family
