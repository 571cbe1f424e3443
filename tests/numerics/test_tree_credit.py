"""Credit of a tree against one worked out by hand.

It branches at steps 0 and 2 of five. Node a has the leaves 3 and 1, node b has 0 and -4.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlvid.algorithms.base import GroupCredit
from rlvid.algorithms.tree_credit import has_tree_credit, num_trained, tree_credit
from rlvid.config import AdvantageConfig, RolloutConfig
from rlvid.config.tree import TreeConfig
from rlvid.flow.step_plans import make_step_plan
from rlvid.records import StepPlan

LEAVES = (3.0, 1.0, 0.0, -4.0)


def plan_of(kind: str = "tree", **plan: Any) -> StepPlan:
    splits = {"split_steps": (0, 2)} if kind == "tree" else {}
    config = RolloutConfig.model_validate(
        {
            "shift": 3.0,
            "group_size": 4,
            "num_denoising_steps": 5,
            "step_plan": {"kind": kind, **splits, **plan},
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
    plan = plan_of("branch")
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
        {"shift": 3.0, "group_size": 9, "num_denoising_steps": 5, "step_plan": tree}
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


@pytest.mark.parametrize(
    ("tree", "leaves", "trained", "kept"),
    [
        ({"width": "best_child"}, LEAVES, (True,) * 4, [0, 2]),
        ({"width": "best_child"}, (1.0, 1.0, -4.0, 0.0), (True,) * 4, [0, 3]),
        ({"width": "best_child"}, LEAVES, (False, True, True, True), [1, 2]),
        ({"width": "best_child"}, LEAVES, (True, True, False, False), [0]),
        ({"width": "extremes"}, LEAVES, (True,) * 4, [0, 3]),
        ({"width": "extremes", "extremes_frac": 0.75}, LEAVES, (True,) * 4, [0, 2, 3]),
        ({"width": "extremes", "extremes_frac": 0.1}, LEAVES, (True, True, True, False), [0, 2]),
        ({"width": "extremes", "extremes_frac": 1.0}, LEAVES, (True,) * 4, [0, 1, 2, 3]),
    ],
)
def test_pruned_leaves_count_for_the_credit_and_train_nothing_behind_the_last_split(
    tree: dict[str, Any], leaves: tuple[float, ...], trained: tuple[bool, ...], kept: list[int]
) -> None:
    """Steps 0 to 2, the last split among them, are as without pruning; step 3 is of `kept`."""
    whole, whole_mask = credited(plan_of(), leaves=leaves, trained=trained)
    advantage, mask = credited(plan_of(), leaves=leaves, trained=trained, **tree)
    assert (advantage[:3], mask[:3]) == (whole[:3], whole_mask[:3])
    assert [i for i in range(4) if mask[3][i]] == kept
    assert advantage[3] == [whole[3][i] if i in kept else 0.0 for i in range(4)]


@pytest.mark.parametrize("width", ["best_child", "extremes"])
def test_width_pruning_costs_what_the_paper_says(width: str) -> None:
    """8.625 forwards a leaf in place of some 13.6: 20 stochastic steps, splits (0, 3, 6, 9)."""
    config = RolloutConfig.model_validate(
        {"shift": 3.0, "group_size": 16, "num_denoising_steps": 21, "step_plan": {"kind": "tree"}}
    )
    plan = make_step_plan(config, recipe_seed=0, prompt_id="ball", step=0)
    for tree, rows in ((TreeConfig(), 218), (TreeConfig.model_validate({"width": width}), 138)):
        assert sum(num_trained(plan, j, 16, tree) for j in plan.trained_steps) == rows
    assert 138 / 16 == 8.625


def test_rows_that_pruning_leaves_are_those_it_plans() -> None:
    plan = plan_of()
    for width, frac in (("best_child", 0.5), ("extremes", 0.5), ("extremes", 0.75)):
        _, mask = credited(plan, width=width, extremes_frac=frac)
        tree = TreeConfig.model_validate({"width": width, "extremes_frac": frac})
        planned = [num_trained(plan, j, 4, tree) for j in plan.trained_steps]
        assert [sum(row) for row in mask] == planned


def test_steps_of_a_trajectory_are_credited_apart() -> None:
    """Two noises, two steps, two branches each; rollouts are ordered by noise, step, branch.

    Step 0 has the values 3 and 1, and 0 and -4; step 1 has 5 and 5, and 1 and 1, where siblings
    differ by nothing.
    """
    plan = each_plan()
    assert has_tree_credit(plan, TreeConfig())
    leaves = (3.0, 1.0, 5.0, 5.0, 0.0, -4.0, 1.0, 1.0)
    unit = 6.5**-0.5
    advantage, mask = credited_each(plan, leaves)
    assert advantage[0] == near([3 * unit, unit, 0.0, 0.0, 0.0, -4 * unit, 0.0, 0.0])
    assert mask[0] == [True, True, False, False] * 2
    assert advantage[1] == near([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, -1.0, -1.0])
    assert mask[1] == [False, False, True, True] * 2
    advantage, mask = credited_each(plan, leaves, baseline="siblings")
    unit = 2.5**-0.5
    assert advantage[0] == near([unit, -unit, 0.0, 0.0, 2 * unit, -2 * unit, 0.0, 0.0])
    assert mask[0] == [True, True, False, False] * 2
    assert mask[1] == [False] * 8


def test_a_missing_branch_is_no_rival() -> None:
    """Of step 0 rollouts 1, 4 and 5 are left, then rollout 0 alone, which has no spread."""
    leaves = (3.0, 1.0, 5.0, 4.0, 0.0, -4.0, 1.0, 2.0)
    for missing, left in (((0,), [1, 4, 5]), ((1, 4, 5), [])):
        known = tuple(g not in missing for g in range(8))
        _, mask = credited_each(each_plan(), leaves, known=known)
        assert [g for g in range(8) if mask[0][g]] == left
        assert mask[1] == [False, False, True, True] * 2


def each_plan() -> StepPlan:
    config = RolloutConfig.model_validate(
        {
            "shift": 3.0,
            "group_size": 8,
            "num_denoising_steps": 5,
            "step_plan": {"kind": "branch", "branch_at": "each", "range_frac": (0.0, 0.4)},
        }
    )
    return make_step_plan(config, recipe_seed=0, prompt_id="ball", step=0)


def credited_each(
    plan: StepPlan, leaves: tuple[float, ...], *, known: tuple[bool, ...] = (True,) * 8, **tree: Any
) -> tuple[list[list[float]], list[list[bool]]]:
    advantage, mask = tree_credit(
        GroupCredit(advantage=torch.tensor(leaves), trained=torch.tensor(known)),
        plan,
        torch.zeros(1, 8),
        tree=TreeConfig.model_validate(tree),
        advantage=AdvantageConfig(),
    )
    return advantage.tolist(), mask.tolist()


def test_credit_does_not_know_the_scale_of_the_rewards() -> None:
    """Fusing rewards, or advantages that are linear in them, is the same."""
    plan = plan_of()
    shifted = tuple(0.01 * value + 7.0 for value in LEAVES)
    for found, expected in zip(credited(plan, leaves=shifted)[0], credited(plan)[0], strict=True):
        assert found == pytest.approx(expected, abs=1e-4)  # float32 leaves around 7
