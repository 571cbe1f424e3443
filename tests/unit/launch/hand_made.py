"""Scored groups and measurements made by hand, for what the driver computes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlvid.config import Recipe
from rlvid.evaluation.drift import Pair
from rlvid.launch.groups import ScoredGroup, pinned_task
from rlvid.launch.heldout import Measurement
from rlvid.records import GroupSummary, Prompt, Score
from rlvid.rewards.scoring import GroupScores
from rlvid.seeds import prompt_id


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "hand-made", **sections})


def prompt(text: str) -> Prompt:
    return Prompt(prompt_id=prompt_id(text), text=text)


def scored_group(
    text: str,
    scores: Mapping[str, Sequence[float | None]],
    *,
    position: int = 0,
    policy_version: int = 0,
    sample_s: float = 1.0,
) -> ScoredGroup:
    """Return a group of a prompt whose rollouts got `scores`; no tensor and no reference in it."""
    [size] = {len(values) for values in scores.values()}
    task = pinned_task(recipe(), prompt(text), label="t", position=position, num_seeds=size)
    return ScoredGroup(
        task=task,
        group=None,
        summary=GroupSummary(
            group_id=task.group_id,
            lease_id="lease",
            actor_id="actor-0.0",
            policy_version=policy_version,
            weights_digest="digest",
            sample_s=sample_s,
            num_forwards=10,
        ),
        scores=GroupScores(
            scores=tuple(
                Score(group_id=task.group_id, index=index, scorer=name, value=value)
                for name, values in scores.items()
                for index, value in enumerate(values)
            ),
            decode_s=0.25,
            score_s=0.5,
        ),
    )


def measurement(texts: Sequence[str], **scores: Mapping[tuple[str, int], float]) -> Measurement:
    """Return a measurement of two seeds of each prompt; keys are (text, seed index).

    The scores named `reward` become the rewards.
    """
    by_pair: dict[str, dict[Pair, float]] = {
        name: {(prompt_id(text), index): value for (text, index), value in values.items()}
        for name, values in scores.items()
    }
    groups = tuple(
        scored_group(text, {"reward": (None, None)}, position=position)
        for position, text in enumerate(texts)
    )
    return Measurement(rewards=by_pair.pop("reward", {}), scores=by_pair, groups=groups)
