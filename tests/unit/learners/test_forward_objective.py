"""One rank of the RL learner under engines that noise final videos again, on a tiny real model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.score_table import RewardTable
from rlvid.condition import Condition
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_rewards, tiny_settings
from rlvid.models.policy import Policy
from rlvid.models.student import StudentSampling
from rlvid.models.tiny import pipeline_folder
from rlvid.observability.metrics import check_names
from rlvid.records import RolloutGroup
from rlvid.testing import tiny_model
from rlvid.weights import trainable_parameters
from tests.unit.learners.forward_learner import (
    ENGINES,
    digest_of,
    forward_recipe,
    open_forward,
    sampled,
    take_publish,
)

ALWAYS = {"rate": 0.5, "cap": 0.5}
"""An old policy that is half a step behind from the second batch on."""


def _contradicting(groups: dict[str, RolloutGroup]) -> RewardTable:
    """Two scorers that cancel: every group has a spread, and every advantage is exactly 0."""
    values = tiny_rewards(groups).values["reward"]
    return RewardTable(
        group_ids=tuple(groups),
        values={"one": values, "other": -values},
        weights={"one": 1.0, "other": 1.0},
    )


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("engine", ENGINES)
def test_engine_learns_and_reports_only_what_it_has(engine: str, mode: str) -> None:
    """Groups have no trained step; a replay that was not checked must not be reported as 0."""
    learner, actor, recipe = open_forward(engine, learner={"mode": mode})
    groups = sampled(learner, actor, recipe)
    assert all(not group.plan.stochastic_steps for group in groups.values())
    before = digest_of(learner)
    report = learner.train(groups, tiny_rewards(groups), step=0)
    assert digest_of(learner) != before
    assert list(report.trained_group_ids) == list(groups)
    check_names(report.metrics)
    assert "learner/replay_drift/max" not in report.metrics
    num_units = 1 if engine == "dpo" else 4
    assert report.metrics["learner/rows/count"] == 4 * 2 * num_units
    forwards = 4 * 2 * (2 if engine == "dpo" else 4)
    assert report.metrics["learner/forward_rows/count"] == forwards


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_nft_at_the_old_policy_without_a_verdict_has_gradient_exactly_zero(mode: str) -> None:
    """r = 1/2 and v = v_old: what one branch pulls the other pushes, bit for bit."""
    learner, actor, recipe = open_forward("nft", learner={"mode": mode})
    groups = sampled(learner, actor, recipe)
    metrics = learner.train(groups, _contradicting(groups), step=0).metrics
    assert metrics["learner/rows/count"] == 4 * 4 * 2
    assert metrics["learner/old_distance/mean"] == 0.0
    assert metrics["learner/reference_distance/mean"] == 0.0
    assert metrics["learner/grad_norm/total"] == 0.0


def test_awm_ratio_is_exactly_one_in_the_first_update_and_not_in_the_second() -> None:
    """The behaviour is the policy at the start of the update, at the same noise."""
    deviations = []
    for updates in (1, 2):
        learner, actor, recipe = open_forward("awm", algorithm={"updates_per_batch": updates})
        groups = sampled(learner, actor, recipe)
        metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
        deviations.append(metrics["learner/ratio/max_deviation"])
    assert deviations[0] == 0.0
    assert 0.0 < deviations[1] < 0.1


def test_dpo_starts_at_log_two_and_then_orders_its_pairs() -> None:
    learner, actor, recipe = open_forward("dpo", learner={"mode": "full"})
    groups = sampled(learner, actor, recipe)
    first = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert first["learner/loss/mean"] == pytest.approx(0.6931471, abs=1e-6)
    assert first["learner/implicit_margin/mean"] == 0.0
    second = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert second["learner/implicit_margin/mean"] > 0.0
    assert second["learner/loss/mean"] < first["learner/loss/mean"]


def test_dpo_drops_a_group_that_has_a_spread_and_no_order() -> None:
    """Scorers that contradict each other leave no pair; the ledger must hear of it."""
    learner, actor, recipe = open_forward("dpo")
    groups = sampled(learner, actor, recipe)
    report = learner.train(groups, _contradicting(groups), step=0)
    assert not report.trained_group_ids
    assert list(report.dropped_group_ids) == list(groups)


def _advance(learner: RlLearner, actor: Any, recipe: Any, first: int, last: int) -> None:
    for step in range(first, last):
        take_publish(learner, actor, recipe, step)
        groups = sampled(learner, actor, recipe, step)
        learner.train(groups, tiny_rewards(groups), step=step)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_nft_publishes_the_old_policy_and_its_canary_speaks_for_it(mode: str) -> None:
    """After batches 0 and 1 it is the policy of batch 0 and 1 in equal parts (decay 0, then 0.5).

    An actor that sampled with the policy in training would not be what the targets are built of.
    """
    learner, actor, recipe = open_forward(
        "nft", learner={"mode": mode}, algorithm={"nft": {"old_policy": ALWAYS}}
    )
    _advance(learner, actor, recipe, 0, 1)
    once = dict(learner.trainee.engine.full_parameters())
    take_publish(learner, actor, recipe, 1)
    held = trainable_parameters(actor.transformer, mode)
    assert all(torch.equal(held[name], value) for name, value in once.items())
    _advance(learner, actor, recipe, 1, 2)
    twice = dict(learner.trainee.engine.full_parameters())
    take_publish(learner, actor, recipe, 2)
    for name, value in once.items():
        torch.testing.assert_close(held[name].detach(), value.lerp(twice[name], 0.5))
    assert any(not torch.equal(held[name], value) for name, value in twice.items())
    latents, sigma, velocity = learner.canary("a red ball")
    with torch.no_grad():
        answer = actor.velocity(latents, sigma, actor.encode_prompts(["a red ball"]))
    assert torch.equal(answer, velocity)


@pytest.mark.parametrize("engine", ["awm", "dpo"])
def test_other_engines_publish_the_policy_in_training(engine: str) -> None:
    learner, actor, recipe = open_forward(engine)
    _advance(learner, actor, recipe, 0, 2)
    take_publish(learner, actor, recipe, 2)
    held = trainable_parameters(actor.transformer, recipe.learner.mode)
    live = dict(learner.trainee.engine.full_parameters())
    assert all(torch.equal(held[name], value) for name, value in live.items())


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("engine", ENGINES)
def test_resumed_learner_goes_on_bit_for_bit(engine: str, mode: str, tmp_path: Path) -> None:
    """Policy, optimiser, and the old policy, which samples and is in the targets."""
    settings: dict[str, dict[str, Any]] = {"learner": {"mode": mode}}
    if engine != "dpo":
        settings["algorithm"] = {engine: {"old_policy": ALWAYS}}
    learner, actor, recipe = open_forward(engine, **settings)
    _advance(learner, actor, recipe, 0, 2)
    learner.publish(2)
    learner.save(tmp_path)
    _advance(learner, actor, recipe, 2, 4)
    resumed, fresh, _ = open_forward(engine, **settings)
    resumed.load(tmp_path)
    _advance(resumed, fresh, recipe, 2, 4)
    assert digest_of(resumed) == digest_of(learner)
    published = [take_publish(one, actor, recipe, 4) for one in (learner, resumed)]
    assert published[0] == published[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_stochastic_rollouts_train_too(engine: str) -> None:
    """Only final latents are looked at, so any step plan will do."""
    learner, actor, recipe = open_forward(engine, rollout={"step_plan": {"kind": "isotemporal"}})
    groups = sampled(learner, actor, recipe)
    report = learner.train(groups, tiny_rewards(groups), step=0)
    assert report.metrics["learner/grad_norm/total"] > 0.0


def test_pair_is_never_cut_between_forwards() -> None:
    """Two halves of a pair have no loss of their own."""
    learner, actor, recipe = open_forward("dpo", learner={"micro_batch_rows": 1})
    groups = sampled(learner, actor, recipe)
    with pytest.raises(ValueError, match=r"micro_batch_rows: 2 rows share .* at least 2, got 1"):
        learner.train(groups, tiny_rewards(groups), step=0)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_engine_raises_the_reward(engine: str) -> None:
    """The sign of every loss at once: brighter latents are rewarded, and they become brighter."""
    learner, actor, recipe = open_forward(
        engine, learner={"mode": "full", "optimizer": {"learning_rate": 3e-3}}
    )
    for step in range(11):
        take_publish(learner, actor, recipe, step)
        groups = sampled(learner, actor, recipe, step)
        learner.train(groups, tiny_rewards(groups), step=step)
    before, after = [
        float(tiny_rewards(tiny_groups(model, recipe)).values["reward"].mean())
        for model in (tiny_model(0), actor)
    ]
    assert after > before + 0.3


def test_a_student_is_trained_at_the_levels_it_is_sampled_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was distilled at these alone; anywhere between them its velocity says nothing."""
    levels = (1.0, 0.75, 0.5)
    shutil.copytree(pipeline_folder(), tmp_path / "student")
    StudentSampling(sigmas=levels).save(tmp_path / "student")
    recipe = forward_recipe("nft", learner={"mode": "full"})
    settings = tiny_settings(recipe)
    policy = Policy(model_path=str(tmp_path / "student"))
    settings = replace(settings, trainee=replace(settings.trainee, policy=policy))
    model = tiny_model(0)
    learner = RlLearner(settings, model)
    take_publish(learner, tiny_model(0), recipe, 0)
    groups = sampled(learner, tiny_model(0), recipe)
    seen: list[float] = []
    velocity = type(model).velocity

    def note(self: Any, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        seen.extend(sigma.tolist())
        return velocity(self, latents, sigma, condition)

    monkeypatch.setattr(type(model), "velocity", note)
    learner.train(groups, tiny_rewards(groups), step=0)
    assert set(seen) == set(levels)
