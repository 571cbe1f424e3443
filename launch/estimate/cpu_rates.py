"""What one core of this machine does of each role's work, measured while the others do the same.

Cores share caches, memory and often the units that compute, so a core alone is faster than it is in
a run, where all are busy: here they all do the same at once (`role_rounds.py`), as far as a run has
processes for them.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from statistics import fmean, median

from rlvid.config import Recipe
from rlvid.launch.estimate.cpu_step import GroupSeconds, processes_of
from rlvid.launch.estimate.role_rounds import GROUPS, RoundSeconds, is_timed, run_rounds
from rlvid.launch.memory import branches
from rlvid.launch.planner import forwards_per_step

DEADLINE_S = 600.0
"""For all of it, and for processes to come to the same place."""

_barrier: Barrier | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuRates:
    """Seconds of one process, all cores being busy; medians of some calls, means over processes."""

    num_cores: int
    """That this process may use."""
    latent: float
    """Sampling, for each latent that is handed to the transformer, with its guidance."""
    decode: float
    """Of a group."""
    score: dict[str, float]
    """A group, by the scorer's label."""
    learn: float
    """Forwards and backwards of a group, once."""
    update: float
    """The optimiser's steps and the publish, of one rank."""
    not_measured: tuple[str, ...]
    """Scorers that ask a server, or live in an environment of their own."""


def measure_rates(recipe: Recipe) -> CpuRates:
    """Measure on the cores that this process may use; takes some seconds, and some groups.

    Raises:
        ValueError: the model cannot be loaded, or a scorer not be opened, or it failed.
        BrokenProcessPool: a process ended.
        TimeoutError: not done within DEADLINE_S.
    """
    num_cores, threads = len(os.sched_getaffinity(0)), recipe.cluster.threads_per_role
    processes = max(1, min(num_cores // threads, sum(processes_of(recipe).values())))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, context, initializer=_hold, initargs=(context.Barrier(processes),)
    ) as pool:
        found = list(pool.map(_measured, [recipe] * processes, timeout=DEADLINE_S))
    return CpuRates(
        num_cores=num_cores,
        latent=_mean(rounds.sample for rounds in found),
        decode=_mean(rounds.decode for rounds in found),
        score={label: _mean(rounds.score[label] for rounds in found) for label in found[0].score},
        learn=_mean(rounds.learn for rounds in found),
        update=fmean(update_seconds(recipe, rounds) for rounds in found),
        not_measured=tuple(
            config.label for config in recipe.rewards.scorers if not is_timed(config)
        ),
    )


def group_seconds(recipe: Recipe, rates: CpuRates) -> GroupSeconds:
    """Return the seconds of a group: the latents of the plan's forwards at the measured rate."""
    rollout = recipe.rollout
    sampling, _ = forwards_per_step(recipe)
    latents = sampling / rollout.groups_per_step / branches(rollout.guidance_scale)
    return GroupSeconds(
        sample=latents * rates.latent,
        decode=rates.decode,
        score=rates.score,
        learn=recipe.algorithm.updates_per_batch * rates.learn,
        update=rates.update,
    )


def _mean(calls: Iterable[Sequence[float]]) -> float:
    return fmean(map(median, calls))


def update_seconds(recipe: Recipe, rounds: RoundSeconds) -> float:
    """Return what the end of a step takes beside its last group and later turns at all of them."""
    turns = 1 + GROUPS * (recipe.algorithm.updates_per_batch - 1)
    return max(0.0, median(rounds.update) - turns * median(rounds.learn))


def _hold(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _measured(recipe: Recipe) -> RoundSeconds:
    """Measure in one process; the others do not wait for one that fails."""
    assert _barrier is not None
    try:
        return run_rounds(recipe, partial(_barrier.wait, DEADLINE_S))
    except Exception:
        _barrier.abort()
        raise
