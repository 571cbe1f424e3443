"""A sum over all nodes of a cluster, by the way that the ranks of a learner take."""

from __future__ import annotations

import time

from rlvid.launch.cluster_nodes import alive_nodes, on_node

ROUND_DEADLINE_S = 120.0
NUM_ELEMENTS = 2**20


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
    port = ray.get(on_node(nodes[0], free_port).remote(), timeout=ROUND_DEADLINE_S)
    refs = [
        on_node(node, sum_over_nodes, **options).remote(
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
