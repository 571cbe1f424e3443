"""What clocks of `wan_iteration` and FLOPs make: speed, utilisation, and the planner's error."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlvid.observability.mfu import mfu, peak_flops
from tests.bench.phase_clock import PhaseClock
from tests.bench.wan_iteration_plan import (
    Counts,
    clip_decode_flops,
    planned_peaks_gib,
    planned_seconds,
)
from tests.bench.wan_model import BenchSettings, flops_of_row

PHASES = ("denoise", "decode", "guards", "critics", "replay", "train", "optimizer_step")
PHASES_OF = {
    "actors": ("denoise",),
    "decoder": ("decode",),
    "learner": ("replay", "train", "optimizer_step"),
}
"""Of the roles that the planner gives seconds to; guards and critics work on the CPU."""
WANTED = {"denoising_mfu": 0.40, "planned_seconds_frac": 0.25, "planned_peak_frac": 0.15}
"""What is to be shown on a GPU: at least so much, and errors within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Clocks of whole iterations of one plan."""

    clocks: Sequence[PhaseClock]
    sampled_latents: int
    """Handed to the transformer in one iteration; with guidance it sees each twice."""
    learned_latents: int
    device_name: str
    """As torch names a GPU; "" without one."""
    critic_s: Sequence[Mapping[str, float]] = ()
    """Seconds of each critic by its label, of each iteration."""
    critic_flops: Mapping[str, float | None] = field(default_factory=dict)
    """Of scoring one group, as torch counts them; None where they are not known."""


def figures(settings: BenchSettings, counts: Counts, measured: Measured) -> dict[str, Any]:
    """Return "phases", "roles", "critics" and "iteration" of a result file."""
    seconds = {name: _median(measured, (name,)) for name in PHASES}
    run, needed = run_flops(settings, measured), needed_flops(settings, measured)
    planned = planned_seconds(settings, measured.device_name)
    peaks = planned_peaks_gib(settings, counts)
    roles = {}
    for role, phases in PHASES_OF.items():
        took, peak = _median(measured, phases), _peak_gib(measured, phases)
        expected = None if planned is None else planned[role]
        roles[role] = {
            "seconds": took,
            "tflop_needed": needed[role] / 1e12,
            "mfu": mfu(needed[role], took, peak_flops(measured.device_name)),
            "planned_s": expected,
            "planned_s_error_frac": error_frac(expected, took),
            "peak_memory_gib": peak,
            "planned_peak_gib": peaks[role],
            "planned_peak_error_frac": error_frac(peaks[role], peak),
        }
    whole = _median(measured, PHASES)
    covered = _median(measured, [name for phases in PHASES_OF.values() for name in phases])
    total = None if planned is None else sum(planned.values())
    return {
        "phases": {
            name: {
                "seconds_median": seconds[name],
                "seconds": [clock.seconds[name] for clock in measured.clocks],
                "tflop": run[name] / 1e12 if name in run else None,
                "tflop_per_s": run[name] / 1e12 / seconds[name] if name in run else None,
                "peak_memory_gib": _peak_gib(measured, (name,)),
            }
            for name in PHASES
        },
        "roles": roles,
        "critics": {label: critic_figures(label, measured) for label in measured.critic_flops},
        "iteration": {
            "seconds": whole,
            "seconds_planned_for": covered,
            "planned_s": total,
            "planned_s_error_frac": error_frac(total, covered),
            "planned_s_error_of_all_frac": error_frac(total, whole),
            "peak_memory_gib": _peak_gib(measured, PHASES),
        },
        "wanted": WANTED,
    }


def critic_figures(label: str, measured: Measured) -> dict[str, float | None]:
    """Return seconds of a critic; TFLOP and utilisation where its FLOPs are known."""
    took = statistics.median(seconds[label] for seconds in measured.critic_s)
    flops = measured.critic_flops[label]
    return {
        "seconds": took,
        "tflop": None if flops is None else flops / 1e12,
        "mfu": None if flops is None else mfu(flops, took, peak_flops(measured.device_name)),
    }


def run_flops(settings: BenchSettings, measured: Measured) -> dict[str, float]:
    """Return what the device is asked for in each phase, recomputed layers included."""
    row, branches = flops_of_row(settings), settings.branches
    learned = branches * measured.learned_latents
    return {
        "denoise": branches * measured.sampled_latents * row.forward,
        "decode": settings.rollout.group_size * clip_decode_flops(settings),
        "replay": learned * row.forward,
        "train": learned * (row.trained - row.forward),
    }


def needed_flops(settings: BenchSettings, measured: Measured) -> dict[str, float]:
    """Return what the mathematics of each role asks for, which utilisation counts."""
    run = run_flops(settings, measured)
    rows = settings.branches * measured.learned_latents
    learned = flops_of_row(settings).learned(base_is_frozen=True)
    return {"actors": run["denoise"], "decoder": run["decode"], "learner": rows * learned}


def error_frac(planned: float | None, found: float | None) -> float | None:
    """Return by how much a plan is above what was measured; None where either is unknown."""
    return None if planned is None or not found else planned / found - 1.0


def _median(measured: Measured, phases: Sequence[str]) -> float:
    """Return the median over the iterations of what phases took together."""
    return statistics.median(sum(c.seconds[name] for name in phases) for c in measured.clocks)


def _peak_gib(measured: Measured, phases: Sequence[str]) -> float | None:
    peaks = [c.peak_bytes[name] for c in measured.clocks for name in phases if name in c.peak_bytes]
    return max(peaks) / 2**30 if peaks else None
