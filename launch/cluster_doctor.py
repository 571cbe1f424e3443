"""`rlvid doctor --cluster ADDRESS`: the doctor on every node of a Ray cluster, and between them.

    join, wait for the nodes --> each node: its own checks, in a task bound to it
                             --> all: same versions, clocks, token, store, a sum over the network

It runs before a run does, so that a node that would fail it an hour later is named now.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rlvid.config.node_group import is_name
from rlvid.launch.cluster_findings import (
    compare_clocks,
    compare_versions,
    judge_stores,
    judge_token,
    merge,
    name_groups,
)
from rlvid.launch.cluster_nodes import (
    JOIN_DEADLINE_S,
    alive_nodes,
    await_cluster,
    await_nodes,
    on_node,
)
from rlvid.launch.finding import Finding, run_check
from rlvid.launch.node_report import NodeAnswer, examine_node
from rlvid.launch.round_trip import round_trip

NODE_DEADLINE_S = 300.0
"""For the checks of one node: imports from a slow disk, and the GPUs."""


def examine_cluster(address: str, num_nodes: int | None = None) -> Iterator[Finding]:
    """Join the cluster and yield what was found, once for all nodes where they agree.

    Args:
        num_nodes: nodes to wait for; None takes those that are there.

    Raises:
        ClusterError: no cluster answers at the address.
    """
    import ray

    await_cluster(address, 0.0 if num_nodes is None else JOIN_DEADLINE_S)
    try:
        joined = run_check("nodes", lambda: await_nodes(num_nodes))
        yield joined
        if joined.state == "broken":
            return
        answers = ask_nodes()
        yield from merge(answers)
        yield run_check("versions", lambda: compare_versions(answers))
        yield run_check("clocks", lambda: compare_clocks(answers))
        yield run_check("token", lambda: judge_token(answers))
        yield run_check("node groups", lambda: name_groups(answers))
        yield run_check("object store", lambda: judge_stores(answers))
        yield run_check("round trip", lambda: round_trip("gloo"))
        if any(answer.num_gpus for answer in answers):
            yield run_check("round trip of GPUs", lambda: round_trip("nccl"))
    finally:
        ray.shutdown()


def ask_nodes() -> list[NodeAnswer]:
    """Have every node examine itself, all at once."""
    import ray

    nodes = alive_nodes()
    sent_at, refs = time.time(), [on_node(node, examine_node).remote() for node in nodes]
    answers = []
    for node, ref in zip(nodes, refs, strict=True):
        answers.append(_received(known_of(node), ref, sent_at, ray))
    return answers


def known_of(node: Mapping[str, Any]) -> NodeAnswer:
    """Return what Ray tells of a node without asking it."""
    has = node["Resources"]
    return NodeAnswer(
        name=str(node["NodeManagerAddress"]),
        store_mb=has.get("object_store_memory", 0.0) / 2**20,
        num_gpus=int(has.get("GPU", 0)),
        groups=tuple(sorted(name for name in has if is_name(name))),
    )


def _received(known: NodeAnswer, ref: Any, sent_at: float, ray: Any) -> NodeAnswer:
    left_s = max(1.0, sent_at + NODE_DEADLINE_S - time.time())
    try:
        report = ray.get(ref, timeout=left_s)
    except ray.exceptions.GetTimeoutError:
        return replace(known, error=f"no answer within {NODE_DEADLINE_S:.0f} s")
    except ray.exceptions.RayError as error:
        return replace(known, error=" ".join(str(error).split())[-300:])
    return replace(known, sent_at=sent_at, received_at=time.time(), report=report)
