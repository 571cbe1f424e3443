"""The nodes of a Ray cluster: joined, waited for, and given tasks of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

JOIN_DEADLINE_S = 300.0
"""For nodes that still start."""


def await_cluster(address: str, deadline_s: float) -> None:
    """Join the cluster, which may still start; ClusterError when none answers in time."""
    from rlvid.launch.cluster import join, keep_sigterm_handler
    from rlvid.launch.demand import ClusterError

    end = time.monotonic() + deadline_s
    while True:
        try:
            with keep_sigterm_handler():
                join(address)
            return
        except ClusterError:
            if time.monotonic() >= end:
                raise
        time.sleep(1.0)


def await_nodes(num_nodes: int | None, deadline_s: float = JOIN_DEADLINE_S) -> str:
    """Wait until so many nodes are there; ValueError when they do not come."""
    end = time.monotonic() + deadline_s
    while True:
        names = [str(node["NodeManagerAddress"]) for node in alive_nodes()]
        if num_nodes is None or len(names) >= num_nodes:
            return f"{len(names)} joined: {', '.join(names)}"
        if time.monotonic() >= end:
            raise ValueError(
                f"{len(names)} of {num_nodes} joined within {deadline_s:.0f} s: "
                f"{', '.join(names)}. See Ray's log on the others (/tmp/ray/session_latest/logs)"
            )
        time.sleep(0.5)


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's entries of the nodes that live, by address."""
    import ray

    found = [node for node in ray.nodes() if node["Alive"]]
    return sorted(found, key=lambda node: str(node["NodeManagerAddress"]))


def on_node(node: Mapping[str, Any], function: Any, **options: Any) -> Any:
    """Return the function as a task of that node, which asks for no CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
    return ray.remote(function).options(
        num_cpus=0, max_retries=0, scheduling_strategy=there, **options
    )
