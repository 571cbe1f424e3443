"""Metrics reach Prometheus under names of their own, and what is counted is not lost."""

from __future__ import annotations

import time
import urllib.request

import pytest

from rlvid.launch.control.prometheus import (
    COUNTERS,
    Labels,
    MetricsPublisher,
    metrics_url,
    open_publisher,
    prometheus_name,
)
from rlvid.observability.metrics import METRICS


class Kept:
    """Instruments that remember."""

    def __init__(self) -> None:
        self.gauges: dict[tuple[str, str], float] = {}
        self.counters: dict[tuple[str, str], float] = {}

    def set_gauge(self, name: str, value: float, labels: Labels) -> None:
        self.gauges[name, str(labels)] = value

    def add_to_counter(self, name: str, value: float, labels: Labels) -> None:
        self.counters[name, str(labels)] = self.counters.get((name, str(labels)), 0.0) + value


def test_variable_parts_of_a_name_become_labels() -> None:
    assert prometheus_name("idle/learner/on_rewards_frac") == (
        "rlvid_idle_on_frac",
        {"role": "learner", "whom": "rewards"},
    )
    assert prometheus_name("rollout/reward/mean") == ("rlvid_rollout_reward_mean", {})


def test_no_two_metrics_share_a_prometheus_name() -> None:
    """Ray keeps the first description and mixes the values."""
    names = [prometheus_name(name.replace("<", "").replace(">", "")) for name in METRICS]
    assert len({name for name, _ in names}) == len(METRICS)


def test_counters_are_rows_of_the_table() -> None:
    assert set(COUNTERS) <= set(METRICS)


def test_rows_that_come_fast_are_joined_and_counts_are_summed() -> None:
    kept = Kept()
    publisher = MetricsPublisher("r", kept)
    for number in range(5):
        row = {"waste/stale/videos": 2.0, "rollout/reward/mean": 0.1 * number}
        publisher.publish(row, now_s=0.25 * number)
    assert kept.gauges["rlvid_rollout_reward_mean", "{'run': 'r'}"] == pytest.approx(0.4)
    assert kept.counters["rlvid_waste_videos", "{'run': 'r', 'reason': 'stale'}"] == 10.0
    publisher.publish({"waste/stale/videos": 3.0}, now_s=1.1)
    assert sum(kept.counters.values()) == 10.0
    publisher.flush()
    assert sum(kept.counters.values()) == 13.0


def test_missing_values_and_pairs_are_left_out() -> None:
    kept = Kept()
    row = {"learner/kl/mean": float("nan"), "correlation/a-b/pearson": 0.5}
    MetricsPublisher("r", kept).publish(row, now_s=0.0)
    assert kept.gauges == {}


@pytest.mark.slow
def test_metrics_appear_where_prometheus_scrapes_them() -> None:
    """Ray's agent runs without its dashboard too; it shows them after some seconds."""
    import ray

    ray.init(
        address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
        object_store_memory=80 * 2**20, _system_config={"metrics_report_interval_ms": 500},
    )  # fmt: skip
    try:
        publisher = open_publisher("a_run")
        publisher.publish({"idle/learner/frac": 0.25, "waste/late/videos": 4.0}, now_s=0.0)
        url = metrics_url()
        assert url is not None
        deadline = time.monotonic() + 60
        lines: list[str] = []
        while len(lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
            lines = [line for line in text.splitlines() if line.startswith("ray_rlvid_")]
    finally:
        ray.shutdown()
    by_name = {line.partition("{")[0]: line for line in lines}
    assert by_name["ray_rlvid_idle_frac"].endswith(" 0.25")
    assert 'role="learner"' in by_name["ray_rlvid_idle_frac"]
    assert 'run="a_run"' in by_name["ray_rlvid_idle_frac"]
    assert by_name["ray_rlvid_waste_videos_total"].endswith(" 4.0")
