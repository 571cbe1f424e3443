"""The recipe's split of a cluster and the best one, as text."""

from __future__ import annotations

from rlvid.config import Recipe
from rlvid.launch.estimate.cluster_split import Problem, Split, best_split
from rlvid.launch.estimate.gpu_cluster import GpuCluster
from rlvid.launch.estimate.recipe_split import overrides
from rlvid.launch.estimate.render import figure
from rlvid.launch.estimate.sharing import Held


def split_lines(
    recipe: Recipe, problem: Problem, cluster: GpuCluster, *, price: float | None
) -> list[str]:
    """Return a table of both splits, the overrides that make the one the other, and what it is of.

    Args:
        price: of one GPU for an hour.

    Raises:
        ValueError: no split fits.
    """
    best = best_split(problem)
    if best is None:
        raise ValueError(_why_none(problem, cluster))
    own = problem.own
    heading = ["split", *own, "step s", "GPU-h per 1,000 videos"]
    rows = [heading if price is None else [*heading, "cost per 1,000 videos"]]
    for name, split in (("recipe", own), ("best", best)):
        rows.append([name, *_cells(recipe, problem, cluster, split, price=price)])
    if not problem.own_fits:
        unknown = ["-"] * (len(rows[0]) - len(own) - 1)
        rows[1] = ["recipe: does not fit", *(_held(held) for held in own.values()), *unknown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    changed = overrides(recipe, best)
    return [
        f"a step of grpo on {cluster}:",
        *table,
        f"best: {' '.join(changed)}" if changed else "the recipe's split is the best",
        f"a cell has processes x GPUs: seconds a step; {_pace(recipe)}; the whole cluster is paid, "
        "busy or not. Scorers whose work is not known stay as they are",
    ]


def _pace(recipe: Recipe) -> str:
    if recipe.rollout.max_staleness:
        return "roles work side by side and the slowest sets the pace"
    return "the learner waits for the others, and they for it (rollout.max_staleness is 0)"


def _cells(
    recipe: Recipe, problem: Problem, cluster: GpuCluster, split: Split, *, price: float | None
) -> list[str]:
    seconds, step_s = problem.seconds(split), problem.step_s(split)
    videos = recipe.rollout.groups_per_step * recipe.rollout.group_size
    gpu_hours = cluster.num_gpus * step_s / 3600 / videos * 1000
    cells = [f"{_held(held)}: {figure(seconds[name])}" for name, held in split.items()]
    cells += [figure(step_s), figure(gpu_hours)]
    return cells if price is None else [*cells, figure(gpu_hours * price)]


def _held(held: Held) -> str:
    return f"{held.num_processes} x {held.num_gpus:g}"


def _why_none(problem: Problem, cluster: GpuCluster) -> str:
    """Return why nothing fits: a role's memory, or too few GPUs."""
    large = [role.name for role in problem.roles if not role.counts and not role.fits]
    if large:
        return (
            f"--cluster {cluster}: no number of processes fits into the memory of its GPUs for "
            f"{', '.join(large)}; the plan's table of roles says what takes it"
        )
    return (
        f"--cluster {cluster}: its {cluster.num_gpus} GPUs hold no split, as each role needs at "
        "least one process and scorers and judges stay as they are; take more GPUs"
    )
