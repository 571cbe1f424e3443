"""Clusters as they are written, and what of them contradicts the assumptions."""

from __future__ import annotations

import pytest

from rlvid.launch.estimate.gpu_cluster import (
    KINDS,
    MEMORY_GB,
    GpuCluster,
    assume_cluster,
    read_cluster,
)
from rlvid.observability.mfu import PEAK_BF16


def test_every_peak_has_a_kind_and_a_memory() -> None:
    assert set(KINDS.values()) == set(PEAK_BF16) == set(MEMORY_GB)


@pytest.mark.parametrize(
    "text", ["4x8xH100", "4X8XH100", " 4 x 8 x h100", "4x8xNVIDIA H100 80GB HBM3"]
)
def test_cluster_is_read(text: str) -> None:
    cluster = read_cluster(text)
    assert cluster == GpuCluster(num_nodes=4, gpus_per_node=8, gpu="NVIDIA H100 80GB HBM3")
    assert cluster.num_gpus == 32
    assert cluster.memory_gib == pytest.approx(74.5, abs=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H100", "expected NODESxGPUSxKIND"),
        ("0x8xH100", "expected NODESxGPUSxKIND"),
        ("4x8xH101", "'H101' is no kind"),
        ("4x8xA100", "did you mean A100-40GB, A100-80GB"),
    ],
)
def test_what_is_no_cluster_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_cluster(text)


def test_cluster_sets_gpu_and_memory_and_is_not_contradicted() -> None:
    cluster = read_cluster("1x8xH200")
    assumed = assume_cluster(cluster, ["sampling_mfu=0.5"])
    assert (assumed.gpu, assumed.sampling_mfu) == ("NVIDIA H200", 0.5)
    assert assumed.gpu_memory_gib == pytest.approx(131.3, abs=0.02)
    assert assume_cluster(cluster, ["gpu_memory_gib=138"]).gpu_memory_gib == 138
    for setting in ("gpu=NVIDIA B200", "gpu_memory_gib=150"):
        with pytest.raises(ValueError, match="--cluster"):
            assume_cluster(cluster, [setting])
