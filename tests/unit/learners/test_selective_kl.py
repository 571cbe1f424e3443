"""A pull on some rollouts only: which, what it leaves alone, and that off is off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from rlvid.algorithms.data_regulariser import pulled_rollouts
from rlvid.algorithms.score_table import RewardTable
from rlvid.config import Recipe
from rlvid.config.algorithm import SelectiveKlConfig
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_settings
from rlvid.observability.metrics import check_names
from rlvid.records import RolloutGroup
from rlvid.testing import tiny_model
from tests.unit.learners.forward_learner import ODE, digest_of

NAN = float("nan")
WEIGHTS = {"a": 1.0, "b": 0.5, "c": -2.0}


def test_rollouts_are_ranked_over_the_step_and_by_what_is_better() -> None:
    """Ranks of a: 0, 1/2, 1; of b: 1, 0, 1/2; of c, where low is good: 1, 1/2, 0.

    Others minus main: 1, -1/4, -3/4. The rollout without a score of b takes no part.
    """
    scores = {
        "a": torch.tensor([[0.1, 0.2], [0.3, 0.9]]),
        "b": torch.tensor([[0.9, 0.1], [0.5, NAN]]),
        "c": torch.tensor([[1.0, 2.0], [3.0, 0.0]]),
    }
    for direction, frac, expected in (
        ("others_high", 1.0, [[True, False], [False, False]]),
        ("main_high", 0.3, [[False, False], [True, False]]),
        ("main_high", 1.0, [[False, True], [True, False]]),
    ):
        config = SelectiveKlConfig.model_validate(
            {"main": "a", "frac": frac, "direction": direction}
        )
        found = pulled_rollouts(scores, WEIGHTS, config)
        assert found is not None
        assert found.tolist() == expected
    assert pulled_rollouts(scores, WEIGHTS, None) is None


def recipe_of(**algorithm: Any) -> Recipe:
    of_engine: dict[str, Any] = {
        "algorithm": {"kl": {"kind": "reference", "coefficient": 100.0}, **algorithm},
        "rollout": {"max_staleness": 4},
        "grpo": {"max_replay_drift_frac": 1e6},
    }
    if algorithm.get("use") in ("nft", "awm"):
        of_engine = {
            "algorithm": {"forward": {"num_noise_levels": 2}, **algorithm},
            "rollout": {"max_staleness": 4, **ODE},
        }
    return tiny_recipe(
        learner={"mode": "full", "optimizer": {"learning_rate": 1e-3}},
        rewards={"scorers": tuple({"use": "constant", "name": name} for name in ("a", "b"))},
        **of_engine,
    )


def rewards_of(groups: Mapping[str, RolloutGroup]) -> RewardTable:
    """Two rewards that contradict each other, so that about half the rollouts may be pulled."""
    bright = torch.tensor([[float(r.latents.mean()) for r in g.rollouts] for g in groups.values()])
    return RewardTable(
        group_ids=tuple(groups),
        values={"a": bright, "b": -bright.square() + 0.1 * bright},
        weights={"a": 1.0, "b": 0.5},
    )


def trained(recipe: Recipe) -> tuple[list[dict[str, float]], str]:
    """Return the metrics of two steps, the second off the reference, and the weights after."""
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    digest, found = learner.published_digest(0), []
    for step in range(2):
        groups = tiny_groups(tiny_model(0), recipe, digest=digest, step=step, num_groups=2)
        found.append(dict(learner.train(groups, rewards_of(groups), step=step).metrics))
    return found, digest_of(learner)


OWN = {"grpo": {}, "nft": {"nft": {"reference_weight": 10.0}}}


@pytest.mark.parametrize("engine", ["grpo", "nft"])
def test_pull_on_some_lies_between_none_and_all(engine: str) -> None:
    """Only the selected rollouts carry the pull, in the loss and in the gradient."""
    steps = {
        name: trained(recipe_of(use=engine, **OWN[engine], **settings))[0][1]
        for name, settings in (
            ("all", {}),
            ("some", {"selective_kl": {"main": "a", "frac": 0.25}}),
        )
    }
    check_names(steps["some"])
    gaps = {
        name: step["learner/loss/mean"] - step["learner/policy_loss/mean"]
        for name, step in steps.items()
    }
    assert 0.0 < gaps["some"] < gaps["all"]
    if engine == "grpo":
        assert steps["some"]["learner/pulled/frac"] == 0.25
        assert "learner/pulled/frac" not in steps["all"]


def test_off_is_the_same_bits() -> None:
    """A coefficient of nothing under a mask, and no mask at all, end in the same weights."""
    off = {"kl": {"kind": "reference", "coefficient": 0.0}}
    plain = trained(recipe_of(**off))[1]
    assert trained(recipe_of(**off, selective_kl={"main": "a"}))[1] == plain
