"""What each RL engine makes of the same number of samples, on the tiny default. Prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.engines_table --keep FOLDER

Every engine trains from the quickstart recipe with as many rollouts as it has, and is evaluated on
held-out prompts against the base, sampled as the engine samples (nft without guidance). refl
follows the gradient of a reward of its own, which is none of the columns. Costs are
CPU-minutes of all processes of a run, evaluation included. Drift is how far the policy went: the
mean square of its velocity minus the base's, as a share of the base's own, at noised clips of the
base.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlvid.algorithms.flow_matching import add_noise
from rlvid.config import Recipe
from rlvid.config.loader import load_recipe
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import initial_noise, sample_ode
from rlvid.launch.groups import recipe_sigmas
from rlvid.launch.heldout import heldout_prompts
from rlvid.launch.run import artifacts_of
from rlvid.models.policy import Policy, open_policy
from rlvid.seeds import derive_seed
from tests.bench.marked_cpu import recipe_minutes
from tests.bench.timing import environment, t_interval

RECIPE = "quickstart_cpu"
ODE = ("rollout.step_plan.kind=ode", "rollout.initial_noise=independent")
LEVELS = "algorithm.forward.num_noise_levels=2"
"""Fewer than the default of six: a row costs a forward of every policy that is compared with, while
the rollouts of a group share grpo's forward of the one step that is trained."""
ENGINES: Mapping[str, Sequence[str]] = {
    "grpo": (),
    "nft": ("algorithm.use=nft", "rollout.guidance_scale=1.0", LEVELS, *ODE),
    "awm": ("algorithm.use=awm", LEVELS, *ODE),
    "dpo": ("algorithm.use=dpo", LEVELS, *ODE),
    "refl": ("algorithm.use=refl", "algorithm.refl.reward.use=video_text", *ODE),
    # Two initial noises of four branches at one step: a group has eight rollouts, the paper's 24.
    "tempflow": (
        "algorithm.step_weight=tempflow",
        "rollout.step_plan.kind=branch",
        "rollout.step_plan.num_branches=4",
    ),
    # Two branches at each of the first four steps of one trajectory: published are six at each of
    # all but the last, of four.
    "tempflow_each": (
        "algorithm.step_weight=tempflow",
        "rollout.step_plan.kind=branch",
        "rollout.step_plan.branch_at=each",
    ),
    # One tree of eight leaves. Published is noise between the splits too, which is trained as well:
    # 29 forwards a group with a gradient, where the three splits have 7 and grpo has one.
    "branch": (
        "rollout.step_plan.kind=tree",
        "rollout.step_plan.split_steps=[0,2,4]",
        "rollout.step_plan.between=ode",
    ),
    # With noise at two more steps, which move over all: 13 forwards in the mean of their places.
    "branch_mix": (
        "rollout.step_plan.kind=tree",
        "rollout.step_plan.split_steps=[0,2,4]",
        "rollout.step_plan.between=window",
        "rollout.step_plan.num_steps=2",
        "rollout.step_plan.window_every=1",
    ),
    # As published, with half the leaves behind the last split: 21 forwards in place of 29.
    "branch_pruned": (
        "rollout.step_plan.kind=tree",
        "rollout.step_plan.split_steps=[0,2,4]",
        "algorithm.tree.width=best_child",
        "learner.replay=batched",
    ),
}
"""What each changes in the recipe."""
TREES = ("tempflow", "tempflow_each", "branch", "branch_mix", "branch_pruned")
"""Step plans of grpo."""
RESULT = "engine.json"
DRIFT_PROMPTS = 16
DRIFT_SIGMAS = (0.2, 0.5, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--keep", type=Path, help="folder for the runs; else a temporary one")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="of the recipe, for all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="engines_") as name:
        folder = arguments.keep or Path(name)
        runs = [
            run_engine(
                folder / f"{engine}-{seed}",
                arguments.recipe,
                [f"seed={seed}", *ENGINES[engine], *arguments.changes],
            )
            | {"engine": engine, "seed": seed}
            for seed in range(arguments.seeds)
            for engine in arguments.engines
        ]
    result = {
        "environment": environment(torch.device("cpu")),
        "recipe": arguments.recipe,
        "changes": arguments.changes,
        "runs": runs,
        "engines": [
            summary(engine, [run for run in runs if run["engine"] == engine])
            for engine in arguments.engines
        ],
    }
    print(json.dumps(result, indent=1))


def run_engine(run: Path, recipe_name: str, changes: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate, unless the folder has it finished; return what came of it."""
    written = run / RESULT
    if not written.exists():
        minutes = recipe_minutes(run, recipe_name, changes)
        recipe, artifacts = load_recipe(recipe_name, tuple(changes)), artifacts_of(run)
        rollout = recipe.rollout
        assert artifacts.evaluation is not None, f"{recipe_name} does not evaluate"
        rows = json.loads(Path(artifacts.evaluation).read_text())["rows"]
        keys = ("trained", "before", "after", "difference", "low", "high")
        found = {
            "samples": recipe.grpo.num_steps * rollout.groups_per_step * rollout.group_size,
            "cpu_minutes": round(minutes, 2),
            "drift": round(drift(recipe, artifacts.policy), 5),
            "rows": {row["name"]: {key: row[key] for key in keys} for row in rows},
        }
        written.write_text(json.dumps(found))
    loaded: dict[str, Any] = json.loads(written.read_text())
    return loaded


@torch.no_grad()
def drift(recipe: Recipe, policy: Policy) -> float:
    """Return the mean square of velocity minus the base's, divided by that of the base's."""
    base = open_policy(Policy(model_path=recipe.model.path), recipe.model)
    trained = open_policy(policy, recipe.model)
    config, evaluate = recipe.model, recipe.evaluate
    shape = base.latent_shape(config.num_frames, config.height, config.width)
    sigmas = recipe_sigmas(recipe, evaluate.num_denoising_steps)
    scale = evaluate.guidance_scale or recipe.rollout.guidance_scale
    moved, size = 0.0, 0.0
    for prompt in heldout_prompts(recipe, DRIFT_PROMPTS):
        condition, negative = base.encode_prompts([prompt.text]), base.encode_prompts([""])
        start = initial_noise(derive_seed(0, prompt.prompt_id, "drift"), shape)[None]
        clean = sample_ode(
            lambda latents, sigma, p=condition, n=negative: guided_velocity(  # type: ignore[misc]
                base, latents, sigma, p, n, scale
            ),
            start,
            sigmas,
        )
        sigma = torch.tensor(DRIFT_SIGMAS)
        noise = initial_noise(derive_seed(0, prompt.prompt_id, "again"), (len(sigma), *shape))
        latents = add_noise(clean.expand(len(sigma), *shape), noise, sigma)
        rows = condition.expand(len(sigma))
        first, now = (model.velocity(latents, sigma, rows) for model in (base, trained))
        moved += float((now - first).square().sum())
        size += float(first.square().sum())
    return moved / size


def summary(engine: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the line of an engine: means over the seeds, gains with Student's t.

    With one seed the intervals are those of the evaluation, over its prompts.
    """
    gains = {}
    for name, row in runs[0]["rows"].items():
        values = [run["rows"][name]["difference"] for run in runs]
        interval = t_interval(values) if len(runs) > 1 else (row["low"], row["high"])
        gains[name] = {
            "trained": row["trained"],
            "before": round(statistics.fmean(run["rows"][name]["before"] for run in runs), 4),
            "gain": round(statistics.fmean(values), 4),
            "interval": [round(bound, 4) for bound in interval],
        }
    return {
        "engine": engine,
        "samples": runs[0]["samples"],
        "cpu_minutes": round(statistics.fmean(run["cpu_minutes"] for run in runs), 1),
        "drift": round(statistics.fmean(run["drift"] for run in runs), 5),
        "gains": gains,
    }


if __name__ == "__main__":
    main()
