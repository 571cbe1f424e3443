"""Credit of a tree against one worked out by hand.

It branches at steps 0 and 2 of five. Node a has the leaves 3 and 1, node b has 0 and -4.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlvid.algorithms.base import GroupCredit
from rlvid.algorithms.tree_credit import has_tree_credit, tree_credit
from rlvid.config import AdvantageConfig, RolloutConfig
from rlvid.config.algorithm import TreeConfig
from rlvid.flow.step_plans import make_step_plan
from rlvid.records import StepPlan

LEAVES = (3.0, 1.0, 0.0, -4.0)


def plan_of(kind: str = "tree", **plan: Any) -> StepPlan:
    config = RolloutConfig.model_validate(
        {
            "group_size": 4,
            "num_denoising_steps": 5,
            "step_plan": {"kind": kind, "split_steps": (0, 2), **plan},
        }
    )
    return make_step_plan(config, recipe_seed=0, prompt_id="ball", step=0)


def credited(
    plan: StepPlan,
    *,
    leaves: tuple[float, ...] = LEAVES,
    trained: tuple[bool, ...] = (True,) * 4,
    log_prob: torch.Tensor | None = None,
    **tree: Any,
) -> tuple[list[list[float]], list[list[bool]]]:
    if log_prob is None:
        log_prob = torch.zeros(len(plan.trained_steps), 4)
    advantage, mask = tree_credit(
        GroupCredit(advantage=torch.tensor(leaves), trained=torch.tensor(trained)),
        plan,
        log_prob,
        tree=TreeConfig(**tree),
        advantage=AdvantageConfig(),
    )
    return advantage.tolist(), mask.tolist()


def near(row: list[float]) -> Any:
    return pytest.approx(row, abs=1e-6)


def test_nodes_are_worth_their_leaves_and_compared_by_depth() -> None:
    """Values 2 and -2 after step 0, spread 2; the leaves have mean 0 and spread sqrt(6.5)."""
    advantage, mask = credited(plan_of())
    unit = 6.5**-0.5
    assert advantage[0] == near([1.0, 0.0, -1.0, 0.0])
    assert advantage[1] == advantage[0]
    assert advantage[2] == near([3.0 * unit, unit, 0.0, -4.0 * unit])
    assert advantage[3] == advantage[2]
    assert mask == [[True, False, True, False]] * 2 + [[True] * 4] * 2


def test_siblings_are_compared_with_each_other() -> None:
    """3 and 1 lie 1 off their mean, 0 and -4 lie 2 off theirs: spread sqrt((1 + 1 + 4 + 4) / 4)."""
    advantage, _ = credited(plan_of(), baseline="siblings")
    unit = 2.5**-0.5
    assert advantage[0] == near([1.0, 0.0, -1.0, 0.0])
    assert advantage[2] == near([unit, -unit, 2.0 * unit, -2.0 * unit])
    assert advantage[3] == advantage[2]


def test_branches_of_one_noise_are_siblings() -> None:
    """TempFlow's plan: what the initial noises differ by is nobody's merit."""
    plan = plan_of("branch", split_steps=(0,))
    assert not has_tree_credit(plan, TreeConfig())
    assert has_tree_credit(plan, TreeConfig(baseline="siblings"))
    advantage, mask = credited(plan, baseline="siblings")
    unit = 2.5**-0.5
    assert advantage[0] == near([unit, -unit, 2.0 * unit, -2.0 * unit])
    assert mask == [[True] * 4]


def test_likelier_children_weigh_more_in_their_parent() -> None:
    """log 3 : log 1 at the upper split gives 0.75 * 3 + 0.25 * 1 = 2.5, the lower one -2.

    After step 0 the mean is 0.25 and both lie 2.25 off it.
    """
    log_prob = torch.zeros(4, 4)
    log_prob[2, 0] = torch.tensor(3.0).log()
    log_prob[1] = 7.0  # nothing branches at step 1, so its probabilities count for nothing
    advantage, _ = credited(plan_of(), log_prob=log_prob, fusion="path")
    assert advantage[0] == near([1.0, 0.0, -1.0, 0.0])
    leaves = (3.0, 1.0, -1.0, -4.0)
    skewed, _ = credited(
        plan_of(split_steps=(0, 1)), leaves=leaves, log_prob=log_prob[[0, 2, 1, 3]], fusion="path"
    )
    assert skewed[0] == near([1.0, 0.0, -1.0, 0.0])


def test_fusion_by_path_differs_from_the_mean_among_three_nodes() -> None:
    """Three children of a root, three leaves each: values 2.5, 0, -1 by path, 2, 0, -1 by mean."""
    tree = {"kind": "tree", "split_steps": (0, 2), "num_branches": 3, "between": "ode"}
    config = RolloutConfig.model_validate(
        {"group_size": 9, "num_denoising_steps": 5, "step_plan": tree}
    )
    plan = make_step_plan(config, recipe_seed=0, prompt_id="ball", step=0)
    leaves = torch.tensor([4.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, -1.0, -1.0])
    log_prob = torch.zeros(2, 9)
    log_prob[1, 0] = torch.tensor(2.0).log()  # weights 2 : 1 : 1
    for fusion, value in (("path", 2.5), ("mean", 2.0)):
        advantage, mask = tree_credit(
            GroupCredit(advantage=leaves, trained=torch.ones(9, dtype=torch.bool)),
            plan,
            log_prob,
            tree=TreeConfig(fusion=fusion),  # type: ignore[arg-type]
            advantage=AdvantageConfig(),
        )
        values = torch.tensor([value, 0.0, -1.0])
        expected = (values - values.mean()) / values.std(correction=0)
        assert mask[0].nonzero().flatten().tolist() == [0, 3, 6]
        torch.testing.assert_close(advantage[0, [0, 3, 6]], expected)


def test_a_missing_leaf_is_no_verdict_on_its_parent() -> None:
    """Leaf 0 is not known: node a is worth 1, of leaf 1 alone, and is still trained."""
    advantage, mask = credited(plan_of(), trained=(False, True, True, True))
    assert advantage[0] == near([1.0, 0.0, -1.0, 0.0])
    assert mask[0] == [True, False, True, False]
    assert mask[2] == [False, True, True, True]
    assert sum(advantage[2]) == pytest.approx(0.0, abs=1e-6)


def test_a_node_without_leaves_and_a_depth_without_spread_are_not_trained() -> None:
    advantage, mask = credited(plan_of(), trained=(False, False, True, True))
    assert mask[0] == [False] * 4
    assert mask[2] == [False, False, True, True]
    _, level = credited(plan_of(), leaves=(1.0, -1.0, 2.0, -2.0))
    assert level[0] == [False] * 4
    assert level[2] == [True] * 4


def test_credit_does_not_know_the_scale_of_the_rewards() -> None:
    """Fusing rewards, or advantages that are linear in them, is the same."""
    plan = plan_of()
    shifted = tuple(0.01 * value + 7.0 for value in LEAVES)
    for found, expected in zip(credited(plan, leaves=shifted)[0], credited(plan)[0], strict=True):
        assert found == pytest.approx(expected, abs=1e-4)  # float32 leaves around 7
