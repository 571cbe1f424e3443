"""`rlvid doctor --cluster ADDRESS`: the doctor on every node of a Ray cluster, and between them.

    join, wait for the nodes --> each node: its own checks, in a task bound to it
                             --> all: same versions, clocks, token, store, a sum over the network

It runs before a run does, so that a node that would fail it an hour later is named now.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlvid.launch.doctor import CHECKS, PACKAGES
from rlvid.launch.finding import Check, Finding, Note, run_check

JOIN_DEADLINE_S = 300.0
"""For nodes that still start."""
NODE_DEADLINE_S = 300.0
"""For the checks of one node: imports from a slow disk, and the GPUs."""
ROUND_DEADLINE_S = 120.0
MAX_CLOCK_S = 1.0
"""Times of one run are laid side by side in its trace and its report."""
MIN_STORE_MB = 256
NUM_ELEMENTS = 2**20
NODE_CHECKS: dict[str, Check] = {
    name: check for name, check in CHECKS.items() if name not in ("ray", "h264", "model", "cores")
}
"""Ray is up where this is asked; the others hold for a machine that runs the tiny model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What one node found about itself."""

    findings: list[Finding]
    versions: dict[str, str]
    """Of Python, rlvid and every package; "" for what is not installed."""
    is_token_asked: bool
    asked_at: float
    """Its clock when the task began, in seconds since 1970."""
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAnswer:
    """A node, when it was asked by the driver's clock, and its report; an error instead of one."""

    name: str
    store_mb: float
    num_gpus: int
    sent_at: float = 0.0
    received_at: float = 0.0
    report: NodeReport | None = None
    error: str = ""


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
        yield run_check("object store", lambda: judge_stores(answers))
        yield run_check("round trip", lambda: round_trip("gloo"))
        if any(answer.num_gpus for answer in answers):
            yield run_check("round trip of GPUs", lambda: round_trip("nccl"))
    finally:
        ray.shutdown()


def await_cluster(address: str, deadline_s: float) -> None:
    """Join the cluster, which may still start; ClusterError when none answers in time."""
    from rlvid.launch.cluster import ClusterError, join, keep_sigterm_handler

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


def ask_nodes() -> list[NodeAnswer]:
    """Have every node examine itself, all at once."""
    import ray

    nodes = alive_nodes()
    sent_at, refs = time.time(), [_on(node, examine_node).remote() for node in nodes]
    answers = []
    for node, ref in zip(nodes, refs, strict=True):
        has = node["Resources"]
        known = NodeAnswer(
            name=str(node["NodeManagerAddress"]),
            store_mb=has.get("object_store_memory", 0.0) / 2**20,
            num_gpus=int(has.get("GPU", 0)),
        )
        answers.append(_received(known, ref, sent_at, ray))
    return answers


def _received(known: NodeAnswer, ref: Any, sent_at: float, ray: Any) -> NodeAnswer:
    left_s = max(1.0, sent_at + NODE_DEADLINE_S - time.time())
    try:
        report = ray.get(ref, timeout=left_s)
    except ray.exceptions.GetTimeoutError:
        return replace(known, error=f"no answer within {NODE_DEADLINE_S:.0f} s")
    except ray.exceptions.RayError as error:
        return replace(known, error=" ".join(str(error).split())[-300:])
    return replace(known, sent_at=sent_at, received_at=time.time(), report=report)


def _on(node: Mapping[str, Any], function: Any, **options: Any) -> Any:
    """Return the function as a task of that node, which asks for no CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
    return ray.remote(function).options(
        num_cpus=0, max_retries=0, scheduling_strategy=there, **options
    )


def examine_node() -> NodeReport:
    """Run the checks of a machine; on the node, within a Ray task."""
    began, asked_at = time.monotonic(), time.time()
    findings = [run_check(name, check) for name, check in NODE_CHECKS.items()]
    return NodeReport(
        findings=findings,
        versions=versions_here(),
        is_token_asked=os.environ.get("RAY_AUTH_MODE") == "token",
        asked_at=asked_at,
        took_s=time.monotonic() - began,
    )


def versions_here() -> dict[str, str]:
    """Return the versions that have to be the same on all nodes."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import rlvid

    found = {"python": platform.python_version(), "rlvid": rlvid.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def merge(answers: list[NodeAnswer]) -> Iterator[Finding]:
    """Yield the nodes' findings, one for all where they say the same."""
    for answer in answers:
        if answer.report is None:
            yield Finding(check=f"node {answer.name}", state="broken", text=answer.error)
    for check in NODE_CHECKS:
        said: dict[tuple[str, str], list[str]] = {}
        for answer in answers:
            for finding in answer.report.findings if answer.report else ():
                if finding.check == check:
                    said.setdefault((finding.state, finding.text), []).append(answer.name)
        for (state, text), names in said.items():
            where = "" if len(said) == 1 else f" on {', '.join(names)}"
            yield Finding(check=check + where, state=state, text=text)


def compare_versions(answers: list[NodeAnswer]) -> str:
    """Return that all nodes have the same; ValueError names what differs and where."""
    by_node = {answer.name: answer.report.versions for answer in answers if answer.report}
    ours = versions_here()
    different = [
        f"{name} {found.get(name) or 'missing'} on {node}, {version or 'missing'} at the driver"
        for node, found in by_node.items()
        for name, version in ours.items()
        if found.get(name) != version
    ]
    if different:
        raise ValueError(f"{'; '.join(different)}. Install launch/environment/ on every node")
    missing = [name for name, found in ours.items() if not found]
    if missing:
        raise ValueError(f"not installed: {', '.join(missing)}; see launch/environment/")
    return f"the same on {len(by_node)} nodes: {len(ours)} packages, rlvid {ours['rlvid']}"


def compare_clocks(answers: list[NodeAnswer]) -> str | Note:
    """Return the largest difference to the driver's clock that can be told; a note when large.

    A node read its clock between the question and the answer less its own time, so a clock within
    those bounds is right as far as anybody can tell.
    """
    off = {"": 0.0}
    for answer in answers:
        if answer.report is not None:
            latest = answer.received_at - answer.report.took_s
            early = answer.sent_at - answer.report.asked_at
            off[answer.name] = max(early, answer.report.asked_at - latest, 0.0)
    worst = max(off, key=off.__getitem__)
    if off[worst] > MAX_CLOCK_S:
        return Note(
            f"{worst} is off by {off[worst]:.1f} s or more: traces and reports will not fit "
            "together; run an NTP client"
        )
    return f"none is off by more than {MAX_CLOCK_S:g} s, as far as can be told"


def judge_token(answers: list[NodeAnswer]) -> str | Note:
    """Return whether Ray asks for a token on every node."""
    without = [a.name for a in answers if a.report and not a.report.is_token_asked]
    if without:
        return Note(
            f"Ray asks for none on {', '.join(without)}: whoever reaches its ports runs code "
            "there. Export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before `ray start`"
        )
    return "Ray asks for one on every node; it is sent in clear text, so keep the network private"


def judge_stores(answers: list[NodeAnswer]) -> str:
    """Return the sizes of the object stores; ValueError when one holds no group."""
    text = ", ".join(f"{answer.store_mb:,.0f} MB on {answer.name}" for answer in answers)
    if any(answer.store_mb < MIN_STORE_MB for answer in answers):
        raise ValueError(f"{text}; expected {MIN_STORE_MB} MB or more: --object-store-memory")
    return text


def round_trip(backend: str) -> str:
    """Sum over all nodes, as learner ranks do; every pair of nodes has to reach each other.

    Args:
        backend: "gloo", one process a node; "nccl", one for each node with a GPU.

    Raises:
        ValueError: it did not come to an end, or to the right one.
    """
    import ray

    nodes = [n for n in alive_nodes() if backend == "gloo" or n["Resources"].get("GPU", 0)]
    options = {"num_gpus": 1} if backend == "nccl" else {}
    address = str(nodes[0]["NodeManagerAddress"])
    port = ray.get(_on(nodes[0], free_port).remote(), timeout=ROUND_DEADLINE_S)
    refs = [
        _on(node, sum_over_nodes, **options).remote(
            backend, f"tcp://{address}:{port}", rank, len(nodes)
        )
        for rank, node in enumerate(nodes)
    ]
    try:
        sums = ray.get(refs, timeout=ROUND_DEADLINE_S)
    except ray.exceptions.GetTimeoutError as error:
        for ref in refs:
            ray.cancel(ref, force=True)
        raise ValueError(
            f"{backend}: no sum over {len(nodes)} nodes within {ROUND_DEADLINE_S:.0f} s. Nodes "
            "have to reach each other on all ports, each under its own name: look at firewalls, "
            "/etc/hosts, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        ) from error
    wanted = sum(range(1, len(nodes) + 1))
    if any(total != wanted for total, _ in sums):
        raise ValueError(f"{backend}: expected the sum {wanted} everywhere, got {sums}")
    slowest_s = max(seconds for _, seconds in sums)
    size_mb = 4 * NUM_ELEMENTS / 2**20
    return f"{backend} over {len(nodes)} nodes: {size_mb:.0f} MB summed in {slowest_s * 1e3:.0f} ms"


def free_port() -> int:
    """Return a port that nobody has; in a Ray task."""
    import socket

    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def sum_over_nodes(
    backend: str, init_method: str, rank: int, world_size: int
) -> tuple[float, float]:
    """Return the sum of rank + 1 over the nodes, and the seconds it took; in a Ray task.

    By the interface that gloo and NCCL choose themselves, as in a learner.
    """
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    dist.init_process_group(
        backend, init_method=init_method, rank=rank, world_size=world_size,
        timeout=timedelta(seconds=ROUND_DEADLINE_S),
    )  # fmt: skip
    try:
        device = "cuda" if backend == "nccl" else "cpu"
        numbers = torch.full((NUM_ELEMENTS,), float(rank + 1), device=device)
        warm = torch.zeros(1, device=device)
        dist.all_reduce(warm)
        began = time.monotonic()
        dist.all_reduce(numbers)
        total = float(numbers[-1].item())
        return total, time.monotonic() - began
    finally:
        dist.destroy_process_group()
