"""Seconds of a call and the environment they were measured in; shared by the benchmarks."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571)
"""Student's t with 1 to 5 degrees of freedom, two-sided 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Repeated runs of one call."""

    seconds: tuple[float, ...]
    peak_memory_bytes: int | None
    """Most that torch had allocated on the GPU at once, weights included; None on a CPU."""

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    def to_json(self, *, flops: int) -> dict[str, Any]:
        """Return the figures of a result file.

        Args:
            flops: of one call.
        """
        peak = self.peak_memory_bytes
        return {
            "seconds_median": self.median_s,
            "seconds": list(self.seconds),
            "tflop": flops / 1e12,
            "tflop_per_s": flops / 1e12 / self.median_s,
            "peak_memory_gib": None if peak is None else peak / 2**30,
        }


def measure(function: Callable[[], object], device: torch.device, *, repeats: int) -> Timing:
    """Time `repeats` calls after one to warm up; the GPU is waited for before and after each."""
    on_cuda = device.type == "cuda"

    def timed() -> float:
        if on_cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        if on_cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    timed()
    return Timing(
        seconds=tuple(timed() for _ in range(repeats)),
        peak_memory_bytes=torch.cuda.max_memory_allocated(device) if on_cuda else None,
    )


def t_interval(values: Sequence[float], *, of_one_more: bool = False) -> tuple[float, float]:
    """Return the two-sided 95 % interval of the mean by Student's t; NaN for a single value.

    Args:
        of_one_more: where another value lies instead, which is wider.
    """
    if len(values) < 2:
        return math.nan, math.nan
    middle, spread = statistics.fmean(values), statistics.stdev(values)
    half = T_95[len(values) - 2] * spread * (of_one_more + 1 / len(values)) ** 0.5
    return middle - half, middle + half


def environment(device: torch.device) -> dict[str, Any]:
    """Return the kind of hardware (never a machine's name), versions and commit."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    on_cuda = device.type == "cuda"
    machine = platform.machine().replace("_", "-")
    cpu = f"{os.cpu_count()}-core {machine} CPU, no GPU"
    return {
        "hardware": torch.cuda.get_device_name(device) if on_cuda else cpu,
        "threads": torch.get_num_threads(),
        # Above the number of cores, others were using the machine and times are upper bounds.
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_cuda else None,
        "commit": described.stdout.strip(),
    }
