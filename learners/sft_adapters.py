"""One LoRA adapter for each dimension of a data set: which, where, from which seed, how long.

    adapters/<number>_<dimension>/policy        the adapter, as diffusers' pipelines load it
    adapters/<number>_<dimension>/checkpoints   of its training
    adapters/<number>_<dimension>/done.json     written last
    adapters.json                               base, rule and all adapters, for another merge

Pure plans; the phase `sft` trains them one after the other, each as a learner of its own.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlvid import durable
from rlvid.config import Recipe, SftConfig
from rlvid.learners.sft import SftSettings, sft_settings
from rlvid.learners.training_set import count_clips
from rlvid.models.policy import Policy
from rlvid.seeds import derive_seed

DONE = "done.json"
INDEX = "adapters.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlan:
    """One adapter."""

    dimension: str
    num_clips: int
    folder: Path
    seed: int
    """Of its start, its batches and its noise."""
    first_step: int
    """Steps of the phase that the adapters before it take."""
    num_steps: int
    weight: float
    """In the merge."""

    @property
    def is_done(self) -> bool:
        return (self.folder / DONE).is_file()

    def set_done(self) -> None:
        """Say that its policy is whole; it is not trained again."""
        durable.sync_tree(self.folder)
        tree = {"dimension": self.dimension, "num_steps": self.num_steps, "seed": self.seed}
        durable.write_file(self.folder / DONE, [(json.dumps(tree, indent=1) + "\n").encode()])


def plan_adapters(recipe: Recipe, folder: Path) -> tuple[AdapterPlan, ...]:
    """Return the adapters of the recipe's data set, in order of the dimensions' names.

    Everything that could stop one of them is looked at here, before the first is trained.

    Args:
        folder: of the phase.

    Raises:
        ValueError: no data set, fewer than two dimensions, fewer steps than dimensions, weights of
            dimensions that are not there, or none above 0.
    """
    config = recipe.sft
    counts = count_clips(config)
    _check(config, list(counts))
    share, rest = divmod(config.num_steps, len(counts))
    plans: list[AdapterPlan] = []
    for number, (dimension, num_clips) in enumerate(counts.items()):
        plans.append(
            AdapterPlan(
                dimension=dimension,
                num_clips=num_clips,
                folder=folder / "adapters" / f"{number:02d}_{_file_name(dimension)}",
                seed=derive_seed(recipe.seed, "adapter", dimension),
                first_step=sum(plan.num_steps for plan in plans),
                num_steps=share + (number < rest),
                weight=config.merge.weights.get(dimension, 1.0),
            )
        )
    return tuple(plans)


def adapter_settings(
    recipe: Recipe, policy: Policy, plan: AdapterPlan, folder: Path
) -> SftSettings:
    """Return the learner's settings; `folder`, of the phase, keeps real clips encoded for all."""
    settings = sft_settings(recipe, policy, folder)
    trainee = replace(settings.trainee, seed=plan.seed, total_steps=plan.num_steps)
    return replace(settings, trainee=trainee, dimension=plan.dimension)


def write_index(
    folder: Path, base: Policy, config: SftConfig, plans: Sequence[AdapterPlan]
) -> None:
    """Write what was merged and how, so that it can be merged otherwise."""
    tree = {
        "base": base.to_json(),
        "merge": config.merge.model_dump(mode="json"),
        "adapters": [
            {
                "dimension": plan.dimension,
                "folder": plan.folder.relative_to(folder).as_posix(),
                "weight": plan.weight,
                "num_clips": plan.num_clips,
                "num_steps": plan.num_steps,
            }
            for plan in plans
        ],
    }
    durable.write_file(folder / INDEX, [(json.dumps(tree, indent=1) + "\n").encode()])


def _check(config: SftConfig, dimensions: Sequence[str]) -> None:
    there = ", ".join(dimensions) or "none"
    if len(dimensions) < 2:
        raise ValueError(
            f"sft.balance: 'adapters' trains one for each dimension: expected two or more in the "
            f"data set {config.clips!r}, got {len(dimensions)} ({there}). Take balance none, or "
            "have phase data_engine write for more dimensions"
        )
    if config.num_steps < len(dimensions):
        raise ValueError(
            f"sft.num_steps: balance 'adapters' shares them out among the dimensions: expected at "
            f"least {len(dimensions)}, got {config.num_steps}; raise it"
        )
    for name in config.merge.weights:
        if name not in dimensions:
            near = difflib.get_close_matches(name, dimensions, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there: {there}"
            raise ValueError(
                f"sft.merge.weights: no dimension {name!r} in the data set {config.clips!r}; {hint}"
            )
    if not any(config.merge.weights.get(name, 1.0) > 0.0 for name in dimensions):
        raise ValueError(
            f"sft.merge.weights: expected one above 0, got 0 for all of {there}; the policy would "
            "be the base"
        )


def _file_name(dimension: str) -> str:
    """Return the name with nothing in it that a file system or TensorBoard could mind."""
    return re.sub(r"[^a-z0-9]+", "_", dimension.lower()).strip("_")
