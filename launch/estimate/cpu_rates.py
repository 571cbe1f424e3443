"""What one core of this machine does of each role's work, measured while the others do the same.

Cores share caches, memory and often the units that compute, so a core alone is faster than it is in
a run, where all are busy: here every core measures at once. A forward costs something whatever its
rows, for the dispatch of its operations, so one of a single row is timed beside one of a group.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING

from rlvid.config import Recipe
from rlvid.launch.estimate.cpu_step import GroupSeconds
from rlvid.launch.memory import branches
from rlvid.launch.planner import forwards_per_step

if TYPE_CHECKING:
    from torch import Tensor

    from rlvid.models.base import VideoModel
    from rlvid.records import Prompt

DEADLINE_S = 600.0
"""For all of it, and for processes to come to the same place."""
LEAST_S = 0.3
"""That the calls of one kind take together."""
LEAST_CALLS = 3
SIGMA = 0.7
"""Noise level of the timed forwards; none is quicker."""

_barrier: Barrier | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuRates:
    """Seconds of one process, all cores being busy; medians of some calls, means over processes."""

    num_cores: int
    """Measured on."""
    row: float
    """A forward of one row with its guidance."""
    group: float
    """A forward of a whole group."""
    learned: float
    """A forward of `learned_rows` and its backward."""
    learned_rows: int
    decode: float
    """Of a group."""
    score: dict[str, float]
    """A group, by the scorer's label."""
    not_measured: tuple[str, ...]
    """Scorers that ask a server, or live in an environment of their own."""


def measure_rates(recipe: Recipe) -> CpuRates:
    """Measure on all cores that this process may use; takes some seconds.

    Raises:
        ValueError: the model cannot be loaded, or a scorer not be opened, or it failed.
        BrokenProcessPool: a process ended.
        TimeoutError: not done within DEADLINE_S.
    """
    num_cores = len(os.sched_getaffinity(0))
    processes = max(1, num_cores // recipe.cluster.threads_per_role)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, context, initializer=_hold, initargs=(context.Barrier(processes),)
    ) as pool:
        found = list(pool.map(_measured, [recipe] * processes, timeout=DEADLINE_S))
    return CpuRates(
        num_cores=num_cores,
        row=statistics.fmean(rates.row for rates in found),
        group=statistics.fmean(rates.group for rates in found),
        learned=statistics.fmean(rates.learned for rates in found),
        learned_rows=found[0].learned_rows,
        decode=statistics.fmean(rates.decode for rates in found),
        score={
            label: statistics.fmean(rates.score[label] for rates in found)
            for label in found[0].score
        },
        not_measured=found[0].not_measured,
    )


def group_seconds(recipe: Recipe, rates: CpuRates) -> GroupSeconds:
    """Return the seconds of a group: the plan's rows and forwards at the measured rates."""
    rollout = recipe.rollout
    sampling, learning = forwards_per_step(recipe)
    rows = sampling / rollout.groups_per_step / branches(rollout.guidance_scale)
    more = (rates.group - rates.row) / max(rollout.group_size - 1, 1)
    learned = learning / rollout.groups_per_step / branches(_learned_scale(recipe))
    return GroupSeconds(
        sample=rollout.num_denoising_steps * (rates.row - more) + rows * more,
        decode=rates.decode,
        score=rates.score,
        learn=learned / rates.learned_rows * rates.learned,
    )


def _hold(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _measured(recipe: Recipe) -> CpuRates:
    """Measure in one process; the others do not wait for one that fails."""
    assert _barrier is not None
    try:
        return _measure(recipe)
    except Exception:
        _barrier.abort()
        raise


def _measure(recipe: Recipe) -> CpuRates:
    """Measure each kind of work at the same time as the other processes do."""
    import torch

    from rlvid.data.prompts import load_prompts
    from rlvid.models import load_model

    torch.set_num_threads(recipe.cluster.threads_per_role)
    model, size = load_model(recipe.model, device="cpu"), recipe.rollout.group_size
    prompt = load_prompts(recipe.prompts)[0]
    velocity = _velocity(recipe, model, prompt, recipe.rollout.guidance_scale)
    clip = recipe.model
    shape = model.latent_shape(clip.num_frames, clip.height, clip.width)
    with torch.no_grad():
        row, group = _seconds(lambda: velocity(1)), _seconds(lambda: velocity(size))
        latents = torch.randn(size, *shape)
        decode = _seconds(lambda: model.decode(latents))
        videos = model.decode(latents)
    score, not_measured = _score_seconds(recipe, videos, prompt)
    rows = _learned_rows(recipe)
    if recipe.learner.mode == "lora":
        from rlvid.models.lora import add_lora

        add_lora(model.transformer, recipe.learner.lora)
    learned = _velocity(recipe, model, prompt, _learned_scale(recipe))
    return CpuRates(
        num_cores=recipe.cluster.threads_per_role,
        row=row,
        group=group,
        learned=_seconds(lambda: learned(rows).sum().backward()),
        learned_rows=rows,
        decode=decode,
        score=score,
        not_measured=not_measured,
    )


def _velocity(
    recipe: Recipe, model: VideoModel, prompt: Prompt, guidance_scale: float
) -> Callable[[int], Tensor]:
    """Return a forward of so many rows of one prompt, with its guidance."""
    import torch

    from rlvid.flow.guidance import guided_velocity
    from rlvid.flow.prompt_condition import prompt_condition

    clip = recipe.model
    shape = model.latent_shape(clip.num_frames, clip.height, clip.width)
    condition, negative = prompt_condition(model, [prompt], shape)

    def velocity(rows: int) -> Tensor:
        latents, sigma = torch.randn(rows, *shape), torch.full((rows,), SIGMA)
        return guided_velocity(model, latents, sigma, condition, negative, guidance_scale)

    return velocity


def _learned_scale(recipe: Recipe) -> float:
    """Return the guidance scale of the forwards that are learned from."""
    return 1.0 if recipe.algorithm.is_forward else recipe.rollout.guidance_scale


def _learned_rows(recipe: Recipe) -> int:
    """Return the rows of one forward of the learner: those of a group, as far as they go in."""
    _, learning = forwards_per_step(recipe)
    rows = learning / recipe.rollout.groups_per_step / branches(_learned_scale(recipe))
    return max(1, min(recipe.learner.micro_batch_rows, round(rows)))


def _score_seconds(
    recipe: Recipe, videos: Tensor, prompt: Prompt
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the seconds of a group by the label of each scorer, and the scorers left out."""
    from rlvid.rewards.scoring import ScoreItem, open_scorer_worker

    frames = (videos * 255).byte().permute(0, 1, 3, 4, 2).contiguous().numpy()
    items = [
        ScoreItem(item_id=(0, row), prompt=prompt, source=0, row=row) for row in range(len(videos))
    ]
    found, left_out = {}, []
    for position, config in enumerate(recipe.rewards.scorers):
        if config.server or config.python or config.runtime_env:
            left_out.append(config.label)
            continue
        worker = open_scorer_worker(config, position)
        score = partial(worker.score, items, [frames], fps=recipe.model.fps)
        failed = next((result for result in score() if result.is_failure), None)
        if failed is not None:
            raise ValueError(f"rewards.scorers.{position}: {config.label!r}: {failed.error}")
        found[config.label] = _seconds(score)
    return found, tuple(left_out)


def _seconds(call: Callable[[], object]) -> float:
    """Return the median of some calls after one to warm up, begun when all processes are here."""
    assert _barrier is not None
    call()
    _barrier.wait(DEADLINE_S)
    found = list[float]()
    while len(found) < LEAST_CALLS or sum(found) < LEAST_S:
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)
