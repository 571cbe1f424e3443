"""The run's metrics for Prometheus, through the metrics agent that Ray has on every node.

`idle/learner/frac` becomes the gauge `ray_rlvid_idle_frac{role="learner", run="..."}` (Ray adds its
`ray_`): a name's variable part is a label. What is counted a step, e.g. `waste/stale/videos`, is
added up in a counter, `ray_rlvid_waste_videos_total{reason="stale"}`.

To scrape: `metrics_url()` is where the driver's node shows them, a second or ten after they were
published; the log says it at the start of the loop. A scrape configuration is

    scrape_configs:
      - job_name: rlvid
        static_configs: [{targets: ["<node>:<port>"]}]

The port is random unless `cluster.metrics_port` fixes it for a cluster that the run starts itself;
for one that it joins, `ray start --metrics-export-port`, and Ray's service discovery file
(prom_metrics_service_discovery.json in its session folder) lists all nodes while its dashboard
runs. Ray's agent listens on all interfaces and asks nobody for a token: what it shows are numbers
and names of scorers, but keep the port behind a firewall.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

from rlvid.observability.metrics import METRICS, pattern_of

PERIOD_S = 1.0
"""Shortest time between two publishes; Ray's agent collects every few seconds."""
LEFT_OUT = ("correlation",)
"""Areas that make more series than they are worth."""
COUNTERS = (
    "ft/<role>/restarts", "waste/<reason>/videos", "waste/<reason>/seconds",
    "stale/<versions>/count", "rollout/groups/consumed", "rollout/groups/dropped",
    "rollout/groups/uniform", "rollout/groups/reissued", "rollout/groups/refused",
    "rollout/groups/stale", "rollout/actors/lost", "weights/rejected/count",
)  # fmt: skip
"""Metrics whose value is of one step; their sum is what a graph of rates wants."""

Labels = dict[str, str]


class Instruments(Protocol):
    """Where the values go."""

    def set_gauge(self, name: str, value: float, labels: Labels) -> None: ...

    def add_to_counter(self, name: str, value: float, labels: Labels) -> None: ...


class MetricsPublisher:
    """Hands the metrics of steps on, at most every `PERIOD_S`; made by `open_publisher`."""

    def __init__(self, run: str, instruments: Instruments) -> None:
        self._run = run
        self._to = instruments
        self._gauges: dict[str, float] = {}
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._next_s = -math.inf

    def publish(self, metrics: Mapping[str, float], now_s: float) -> None:
        """Take a row of metrics; of rows that come too fast the last one is shown.

        Nothing is lost of what is counted: it waits for the next turn.
        """
        for name, value in metrics.items():
            if name.partition("/")[0] in LEFT_OUT or not math.isfinite(value):
                continue
            if pattern_of(name) in COUNTERS:
                self._sums[name] += value
            else:
                self._gauges[name] = value
        if now_s < self._next_s:
            return
        self._next_s = now_s + PERIOD_S
        self.flush()

    def flush(self) -> None:
        """Hand on what waits."""
        for name, value in self._gauges.items():
            shown, labels = prometheus_name(name)
            self._to.set_gauge(shown, value, {"run": self._run, **labels})
        for name, value in self._sums.items():
            if value > 0:
                shown, labels = prometheus_name(name)
                self._to.add_to_counter(shown, value, {"run": self._run, **labels})
        self._gauges.clear()
        self._sums.clear()


class RayInstruments:
    """Ray's gauges and counters, one for each name."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def set_gauge(self, name: str, value: float, labels: Labels) -> None:
        from ray.util.metrics import Gauge

        self._get(Gauge, name, labels).set(value, tags=labels)

    def add_to_counter(self, name: str, value: float, labels: Labels) -> None:
        from ray.util.metrics import Counter

        self._get(Counter, name, labels).inc(value, tags=labels)

    def _get(self, kind: Any, name: str, labels: Labels) -> Any:
        if name not in self._known:
            meaning = _MEANINGS.get(name, "")
            self._known[name] = kind(name, description=meaning, tag_keys=tuple(labels))
        return self._known[name]


def open_publisher(run: str) -> MetricsPublisher:
    """Return a publisher into the Ray cluster that this process is connected to."""
    return MetricsPublisher(run, RayInstruments())


def metrics_url() -> str | None:
    """Return where this node's metrics are shown; None where Ray has no metrics agent."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == node_id and node.get("MetricsExportPort", -1) > 0:
            return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return None


def prometheus_name(name: str) -> tuple[str, Labels]:
    """Return the Prometheus name of a metric and the labels that its variable parts become.

    Raises:
        ValueError: the metric is not in the table.
    """
    pattern = pattern_of(name)
    keys = re.findall(r"<(\w+)>", pattern)
    found = re.fullmatch(re.sub(r"<\w+>", "([^/]+)", pattern), name)
    assert found is not None, "a name matches its own pattern"
    return _shown(pattern), dict(zip(keys, found.groups(), strict=True))


def _shown(pattern: str) -> str:
    return re.sub(r"_+", "_", "rlvid_" + re.sub(r"<\w+>", "", pattern).replace("/", "_"))


_MEANINGS = {_shown(name): f"{row.meaning} [{row.unit}]" for name, row in METRICS.items()}
