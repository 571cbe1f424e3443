"""Step plans that branch, from rollout to optimiser step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlvid.algorithms.score_table import RewardTable
from rlvid.config import Recipe
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.records import RolloutGroup
from rlvid.testing import tiny_model
from tests.unit.learners.forward_learner import digest_of

TREE = {"kind": "tree", "split_steps": (0, 1)}
BRANCH = {"kind": "branch", "num_branches": 2}
EACH = {**BRANCH, "branch_at": "each", "range_frac": (0.0, 0.4)}


def recipe_of(plan: Mapping[str, Any], **algorithm: Any) -> Recipe:
    return tiny_recipe(
        algorithm=algorithm,
        learner={"mode": "full", "optimizer": {"learning_rate": 1e-3}, "micro_batch_rows": 3},
        rollout={"num_denoising_steps": 5, "step_plan": dict(plan), "max_staleness": 1},
    )


def opened(recipe: Recipe) -> tuple[RlLearner, dict[str, RolloutGroup]]:
    """Return a learner and the groups of a step, sampled by the policy it published."""
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    groups = tiny_groups(tiny_model(0), recipe, digest=learner.published_digest(0), num_groups=2)
    return learner, groups


@pytest.mark.parametrize(
    ("plan", "tree", "rows"),
    [
        (TREE, {}, 2 + 4 + 4 + 4),
        (TREE, {"fusion": "path"}, 2 + 4 + 4 + 4),
        ({**TREE, "between": "ode"}, {}, 2 + 4),
        ({**TREE, "pruned_steps": 1}, {}, 2 + 4 + 4),
        ({**TREE, "between": "window", "num_steps": 3}, {}, 2 + 4 + 4),
        (TREE, {"width": "best_child"}, 2 + 4 + 2 + 2),
        (TREE, {"width": "extremes", "extremes_frac": 0.75}, 2 + 4 + 3 + 3),
        (BRANCH, {"baseline": "siblings"}, 4),
        (EACH, {}, 2 + 2),
        (EACH, {"baseline": "siblings"}, 2 + 2),
    ],
)
def test_every_edge_is_trained_once_and_on_policy(
    plan: dict[str, Any], tree: dict[str, Any], rows: int
) -> None:
    """Two groups of four rollouts; forwards cut to three rows drift by rounding at most."""
    recipe = recipe_of(plan, tree=tree, clip_range=0.1)
    learner, groups = opened(recipe)
    before = digest_of(learner)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/rows/count"] == 2 * rows
    assert metrics["learner/replay_drift/max"] < 1e-5
    assert metrics["learner/grad_norm/total"] > 0.0
    assert digest_of(learner) != before


@pytest.mark.parametrize("plan", [TREE, EACH], ids=["tree", "each"])
def test_ratio_is_exactly_one_in_the_rollouts_own_batches(plan: dict[str, Any]) -> None:
    recipe = recipe_of(plan)
    recipe = recipe.model_copy(
        update={"learner": recipe.learner.model_copy(update={"micro_batch_rows": 64})}
    )
    learner, groups = opened(recipe)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/replay_drift/max"] == 0.0


@pytest.mark.parametrize(("plan", "tree"), [(TREE, {}), (TREE, {"width": "extremes"}), (EACH, {})])
def test_the_cut_into_chunks_moves_no_bit(plan: dict[str, Any], tree: dict[str, Any]) -> None:
    digests = []
    for cut in ((2,), (1, 1)):
        learner, groups = opened(recipe_of(plan, clip_range=0.1, tree=tree))
        rewards, first = tiny_rewards(groups), 0
        for size in cut:
            ids = rewards.group_ids[first : first + size]
            part = replace(
                rewards,
                group_ids=ids,
                values={n: v[first : first + size] for n, v in rewards.values.items()},
            )
            learner.train_chunk(
                {name: groups[name] for name in ids},
                part,
                step=0,
                num_groups=2,
                first_row=first,
                is_last=first + size == 2,
                plans=[group.plan for group in groups.values()],
            )
            first += size
        digests.append(digest_of(learner))
    assert digests[0] == digests[1]


def test_pruned_leaves_are_not_forwarded_in_a_batched_replay() -> None:
    """States with a gradient: 1 + 2 + 4 + 4 of a whole tree, 1 + 2 + 2 + 2 of a pruned one.

    Fewer rows round differently, and no more than that.
    """
    gradients, forwards = [], []
    for replay in ("as_sampled", "batched"):
        recipe = recipe_of(TREE, clip_range=0.1, tree={"width": "best_child"})
        changed = recipe.learner.model_copy(update={"replay": replay, "micro_batch_rows": 64})
        learner, groups = opened(recipe.model_copy(update={"learner": changed}))
        metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
        assert metrics["learner/rows/count"] == 2 * (2 + 4 + 2 + 2)
        gradients.append(metrics["learner/grad_norm/total"])
        forwards.append(metrics["learner/forward_rows/count"])
    assert forwards == [2 * 11, 2 * 7]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)


def test_groups_whose_siblings_all_score_alike_take_no_step() -> None:
    """Initial noises differ, branches do not: a spread of the group, and nobody's merit."""
    learner, groups = opened(recipe_of(BRANCH, tree={"baseline": "siblings"}))
    rewards = RewardTable(
        group_ids=tuple(groups),
        values={"reward": torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 2)},
        weights={"reward": 1.0},
    )
    before = digest_of(learner)
    report = learner.train(groups, rewards, step=0)
    assert report.metrics["learner/rows/count"] == 0.0
    assert (report.trained_group_ids, sorted(report.dropped_group_ids)) == ((), sorted(groups))
    assert digest_of(learner) == before
    learner.train(groups, tiny_rewards(groups), step=1)
    assert digest_of(learner) != before
