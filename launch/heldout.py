"""Held-out prompts, and the pinned measurement of a policy on them.

Pinned: Euler steps, seeds that depend on the prompt alone, so two policies are compared on equal
noise. Evaluating with the training sampler measures its noise instead (methods, section 6).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvid.config import Recipe
from rlvid.data.prompts import load_prompts
from rlvid.evaluation.drift import Pair
from rlvid.launch.groups import ScoredGroup, mean_rewards, pinned_task
from rlvid.launch.ledger import Ledger
from rlvid.launch.loop.line import Issue
from rlvid.records import Prompt
from rlvid.seeds import derive_seed

FULL, VAGUE = "full", "vague"
"""Names of the sets of prompts: `evaluate.prompts`, `evaluate.stages.vague_prompts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Scores of one policy on the held-out pairs."""

    rewards: dict[Pair, float]
    """Weighted mean of the training scorers."""
    scores: dict[str, dict[Pair, float]]
    """Scorer to its own scores, judges included."""
    groups: tuple[ScoredGroup, ...]

    def for_monitor(self) -> dict[str, dict[Pair, float]]:
        """Return the scores of every scorer and judge, and the reward, by clip."""
        return {"reward": self.rewards, **self.scores}

    def metrics(self) -> dict[str, float]:
        """Return the means under the names of the metrics table."""
        found = {
            f"heldout/{name}/mean": statistics.fmean(values.values())
            for name, values in self.scores.items()
            if values
        }
        if self.rewards:
            found["heldout/reward/mean"] = statistics.fmean(self.rewards.values())
            found["heldout/reward/std"] = statistics.pstdev(self.rewards.values())
        return found


def with_judges(recipe: Recipe) -> Recipe:
    """Return the recipe with the judges added to the pool, scoring without weight.

    A judge that is also a scorer keeps its place there; the recipe has made sure that at least one
    is not.
    """
    labels = {scorer.label for scorer in recipe.rewards.scorers}
    judges = tuple(
        judge.model_copy(update={"weight": 0.0})
        for judge in recipe.evaluate.judges
        if judge.label not in labels
    )
    scorers = (*recipe.rewards.scorers, *judges)
    rewards = recipe.rewards.model_copy(update={"scorers": scorers})
    return recipe.model_copy(update={"rewards": rewards})


def independent_judges(recipe: Recipe) -> tuple[str, ...]:
    """Return the labels of the judges that are no trained scorer under another name."""
    trained = recipe.trained_opinions
    return tuple(judge.label for judge in recipe.evaluate.judges if judge.opinion not in trained)


def heldout_prompts(
    recipe: Recipe, num_prompts: int, *, where: str = "evaluate.prompts"
) -> tuple[Prompt, ...]:
    """Return the first `num_prompts` held-out prompts of an order no recipe seed moves.

    Args:
        where: the recipe path for errors.

    Raises:
        ValueError: a held-out prompt is also trained on.
    """
    heldout = load_prompts(recipe.evaluate.prompts)
    trained = {prompt.prompt_id for prompt in load_prompts(recipe.prompts)}
    leaked = [prompt.text for prompt in heldout if prompt.prompt_id in trained]
    if leaked:
        raise ValueError(
            f"{where}: {len(leaked)} held-out prompts are also trained on, e.g. "
            f"{leaked[0]!r}; give {where} another split or file"
        )
    order = sorted(heldout, key=lambda prompt: derive_seed(0, prompt.prompt_id, "heldout"))
    return tuple(order[:num_prompts])


def check_enough(recipe: Recipe, num_prompts: int, where: str) -> None:
    """Raise ValueError where fewer prompts are held out than the setting at `where` asks for."""
    num_heldout = len(heldout_prompts(recipe, num_prompts))
    if num_heldout < num_prompts:
        raise ValueError(
            f"{where}: evaluate.prompts holds {num_heldout}, got {num_prompts}; lower it, or add "
            f"prompts to {recipe.evaluate.prompts.source!r}"
        )


def prompt_sets(recipe: Recipe) -> dict[str, tuple[Prompt, ...]]:
    """Return the held-out prompts of `evaluate.stages` by the name of their set.

    Raises:
        ValueError: one of them is trained on, by the policy or by the enhancer.
    """
    evaluate = recipe.evaluate
    sets = {FULL: heldout_prompts(recipe, evaluate.num_prompts)}
    vague = evaluate.stages.vague_prompts if evaluate.stages else None
    if vague is None:
        return sets
    of_vague = recipe.model_copy(
        update={"evaluate": evaluate.model_copy(update={"prompts": vague})}
    )
    where = "evaluate.stages.vague_prompts"
    sets[VAGUE] = heldout_prompts(of_vague, evaluate.num_prompts, where=where)
    rewritten = recipe.prompt_enhancement.prompts
    if "prompt_enhancement" in recipe.phases and rewritten is not None:
        of_enhancer = of_vague.model_copy(update={"prompts": rewritten})
        heldout_prompts(of_enhancer, evaluate.num_prompts, where=where)
    return sets


def measure(
    recipe: Recipe,
    run_issues: Callable[[Sequence[Issue]], Sequence[ScoredGroup]],
    ledger: Ledger,
    prompts: Sequence[Prompt],
    *,
    label: str,
    num_seeds: int,
    step: int,
    version: int = -1,
) -> Measurement:
    """Sample every prompt with pinned seeds, and have every scorer and judge score it.

    Args:
        run_issues: has groups sampled and scored, and returns them in order.
        step: that the ledger counts the groups to.
        version: of the weights to measure; -1 takes what the actors hold.
    """
    issues = [
        Issue(
            task=pinned_task(recipe, prompt, label=label, position=position, num_seeds=num_seeds),
            step=step,
            min_version=version,
            trains=False,
        )
        for position, prompt in enumerate(prompts)
    ]
    scored = run_issues(issues)
    for group in scored:
        ledger.drop(group.task.group_id, "evaluation")
    weights = {s.label: s.weight for s in recipe.rewards.scorers if s.weight}
    scores: dict[str, dict[Pair, float]] = {}
    for group in scored:
        for score in group.scores.scores:
            if score.value is not None:
                pair = (group.task.prompt.prompt_id, score.index)
                scores.setdefault(score.scorer, {})[pair] = score.value
    return Measurement(rewards=mean_rewards(scored, weights), scores=scores, groups=tuple(scored))
