"""Two pulls at once: to the policy before RL, and to an anchor that follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.observability.metrics import check_names
from rlvid.testing import tiny_model
from tests.unit.learners.forward_learner import digest_of

DUAL = {"kind": "dual", "coefficient": 10.0, "anchor_coefficient": 5.0, "anchor_every": 2}


def recipe_of(mode: str, kl: dict[str, Any]) -> Recipe:
    return tiny_recipe(
        algorithm={"kl": kl, "clip_range": 10.0},
        learner={"mode": mode, "optimizer": {"learning_rate": 1e-3}},
        rollout={"max_staleness": 16},
    )


def opened(recipe: Recipe) -> RlLearner:
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    return learner


def advance(learner: RlLearner, recipe: Recipe, first: int, last: int) -> list[dict[str, float]]:
    """Train on groups of the untrained policy; return the metrics of each step."""
    found = []
    for step in range(first, last):
        groups = tiny_groups(tiny_model(0), recipe, digest=learner.published_digest(0), step=step)
        found.append(dict(learner.train(groups, tiny_rewards(groups), step=step).metrics))
    return found


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_anchor_moves_and_the_reference_stays(mode: str) -> None:
    """The anchor is the policy again after two steps, so its KL is 0 in the first and the third."""
    recipe = recipe_of(mode, DUAL)
    found = advance(opened(recipe), recipe, 0, 3)
    check_names(found[0])
    assert [metrics["learner/anchor_kl/mean"] == 0.0 for metrics in found] == [True, False, True]
    assert [metrics["learner/kl/mean"] == 0.0 for metrics in found] == [True, False, False]
    assert found[1]["learner/anchor_kl/mean"] == pytest.approx(found[1]["learner/kl/mean"])


def test_pulls_add_up_where_they_pull_to_one_point() -> None:
    """Before the anchor first moves a dual pull is one pull with the sum of the coefficients."""
    digests = []
    for kl in ({**DUAL, "anchor_every": 9}, {"kind": "reference", "coefficient": 15.0}):
        recipe = recipe_of("full", kl)
        learner = opened(recipe)
        metrics = advance(learner, recipe, 0, 2)[-1]
        digests.append(metrics["learner/grad_norm/total"])
    assert digests[0] == pytest.approx(digests[1], rel=1e-4)


def test_resumed_learner_goes_on_bit_for_bit(tmp_path: Path) -> None:
    recipe = recipe_of("lora", DUAL)
    learner = opened(recipe)
    advance(learner, recipe, 0, 2)
    learner.save(tmp_path)
    advance(learner, recipe, 2, 4)
    resumed = RlLearner(tiny_settings(recipe), tiny_model(0))
    resumed.load(tmp_path)
    advance(resumed, recipe, 2, 4)
    assert digest_of(resumed) == digest_of(learner)
