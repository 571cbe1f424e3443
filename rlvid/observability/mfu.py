"""Model FLOPs utilisation: what the mathematics of the work needs over what the devices could do.

    mfu = FLOPs of the work / (wall seconds * sum of the devices' peaks)

The wall time is all of it, waiting included, so mfu = utilisation while busy * busy share. A device
whose peak is not in the table gives no figure, for a guess would look like a measurement. A device
counts once for each process that uses it, so two on one GPU can reach one half each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

TERA = 1e12

PEAK_BF16 = {
    # H100 data sheet: 1,979 (SXM), 1,513 (PCIe), 1,671 (NVL), "with sparsity".
    "NVIDIA H100 80GB HBM3": 1979 / 2,
    "NVIDIA H100 PCIe": 1513 / 2,
    "NVIDIA H100 NVL": 1671 / 2,
    # H200 data sheet: 1,979 (SXM), 1,671 (NVL), "with sparsity".
    "NVIDIA H200": 1979 / 2,
    "NVIDIA H200 NVL": 1671 / 2,
    # GH200 data sheet: 1,979 "with sparsity".
    "NVIDIA GH200 480GB": 1979 / 2,
    # HGX B200 data sheet: 36 PFLOPS of eight "with sparsity".
    "NVIDIA B200": 36_000 / 8 / 2,
    # A100 data sheet: 312, 624 with sparsity.
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    # L40S data sheet: 362.05, 733 with sparsity. L40: 181.05, 362.1. L4: 242 with sparsity.
    "NVIDIA L40S": 362.05,
    "NVIDIA L40": 181.05,
    "NVIDIA L4": 121.0,
    # A10 data sheet: 125, 250 with sparsity. A40: 149.7, 299.4.
    "NVIDIA A10": 125.0,
    "NVIDIA A40": 149.7,
    # Ada GPU architecture paper, appendix A: 165.2 with float32 accumulation.
    "NVIDIA GeForce RTX 4090": 165.2,
    # GA102 architecture paper, appendix A: 71 with float32 accumulation.
    "NVIDIA GeForce RTX 3090": 71.0,
}
"""Name as `torch.cuda.get_device_name` gives it, whole, to dense bfloat16 TFLOP/s.

Whole, since "H100" alone is one of three, a laptop's 4090 is no 4090, and a MIG slice is a part.
"""


@cache
def device_name() -> str:
    """Return the name of this process's device, "" without a GPU; for a process that uses it."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def peak_flops(device_name: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a device, None for one that is not in the table."""
    peak = PEAK_BF16.get(device_name)
    return None if peak is None else peak * TERA


def total_peak(device_names: Iterable[str]) -> float | None:
    """Return the FLOP/s of all devices together, None when one is unknown or there is none."""
    peaks = [peak_flops(name) for name in device_names]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known and len(known) == len(peaks) else None


def mfu(flops: float, wall_s: float, peak: float | None) -> float | None:
    """Return the utilisation in [0, 1], None when the peak is unknown.

    Args:
        flops: of the work that all devices of a role did, e.g. rows * `RowFlops.forward`.
        wall_s: seconds, waiting included.
        peak: FLOP/s of the role's devices together.
    """
    return flops / (wall_s * peak) if peak and wall_s > 0 else None


def mfu_metrics(wall_s: float, **roles: tuple[float, float | None]) -> dict[str, float]:
    """Return mfu/<role>/frac of a step, each where its devices are known.

    Args:
        roles: FLOPs of the step's work, and FLOP/s of the role's devices together.
    """
    found = {role: mfu(flops, wall_s, peak) for role, (flops, peak) in roles.items()}
    return {f"mfu/{role}/frac": value for role, value in found.items() if value is not None}


def scorer_mfu_metrics(wall_s: float, row: Mapping[str, float]) -> dict[str, float]:
    """Return rewards/<scorer>/mfu_frac of the scorers whose FLOPs and devices are known.

    Args:
        row: the step's metrics; rewards/<scorer>/tflop and .../peak_tflops are used.
    """
    found = {}
    for name, tflop in row.items():
        scorer = name.removesuffix("/tflop")
        if scorer == name or not scorer.startswith("rewards/"):
            continue
        peak = row.get(f"{scorer}/peak_tflops", 0.0) * TERA
        value = mfu(tflop * TERA, wall_s, peak)
        if value is not None:
            found[f"{scorer}/mfu_frac"] = value
    return found
