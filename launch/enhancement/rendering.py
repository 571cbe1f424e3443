"""Has rewrites rendered and scored: the same noise for all of a prompt, the user's words for judge.

A rewrite's prompt keeps the user's text, facts and questions and carries the rewrite beside them;
the rollout actor is shown the rewrite, and every scorer the user's words. Letters: P prompts, G
rewrites of a prompt, C clips of a rewrite, R rewrites that are rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.config import Recipe
from rlvid.enhancement.answer import Answer, to_render
from rlvid.enhancement.rewards import clip_means
from rlvid.flow.step_plans import ode_plan
from rlvid.launch.groups import ScoredGroup, recipe_sigmas
from rlvid.launch.loop.line import Issue
from rlvid.launch.roles import SamplingRoles
from rlvid.records import GroupTask, Prompt
from rlvid.seeds import derive_seed

DONE = "prompt_enhancement"
"""Why the ledger drops a group: no policy learns from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteRendering:
    """Everything besides the text that decides what a rewrite's clips look like."""

    sigmas: tuple[float, ...]
    guidance_scale: float
    num_clips: int
    """Of a rewrite."""
    seed: int

    def noise_seeds(self, prompt: Prompt, visit: int) -> tuple[int, ...]:
        """Return the seed of each clip: of the user's prompt, the same for all its rewrites."""
        return tuple(
            derive_seed(self.seed, prompt.prompt_id, visit, "rewrite clip", index)
            for index in range(self.num_clips)
        )

    def task(self, prompt: Prompt, *, group_id: str, visit: int) -> GroupTask:
        """Return the group that renders one rewrite: Euler steps, no noise on the way."""
        seeds = self.noise_seeds(prompt, visit)
        return GroupTask(
            group_id=group_id,
            lease_id="",
            prompt=prompt,
            plan=ode_plan(self.sigmas, num_noises=self.num_clips),
            noise_seeds=seeds,
            step_seeds=seeds,
            guidance_scale=self.guidance_scale,
        )

    def issues(
        self,
        prompts: Sequence[tuple[Prompt, int]],
        answers: Sequence[Sequence[Answer]],
        *,
        step: int,
    ) -> dict[tuple[int, int], Issue]:
        """Return the group of every well-formed answer [P][G] by (row, column).

        Args:
            prompts: [P] with their visits.
        """
        found = {}
        for (row, column), prompt in to_render([prompt for prompt, _ in prompts], answers):
            group_id = f"{step:06d}-{row:03d}-{column:02d}"
            task = self.task(prompt, group_id=group_id, visit=prompts[row][1])
            found[row, column] = Issue(task=task, step=step)
        return found


def rendering_of(recipe: Recipe) -> RewriteRendering:
    """Return how the recipe's prompt_enhancement renders."""
    config = recipe.prompt_enhancement
    return RewriteRendering(
        sigmas=recipe_sigmas(recipe, config.num_denoising_steps),
        guidance_scale=config.guidance_scale or recipe.rollout.guidance_scale,
        num_clips=config.clips_per_rewrite,
        seed=recipe.seed,
    )


def score_rewrites(
    roles: SamplingRoles,
    issues: dict[tuple[int, int], Issue],
    *,
    scorers: Sequence[str],
    shape: tuple[int, int],
) -> dict[str, Tensor]:
    """Have rewrites rendered and scored; return scorer to [P, G], NaN where there is no score.

    A group whose prompt cost too many actors is dropped by the line; its place stays NaN.
    """
    groups = roles.run_issues(list(issues.values()))
    for group in groups:
        roles.ledger.drop(group.task.group_id, DONE)
    place_of = {issue.task.group_id: place for place, issue in issues.items()}
    places = [place_of[group.task.group_id] for group in groups]
    return clip_means(scores_of(groups, scorers), places, shape)


def scores_of(groups: Sequence[ScoredGroup], scorers: Sequence[str]) -> dict[str, Tensor]:
    """Return scorer to [R, C], NaN where it gave none."""
    num_clips = max((len(group.task.noise_seeds) for group in groups), default=1)
    tables = {name: torch.full((len(groups), num_clips), torch.nan) for name in scorers}
    for row, group in enumerate(groups):
        for score in group.scores.scores:
            if score.scorer in tables and score.value is not None:
                tables[score.scorer][row, score.index] = score.value
    return tables
