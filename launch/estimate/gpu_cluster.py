"""A cluster as `rlvid plan --cluster "4x8xH100"` names it: nodes x GPUs of a node x kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlvid.launch.estimate.assumptions import Assumptions, read_assumptions

GIB = 2**30

KINDS = {
    "H100": "NVIDIA H100 80GB HBM3",
    "H100-PCIe": "NVIDIA H100 PCIe",
    "H100-NVL": "NVIDIA H100 NVL",
    "H200": "NVIDIA H200",
    "H200-NVL": "NVIDIA H200 NVL",
    "GH200": "NVIDIA GH200 480GB",
    "B200": "NVIDIA B200",
    "A100-40GB": "NVIDIA A100-SXM4-40GB",
    "A100-80GB": "NVIDIA A100-SXM4-80GB",
    "A100-PCIe-40GB": "NVIDIA A100-PCIE-40GB",
    "A100-PCIe-80GB": "NVIDIA A100 80GB PCIe",
    "L40S": "NVIDIA L40S",
    "L40": "NVIDIA L40",
    "L4": "NVIDIA L4",
    "A10": "NVIDIA A10",
    "A40": "NVIDIA A40",
    "RTX4090": "NVIDIA GeForce RTX 4090",
    "RTX3090": "NVIDIA GeForce RTX 3090",
}
"""Short name to the one in `rlvid.observability.mfu.PEAK_BF16`, which has the peak."""

MEMORY_GB = {
    # H100 data sheet: SXM and PCIe 80 GB, NVL 94 GB. H200 data sheet: 141 GB.
    "NVIDIA H100 80GB HBM3": 80,
    "NVIDIA H100 PCIe": 80,
    "NVIDIA H100 NVL": 94,
    "NVIDIA H200": 141,
    "NVIDIA H200 NVL": 141,
    # GH200 data sheet: 96 GB HBM3 beside 480 GB of the CPU.
    "NVIDIA GH200 480GB": 96,
    # DGX B200 data sheet: 1,440 GB of eight.
    "NVIDIA B200": 180,
    # A100 data sheets: in the name.
    "NVIDIA A100-SXM4-40GB": 40,
    "NVIDIA A100-SXM4-80GB": 80,
    "NVIDIA A100-PCIE-40GB": 40,
    "NVIDIA A100 80GB PCIe": 80,
    # L40S, L40, L4, A10 and A40 data sheets.
    "NVIDIA L40S": 48,
    "NVIDIA L40": 48,
    "NVIDIA L4": 24,
    "NVIDIA A10": 24,
    "NVIDIA A40": 48,
    # Ada GPU architecture and GA102 architecture papers, appendix A.
    "NVIDIA GeForce RTX 4090": 24,
    "NVIDIA GeForce RTX 3090": 24,
}
"""Of one GPU, as NVIDIA's data sheets say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCluster:
    """Equal nodes of equal GPUs."""

    num_nodes: int
    gpus_per_node: int
    gpu: str
    """Name in `rlvid.observability.mfu.PEAK_BF16`."""

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node

    @property
    def memory_gib(self) -> float:
        """Of one GPU, its gigabytes read as 10^9 bytes.

        Drivers report up to 7 % more; what they keep for themselves is about that.
        """
        return MEMORY_GB[self.gpu] * 1e9 / GIB

    def __str__(self) -> str:
        return f"{self.num_nodes} x {self.gpus_per_node} x {self.gpu}"


def read_cluster(text: str) -> GpuCluster:
    """Return the cluster of "4x8xH100"; case does not matter.

    Raises:
        ValueError: it is none, or the kind is not known.
    """
    parts = [part.strip() for part in re.split("[xX]", text, maxsplit=2)]
    numbers = parts[:2]
    if len(parts) < 3 or not all(part.isdecimal() and int(part) > 0 for part in numbers):
        raise ValueError(
            "--cluster: expected NODESxGPUSxKIND, two whole numbers of at least 1 and a kind of "
            f"GPU, got {text!r}, e.g. --cluster 4x8xH100"
        )
    num_nodes, gpus_per_node = (int(part) for part in numbers)
    return GpuCluster(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu=_gpu(parts[2]))


def assume_cluster(cluster: GpuCluster, settings: Sequence[str]) -> Assumptions:
    """Return the assumptions of `--assume` with the cluster's GPU and its memory.

    `gpu_memory_gib` may be given as well, to hold some of it back or to take what a driver reports.

    Raises:
        ValueError: a setting is wrong, or contradicts the cluster.
    """
    assumed = read_assumptions(settings)
    given = assumed.model_fields_set
    if "gpu" in given and assumed.gpu != cluster.gpu:
        raise ValueError(
            f"--assume gpu={assumed.gpu}: --cluster says {cluster.gpu}; leave one of them out"
        )
    most = MEMORY_GB[cluster.gpu]
    if assumed.gpu_memory_gib > most and "gpu_memory_gib" in given:
        raise ValueError(
            f"--assume gpu_memory_gib={assumed.gpu_memory_gib:g}: expected at most {most}, the "
            f"memory of the {cluster.gpu} of --cluster; lower it or leave it out"
        )
    memory = assumed.gpu_memory_gib if "gpu_memory_gib" in given else cluster.memory_gib
    return assumed.model_copy(update={"gpu": cluster.gpu, "gpu_memory_gib": memory})


def _gpu(kind: str) -> str:
    names = {short.lower(): name for short, name in KINDS.items()}
    names |= {name.lower(): name for name in KINDS.values()}
    if kind.lower() not in names:
        alike = [short for short in KINDS if kind and short.lower().startswith(kind.lower())]
        raise ValueError(
            f"--cluster: {kind!r} is no kind of GPU whose peak and memory are known; "
            f"{'did you mean' if alike else 'known are'} {', '.join(alike or KINDS)}"
        )
    return names[kind.lower()]
