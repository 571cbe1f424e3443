"""Step plans: which steps are stochastic, for every kind."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import RolloutConfig, StepPlanConfig
from rlvid.flow.step_plans import make_step_plan
from rlvid.records import StepPlan

KINDS = ["all", "fraction", "window", "random", "isotemporal", "branch"]
PLANS: dict[str, dict[str, Any]] = {
    "window": {"num_steps": 2, "window_every": 5},
    "random": {"num_steps": 2},
}


def plan_of(kind: str, *, prompt_id: str = "ball", step: int = 0, **settings: Any) -> StepPlan:
    plan = {"kind": kind, **PLANS.get(kind, {}), **settings.pop("step_plan", {})}
    config = RolloutConfig(
        shift=3.0,
        group_size=8,
        num_denoising_steps=20,
        step_plan=StepPlanConfig.model_validate(plan),
        **settings,
    )
    return make_step_plan(config, recipe_seed=7, prompt_id=prompt_id, step=step)


@pytest.mark.parametrize("kind", KINDS)
def test_plan_is_well_formed_at_every_step(kind: str) -> None:
    """Trained steps are stochastic, ascending, and never the last, whose noise would stay."""
    for step in range(40):
        plan = plan_of(kind, step=step)
        assert plan.trained_steps
        assert set(plan.trained_steps) <= set(plan.stochastic_steps)
        assert list(plan.stochastic_steps) == sorted(set(plan.stochastic_steps))
        assert plan.stochastic_steps[-1] < plan.num_steps - 1
        assert plan.noise.first_sigma == plan.sigmas[1]


@pytest.mark.parametrize("kind", KINDS)
def test_plan_is_a_function_of_its_arguments(kind: str) -> None:
    """A group that is issued again must be sampled under the same plan."""
    assert plan_of(kind, step=3) == plan_of(kind, step=3)


@pytest.mark.parametrize("kind", ["window", "random", "isotemporal", "branch"])
def test_steps_stay_in_the_range(kind: str) -> None:
    """range_frac (0.25, 0.5) of 20 steps are the steps 5 to 9, and all of them get their turn."""
    used: set[int] = set()
    for step in range(60):
        plan = plan_of(kind, step=step, step_plan={"range_frac": (0.25, 0.5)})
        used |= set(plan.stochastic_steps)
    assert used == {5, 6, 7, 8, 9}


@pytest.mark.parametrize("kind", ["isotemporal", "branch"])
def test_prompts_draw_their_own_single_step(kind: str) -> None:
    """One step per prompt, over the first half of the schedule (Flash-GRPO)."""
    plans = [plan_of(kind, prompt_id=str(i)) for i in range(100)]
    assert {len(plan.trained_steps) for plan in plans} == {1}
    assert {plan.trained_steps[0] for plan in plans} == set(range(10))


def test_window_moves_with_the_optimiser_step_and_starts_over() -> None:
    """MixGRPO: width 2, moved by 1 every 5 steps, over steps 0 to 9; all prompts share it."""
    places = [plan_of("window", step=step, prompt_id=str(step)).trained_steps for step in range(50)]
    assert places[0] == places[4] == (0, 1)
    assert places[5] == (1, 2)
    assert places[44] == (8, 9)
    assert places[45] == (0, 1)


def test_fraction_samples_everywhere_and_trains_a_part() -> None:
    """DanceGRPO: noise at all 19 steps, gradient at 0.6 of them, drawn anew."""
    first, second = plan_of("fraction", step=0), plan_of("fraction", step=1)
    assert first.stochastic_steps == tuple(range(19))
    assert len(first.trained_steps) == 11
    assert first.trained_steps != second.trained_steps


def test_number_of_initial_noises_follows_the_recipe() -> None:
    """Shared 1, independent G, branch G / num_branches."""
    assert plan_of("isotemporal", initial_noise="shared").num_noises == 1
    assert plan_of("isotemporal", initial_noise="independent").num_noises == 8
    plan = plan_of("branch", step_plan={"num_branches": 4})
    assert plan.num_noises == 2
    assert [plan.noise_index(i, 8) for i in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"eta": 0.0}, "rollout.eta"),
        ({"noise_schedule": "cps", "eta": 1.2}, "rollout.eta"),
        ({"step_plan": {"range_frac": (0.97, 1.0)}}, "range_frac"),
        ({"step_plan": {"kind": "random", "num_steps": 11}}, "num_steps"),
    ],
)
def test_settings_that_train_nothing_are_errors(settings: dict[str, Any], names: str) -> None:
    """They would run for hours and learn nothing."""
    with pytest.raises(ValueError, match=names):
        plan_of("isotemporal", **settings)


def test_a_single_denoising_step_cannot_be_trained() -> None:
    """Its only step is the last one."""
    config = RolloutConfig(shift=3.0, num_denoising_steps=1)
    with pytest.raises(ValueError, match="num_denoising_steps"):
        make_step_plan(config, recipe_seed=0, prompt_id="ball", step=0)


def test_ode_plan_has_no_step_to_train_and_no_noise() -> None:
    """Final videos are all that some algorithms look at; few steps are then no mistake."""
    plan = plan_of("ode", initial_noise="independent")
    assert (plan.stochastic_steps, plan.trained_steps) == ((), ())
    assert plan.noise.eta == 0.0
    assert plan.num_noises == 8
