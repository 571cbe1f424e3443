"""Paired evaluation of the run's policy against its base on held-out prompts.

Both policies sample the same prompts from the same noise with a pinned ODE sampler; the training
scorers and at least one judge that did not train score them; differences get a bootstrap interval
that resamples whole prompts. With `evaluate.stages` what every phase left is measured alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from rlvid.config import Recipe
from rlvid.data.video_files import write_mp4
from rlvid.evaluation.dimension_mean import mean_of_means_bootstrap
from rlvid.evaluation.drift import Pair
from rlvid.evaluation.statistics import Interval, paired_bootstrap
from rlvid.launch.enhancement.apply import ShownPrompts, enhanced_prompts
from rlvid.launch.groups import recipe_sigmas
from rlvid.launch.heldout import Measurement, heldout_prompts, measure, with_judges
from rlvid.launch.phases.base import Artifacts, PhaseContext
from rlvid.launch.roles import SamplingRoles, open_sampling
from rlvid.launch.stage_table import REWARD, stage_lines, stages_tree
from rlvid.launch.stages import StageSampler, plan_stages
from rlvid.models.policy import Policy
from rlvid.observability.progress import open_progress
from rlvid.records import Prompt

DIMENSIONS = "dimensions"
"""Name of the mean over `evaluate.dimensions`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row of the evaluation table."""

    name: str
    trained: bool
    """Whether this number was trained on; at least one row was not."""
    before: float
    after: float
    difference: float
    low: float
    high: float
    win_rate: float
    num_pairs: int
    num_missing: int
    """Pairs without a score from either policy; they are left out of the row."""


class Evaluate:
    """Writes evaluation.json and the clips of the report."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        recipe = with_judges(context.recipe)
        prompts = heldout_prompts(recipe, recipe.evaluate.num_prompts)
        after_policy = _chosen(recipe, artifacts)
        ledger = context.folder / "ledger.sqlite"
        stages = plan_stages(recipe, artifacts)
        with (
            open_sampling(recipe, artifacts.base_policy, None, ledger) as roles,
            open_progress("evaluate", 2 + stages.num_cells) as progress,
        ):
            roles.wait_ready()
            roles.ledger.forget_from(0)  # of an attempt that was stopped
            before = self._measure(recipe, roles, prompts, "base", context)
            shown = enhanced_prompts(recipe, prompts)
            progress.step_done(0, before.metrics())
            roles.rollouts.use_policy(after_policy, recipe.cluster.start_deadline_s)
            after = self._measure(recipe, roles, shown.prompts, "after", context)
            progress.step_done(1, after.metrics())
            sampler = StageSampler(recipe=recipe, roles=roles, folder=context.folder)
            sampler.remember(artifacts.base_policy, ShownPrompts(prompts=prompts), before)
            sampler.remember(after_policy, shown, after)
            cells = []
            for number, cell in enumerate(sampler.cells(stages)):
                cells.append(cell)
                progress.step_done(2 + number, {})
        table = compare(recipe, before, after)
        path = context.folder / "evaluation.json"
        tree = {
            **_settings(recipe),
            **shown.to_json(),
            "students": _students(before=artifacts.base_policy, after=after_policy),
            "rows": _rows(table),
            "pairs": _pairs(shown.prompts, before, after),
            **stages_tree(recipe, cells),
        }
        path.write_text(json.dumps(tree, indent=1) + "\n")
        for line in (*shown.lines(), *stage_lines(tree)):
            progress.say(line)
        for row in table:
            progress.say(
                f"{row.name}: {row.before:.4f} -> {row.after:.4f}, difference "
                f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}], "
                f"better on {row.win_rate:.0%} of {row.num_pairs} pairs"
            )
        return replace(artifacts, evaluation=str(path))

    def _measure(
        self,
        recipe: Recipe,
        roles: SamplingRoles,
        prompts: tuple[Prompt, ...],
        label: str,
        context: PhaseContext,
    ) -> Measurement:
        measured = measure(
            recipe,
            roles.run_issues,
            roles.ledger,
            prompts,
            label=label,
            num_seeds=recipe.evaluate.seeds_per_prompt,
            step=0,
        )
        clips = context.folder / "clips"
        clips.mkdir(exist_ok=True)
        for position, group in enumerate(measured.groups[: recipe.evaluate.num_clips]):
            clip = roles.rewards.clips(group.group)[0].float() / 255.0
            write_mp4(clips / f"{position:02d}_{label}.mp4", clip, recipe.model.fps)
            context.recorder.write_video(f"clip_{position:02d}/{label}", 0, clip, recipe.model.fps)
            context.recorder.write_image(f"last_frame_{position:02d}/{label}", 0, clip[-1])
        return measured


def compare(recipe: Recipe, before: Measurement, after: Measurement) -> tuple[Comparison, ...]:
    """Return a row for the reward, one for every scorer and judge, one for the dimensions' mean.

    Raises:
        ValueError: one of them scored no pair for both policies.
    """
    num_asked = sum(len(group.task.noise_seeds) for group in before.groups)
    trained = {scorer.label for scorer in recipe.rewards.scorers if scorer.weight}
    rows = [_compare(recipe, REWARD, True, num_asked, before.rewards, after.rewards)]
    for scorer in recipe.rewards.scorers:
        name = scorer.label
        rows.append(
            _compare(
                recipe,
                name,
                name in trained,
                num_asked,
                before.scores.get(name, {}),
                after.scores.get(name, {}),
            )
        )
    labels = recipe.evaluate.dimensions
    if labels:
        is_trained = any(label in trained for label in labels)
        rows.append(_dimensions(recipe, labels, is_trained, num_asked, before, after))
    return tuple(rows)


def _dimensions(
    recipe: Recipe,
    labels: Sequence[str],
    trained: bool,
    num_asked: int,
    before: Measurement,
    after: Measurement,
) -> Comparison:
    """Compare the mean of the dimensions, each the mean of the pairs that it judges.

    A dimension excludes prompts of other kinds, so few pairs have a score of every one.
    """
    tables = {}
    for label in labels:
        first, second = before.scores.get(label, {}), after.scores.get(label, {})
        tables[label] = {pair: (first[pair], second[pair]) for pair in first if pair in second}
        if not tables[label]:
            raise ValueError(
                f"evaluate.dimensions: {label!r} gave no score for both policies on any held-out "
                "pair; take more prompts, or leave the dimension out"
            )
    found = mean_of_means_bootstrap(
        tables.values(),
        prompt_of=itemgetter(0),
        num_bootstrap=recipe.evaluate.num_bootstrap,
        confidence=recipe.evaluate.confidence,
    )
    return _row(DIMENSIONS, trained, num_asked, found.before, found.after, found.interval)


def _compare(
    recipe: Recipe,
    name: str,
    trained: bool,
    num_asked: int,
    before: Mapping[Pair, float],
    after: Mapping[Pair, float],
) -> Comparison:
    pairs = sorted(set(before) & set(after))
    evaluate = recipe.evaluate
    if not pairs:
        raise ValueError(
            f"evaluate: {name!r} gave no score for both policies on any held-out pair; "
            "run `rlvid doctor` and look at the scorer's errors in the reward actor's log"
        )
    first = [before[pair] for pair in pairs]
    second = [after[pair] for pair in pairs]
    interval = paired_bootstrap(
        first,
        second,
        [prompt_id for prompt_id, _ in pairs],
        num_bootstrap=evaluate.num_bootstrap,
        confidence=evaluate.confidence,
    )
    before_mean, after_mean = sum(first) / len(first), sum(second) / len(second)
    return _row(name, trained, num_asked, before_mean, after_mean, interval)


def _row(
    name: str, trained: bool, num_asked: int, before: float, after: float, interval: Interval
) -> Comparison:
    return Comparison(
        name=name,
        trained=trained,
        before=before,
        after=after,
        difference=interval.mean_difference,
        low=interval.low,
        high=interval.high,
        win_rate=interval.win_rate,
        num_pairs=interval.num_pairs,
        num_missing=num_asked - interval.num_pairs,
    )


def _chosen(recipe: Recipe, artifacts: Artifacts) -> Policy:
    if not recipe.evaluate.use_ema:
        return artifacts.policy
    if artifacts.ema_policy is None:
        raise ValueError(
            "evaluate.use_ema: the run kept no averaged weights; "
            "set learner.ema in the recipe, or leave use_ema off"
        )
    return artifacts.ema_policy


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "sampler": {
            "kind": "euler",
            "num_denoising_steps": recipe.evaluate.num_denoising_steps,
            "shift": recipe.rollout.shift,
            "sigmas": list(recipe_sigmas(recipe, recipe.evaluate.num_denoising_steps)),
            "guidance_scale": recipe.evaluate.guidance_scale or recipe.rollout.guidance_scale,
            "seeds_per_prompt": recipe.evaluate.seeds_per_prompt,
        },
        "confidence": recipe.evaluate.confidence,
    }


def _students(**policies: Policy) -> dict[str, Any]:
    """Return how each policy that is a distilled student was sampled; the others are not named."""
    found = {name: policy.sampling for name, policy in policies.items()}
    return {name: sampling.to_json() for name, sampling in found.items() if sampling is not None}


def _rows(table: tuple[Comparison, ...]) -> list[dict[str, Any]]:
    return [{name: getattr(row, name) for name in row.__slots__} for row in table]


def _pairs(
    prompts: tuple[Prompt, ...], before: Measurement, after: Measurement
) -> list[dict[str, Any]]:
    """Return every pair with its [before, after] scores; the clips are those of seed index 0."""
    named = {REWARD: (before.rewards, after.rewards)}
    named |= {name: (values, after.scores[name]) for name, values in before.scores.items()}
    pairs = []
    for position, prompt in enumerate(prompts):
        for index in sorted({i for p, i in before.rewards if p == prompt.prompt_id}):
            pair = (prompt.prompt_id, index)
            scores = {
                name: [first[pair], second[pair]]
                for name, (first, second) in named.items()
                if pair in first and pair in second
            }
            row = {"position": position, "seed_index": index, "prompt": prompt.text}
            if prompt.enhanced_text is not None:
                row["enhanced_prompt"] = prompt.enhanced_text
            pairs.append({**row, "scores": scores})
    return pairs
