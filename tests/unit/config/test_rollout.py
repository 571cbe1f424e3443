"""Settings of rollouts that the step plan or the noise leaves without effect."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import RolloutConfig
from rlvid.config.step_plan import READERS

ODE = {"step_plan": {"kind": "ode"}, "initial_noise": "independent"}
TREE = {"kind": "tree", "split_steps": (0, 2)}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"fraction": 0.3}, "fraction is not read by kind isotemporal, but by fraction: expected"),
        (
            {"num_steps": 2},
            "num_steps is not read by kind isotemporal, but by window, random, tree",
        ),
        ({"kind": "random", "window_every": 5}, "window_every is not read by kind random"),
        ({"kind": "all", "num_branches": 4}, "num_branches is not read by kind all"),
        ({"kind": "branch", "split_steps": (0,)}, "split_steps is not read by kind branch, but by"),
        ({"kind": "window", "between": "ode"}, "between is not read by kind window"),
        ({**TREE, "branch_at": "each"}, "branch_at is not read by kind tree, but by branch"),
        (
            {**TREE, "num_steps": 2},
            "num_steps is not read by a tree with between sde, but by one w",
        ),
        ({**TREE, "window_stride": 2}, "window_stride is not read .* window or with pruned_steps"),
    ],
)
def test_setting_of_another_plan_is_refused(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutConfig.model_validate({"step_plan": plan})


@pytest.mark.parametrize(
    "plan",
    [
        {"kind": "fraction", "fraction": 0.3},
        {"kind": "window", "num_steps": 2, "window_stride": 2, "window_every": 5},
        {"kind": "random", "num_steps": 2},
        {"kind": "branch", "num_branches": 4, "branch_at": "each"},
        {**TREE, "between": "window", "num_steps": 2, "window_every": 5},
        {**TREE, "pruned_steps": 1, "window_every": 5, "branch_scale": None},
        {"kind": "all", "range_frac": (0.0, 0.4)},
    ],
)
def test_setting_of_its_own_is_taken(plan: dict[str, Any]) -> None:
    """And range_frac by all: a recipe keeps it when an override sets another kind."""
    RolloutConfig.model_validate({"step_plan": plan})


def test_every_setting_of_a_plan_has_readers() -> None:
    """A new one would be accepted by all kinds."""
    fields = type(RolloutConfig().step_plan).model_fields
    assert set(READERS) == set(fields) - {"kind", "range_frac"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truncation": 0.3}, "truncation is not read by noise_schedule flash, but by truncated"),
        ({**ODE, "eta": 0.7}, "eta is not read by step_plan.kind ode, which adds no noise"),
        ({**ODE, "noise_schedule": "sage"}, "noise_schedule is not read by step_plan.kind ode"),
    ],
)
def test_setting_of_a_noise_that_is_not_added_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutConfig.model_validate(settings)


@pytest.mark.parametrize("plan", [{"kind": "branch"}, TREE])
def test_plans_that_branch_set_their_own_initial_noise(plan: dict[str, Any]) -> None:
    kind = plan["kind"]
    with pytest.raises(ValueError, match=f"initial_noise is not read by step_plan.kind {kind}, wh"):
        RolloutConfig.model_validate({"step_plan": plan, "initial_noise": "independent"})
