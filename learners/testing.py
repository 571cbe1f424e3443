"""A tiny real policy, its settings and its groups, for tests of learners and of algorithms."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlvid.algorithms.score_table import RewardTable
from rlvid.config import Recipe
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_group
from rlvid.flow.step_plans import make_step_plan
from rlvid.learners.local_gang import local_gang
from rlvid.learners.rl import RlSettings, rl_settings
from rlvid.models.base import VideoModel
from rlvid.models.noise_levels import sampling_sigmas
from rlvid.models.policy import Policy
from rlvid.records import Prompt, Rollout, RolloutGroup
from rlvid.seeds import derive_seed, prompt_id

IMPORTED_ONCE = ["rlvid.learners.testing_imports"]
PROMPTS = ("a red ball falls", "a blue square moves left", "a green ball rolls", "a red square")


def tiny_recipe(**sections: Mapping[str, Any]) -> Recipe:
    """Return a recipe for `rlvid.testing.tiny_model`; keys of `sections` override its sections."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"num_frames": 9, "height": 16, "width": 16},
        "rollout": {"group_size": 4, "groups_per_step": 4, "num_denoising_steps": 4},
        "rewards": {"scorers": ({"use": "constant", "name": "reward"},)},
        "learner": {"zero_stage": 0, "lora": {"rank": 2, "alpha": 4.0}},
        "evaluate": {"judges": ({"use": "judge"},)},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return Recipe.model_validate({"name": "tiny", "phases": ("grpo",), **tree})


def tiny_settings(recipe: Recipe) -> RlSettings:
    return rl_settings(recipe, Policy(model_path="tiny"))


def tiny_groups(
    model: VideoModel,
    recipe: Recipe,
    *,
    version: int = 0,
    digest: str = "",
    step: int = 0,
    num_groups: int = 4,
) -> dict[str, RolloutGroup]:
    """Sample the groups of a step from `model`, as a rollout actor of that version would."""
    groups = [
        _tiny_group(model, recipe, number, version=version, digest=digest, step=step)
        for number in range(num_groups)
    ]
    return {group.group_id: group for group in groups}


def _tiny_group(
    model: VideoModel, recipe: Recipe, number: int, *, version: int, digest: str, step: int
) -> RolloutGroup:
    """Sample one of these groups, whose number in the step gives its prompt and its seeds."""
    rollout, size = recipe.rollout, recipe.rollout.group_size
    text = PROMPTS[number % len(PROMPTS)]
    plan = make_step_plan(
        rollout,
        recipe_seed=recipe.seed,
        prompt_id=f"{prompt_id(text)}{number}",
        step=step,
        sigmas=sampling_sigmas(rollout.shift, recipe.model, rollout.num_denoising_steps),
    )
    noises = [plan.noise_index(g, size) for g in range(size)]
    noise_seeds = [derive_seed(number, step, noise, "noise") for noise in noises]
    step_seeds = [derive_seed(number, step, g, "step") for g in range(size)]
    positive, negative = model.encode_prompts([text]), model.encode_prompts([""])
    sample = sample_group(
        lambda latents, sigma: guided_velocity(
            model, latents, sigma, positive, negative, rollout.guidance_scale
        ),
        plan,
        noise_seeds=noise_seeds,
        step_seeds=step_seeds,
        latent_shape=model.latent_shape(
            recipe.model.num_frames, recipe.model.height, recipe.model.width
        ),
        device=model.device,
    )
    return RolloutGroup(
        group_id=f"{step:06d}-{number:02d}",
        lease_id="lease",
        prompt=Prompt(prompt_id=prompt_id(text), text=text),
        plan=plan,
        rollouts=tuple(
            Rollout(
                index=g,
                noise_seed=noise_seeds[g],
                step_seed=step_seeds[g],
                latents=sample.latents[g],
                trained_latents=sample.trained_latents[g],
                trained_next_latents=sample.trained_next_latents[g],
                behaviour_mean=sample.behaviour_mean[g],
                behaviour_log_prob=sample.behaviour_log_prob[g],
            )
            for g in range(size)
        ),
        policy_version=version,
        weights_digest=digest,
        actor_id="actor-0.0",
        sample_s=0.0,
        num_forwards=sample.num_forwards,
    )


def tiny_rewards(groups: Mapping[str, RolloutGroup], *, uniform: Sequence[str] = ()) -> RewardTable:
    """Reward each rollout by the brightness of its latents; groups in `uniform` get one value."""
    values = [
        [
            0.5 if group_id in uniform else float(torch.mean(rollout.latents))
            for rollout in group.rollouts
        ]
        for group_id, group in groups.items()
    ]
    return RewardTable(
        group_ids=tuple(groups), values={"reward": torch.tensor(values)}, weights={"reward": 1.0}
    )


def run_ranks(script: Path, num_ranks: int, *arguments: str, timeout_s: float = 240.0) -> list[int]:
    """Run a Python script as `num_ranks` gloo ranks on this machine; return their exit codes.

    Negative codes are signals, as in `subprocess`. The ranks are forks of a process that has
    imported what they need, once.

    Raises:
        TimeoutError: a rank outlived the limit; all are killed.
    """
    environment = local_gang(num_ranks)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    ranks = [
        context.Process(
            target=_run_script,
            args=(script, arguments, {**os.environ, **environment, "RANK": str(rank)}),
        )
        for rank in range(num_ranks)
    ]
    end = time.monotonic() + timeout_s
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(max(end - time.monotonic(), 0.0))
        found = [rank.exitcode for rank in ranks]
    finally:
        for rank in ranks:
            if rank.is_alive():
                rank.kill()
                rank.join()
    codes = [code for code in found if code is not None]
    if len(codes) < num_ranks:
        raise TimeoutError(f"{script}: {num_ranks - len(codes)} ranks overran {timeout_s:g} s")
    return codes


def _run_script(script: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    sys.argv = [str(script), *arguments]
    torch.set_num_threads(1)
    runpy.run_path(str(script), run_name="__main__")
