"""One rank of the RL learner, on a tiny real model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config import Recipe
from rlvid.learners.rl import RlLearner, StaleGroupError
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.models.base import VideoModel
from rlvid.models.lora import add_lora
from rlvid.observability.metrics import check_names
from rlvid.records import RolloutGroup, WeightsManifest
from rlvid.testing import tiny_model
from rlvid.weights import apply_weights, digest_tensors


def _open(version: int = 0, **sections: dict[str, Any]) -> tuple[RlLearner, VideoModel, Recipe]:
    """Return a learner and an actor's model that took its first publish."""
    recipe = tiny_recipe(**sections)
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    actor = tiny_model(0)
    if recipe.learner.mode == "lora":
        add_lora(actor.transformer, recipe.learner.lora)
    published = learner.publish(version)
    assert published is not None
    apply_weights(*published, actor.transformer, mode=recipe.learner.mode)
    return learner, actor, recipe


def _sample(
    learner: RlLearner, actor: VideoModel, recipe: Recipe, version: int = 0
) -> dict[str, RolloutGroup]:
    digest = learner.published_digest(version)
    return tiny_groups(actor, recipe, version=version, digest=digest)


def _digest(learner: RlLearner) -> str:
    return digest_tensors(dict(learner.trainee.engine.full_parameters()))


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("initial_noise", ["shared", "independent"])
def test_replay_of_fresh_groups_has_ratio_exactly_one(mode: str, initial_noise: str) -> None:
    """Invariant 1 of the design; any drift means that rollout and learner compute differently."""
    learner, actor, recipe = _open(learner={"mode": mode}, rollout={"initial_noise": initial_noise})
    groups = _sample(learner, actor, recipe)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/replay_drift/max"] == 0.0
    assert metrics["learner/ratio/mean"] == 1.0
    check_names(metrics)


def test_drift_beyond_the_clip_range_stops_before_the_update() -> None:
    """Clipping would otherwise act on noise; the parameters must not have moved."""
    learner, actor, recipe = _open(algorithm={"clip_range": 1e-6})
    groups = _sample(learner, actor, recipe)
    group_id, group = next(iter(groups.items()))
    off = tuple(
        replace(rollout, behaviour_log_prob=rollout.behaviour_log_prob + 1.0)
        for rollout in group.rollouts
    )
    groups[group_id] = replace(group, rollouts=off)
    before = _digest(learner)
    with pytest.raises(RuntimeError, match=r"replay drift .* expected at most 1e-06"):
        learner.train(groups, tiny_rewards(groups), step=0)
    assert _digest(learner) == before


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_update_changes_what_is_published(mode: str) -> None:
    """An optimiser step with a gradient must show in the digest, or nothing reaches the actors."""
    learner, actor, recipe = _open(learner={"mode": mode})
    groups = _sample(learner, actor, recipe)
    report = learner.train(groups, tiny_rewards(groups), step=0)
    published = learner.publish(1)
    assert published is not None
    manifest: WeightsManifest = published[0]
    assert report.metrics["learner/grad_norm/total"] > 0.0
    assert manifest.parent_version == 0
    apply_weights(*published, actor.transformer, mode=mode)
    latents, sigma, velocity = learner.trainee.canary("a red ball")
    with torch.no_grad():
        answer = actor.velocity(latents, sigma, actor.encode_prompts(["a red ball"]))
    assert torch.equal(answer, velocity)


def test_group_without_spread_is_dropped_and_reported() -> None:
    """Invariant 9: it teaches nothing, and the ledger must hear of it."""
    learner, actor, recipe = _open()
    groups = _sample(learner, actor, recipe)
    report = learner.train(groups, tiny_rewards(groups, uniform=["000000-02"]), step=0)
    assert list(report.dropped_group_ids) == ["000000-02"]
    assert list(report.trained_group_ids) == ["000000-00", "000000-01", "000000-03"]
    assert report.metrics["learner/rows/count"] == 3 * 4


def test_batch_without_any_spread_changes_nothing() -> None:
    """Weight decay and momentum alone would still move the policy."""
    learner, actor, recipe = _open()
    groups = _sample(learner, actor, recipe)
    before = _digest(learner)
    report = learner.train(groups, tiny_rewards(groups, uniform=list(groups)), step=0)
    assert _digest(learner) == before
    assert not report.trained_group_ids
    assert len(report.dropped_group_ids) == 4


def test_stale_group_is_refused() -> None:
    """A group from before the last publish, with max_staleness 0."""
    learner, actor, recipe = _open()
    groups = _sample(learner, actor, recipe)
    learner.publish(1)
    with pytest.raises(StaleGroupError, match="from policy 0 reached policy 1, rollout.max_stal"):
        learner.train(groups, tiny_rewards(groups), step=1)


def test_group_sampled_with_other_weights_is_refused() -> None:
    """An actor that missed a publish but counted on looks fresh by its version alone."""
    learner, actor, recipe = _open()
    groups = _sample(learner, actor, recipe)
    group_id = next(iter(groups))
    groups[group_id] = replace(groups[group_id], weights_digest="feed" * 8)
    with pytest.raises(StaleGroupError, match=rf"group {group_id} .*feedfeed.*expected"):
        learner.train(groups, tiny_rewards(groups), step=0)


def test_several_updates_on_one_batch_leave_the_ratio() -> None:
    """Drift is measured before the first update only; later ones move the ratio by design."""
    learner, actor, recipe = _open(algorithm={"updates_per_batch": 3})
    groups = _sample(learner, actor, recipe)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/replay_drift/max"] == 0.0
    assert metrics["learner/ratio/max_deviation"] > 0.0
    assert learner.trainee.optimizer_steps == 3


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("kind", ["reference", "moving_anchor"])
def test_kl_is_zero_on_the_first_update_and_not_on_the_second(mode: str, kind: str) -> None:
    """The other policy starts as the policy and stays behind it (anchor_every is 10)."""
    learner, actor, recipe = _open(
        learner={"mode": mode},
        algorithm={"kl": {"kind": kind, "coefficient": 0.1}},
        grpo={"max_replay_drift_frac": 1e6},
    )
    groups = _sample(learner, actor, recipe)
    first = learner.train(groups, tiny_rewards(groups), step=0).metrics
    learner.publish(1)
    again = {
        group_id: replace(group, policy_version=1, weights_digest=learner.published_digest(1))
        for group_id, group in groups.items()
    }
    second = learner.train(again, tiny_rewards(again), step=1).metrics
    assert first["learner/kl/mean"] == 0.0
    assert second["learner/kl/mean"] > 0.0


def test_moving_anchor_follows_when_it_is_due() -> None:
    """Due every 2 updates, it is the policy again before the third; every 4, it stays behind."""
    pulled = {}
    for every in (2, 4):
        learner, actor, recipe = _open(
            algorithm={
                "kl": {"kind": "moving_anchor", "coefficient": 0.1, "anchor_every": every},
                "updates_per_batch": 3,
            }
        )
        groups = _sample(learner, actor, recipe)
        metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
        pulled[every] = metrics["learner/kl/mean"]
    assert 0.0 < pulled[2] < pulled[4]


def test_rewards_of_another_batch_are_refused() -> None:
    """Rewards of the step before have the right shape and would train on the wrong videos."""
    learner, actor, recipe = _open()
    groups = _sample(learner, actor, recipe)
    rewards = tiny_rewards(groups)
    others = replace(rewards, group_ids=("000009-00", *rewards.group_ids[1:]))
    with pytest.raises(ValueError, match=r"reward table: groups: expected .*000009-00"):
        learner.train(groups, others, step=0)


def test_average_is_exported_beside_the_policy(tmp_path: Path) -> None:
    """The adapter's files load into a fresh model and give the learner's velocity."""
    from rlvid.models.lora import load_lora

    learner, actor, recipe = _open(learner={"ema": {"decay": 0.5, "every": 1}})
    groups = _sample(learner, actor, recipe)
    learner.train(groups, tiny_rewards(groups), step=0)
    learner.trainee.export(tmp_path / "policy")
    latents, sigma, velocity = learner.trainee.canary("a red ball")
    answers = []
    for name in ("policy", "policy_ema"):
        model = tiny_model(0)
        load_lora(model.transformer, tmp_path / name)
        with torch.no_grad():
            condition = model.encode_prompts(["a red ball"])
            answers.append(model.velocity(latents, sigma, condition))
    assert torch.equal(answers[0], velocity)
    assert not torch.equal(answers[1], velocity)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_activation_checkpointing_does_not_change_the_step(zero_stage: int) -> None:
    """It trades time for memory; the same operations run again on the same numbers."""
    digests = []
    for activation_checkpointing in (False, True):
        learner, actor, recipe = _open(
            learner={
                "zero_stage": zero_stage,
                "activation_checkpointing": activation_checkpointing,
            }
        )
        groups = _sample(learner, actor, recipe)
        learner.train(groups, tiny_rewards(groups), step=0)
        digests.append(_digest(learner))
    assert digests[0] == digests[1]


def test_published_average_is_not_held_to_the_replay_check() -> None:
    """Rollouts of the average are off-policy by design; their ratio is not 1 and may train."""
    learner, actor, recipe = _open(
        learner={
            "mode": "full",
            "optimizer": {"learning_rate": 1e-2},
            "ema": {"decay": 0.9, "every": 1},
        }
    )
    groups = _sample(learner, actor, recipe)
    learner.train(groups, tiny_rewards(groups), step=0)
    published = learner.publish(1, use_ema=True)
    assert published is not None
    apply_weights(*published, actor.transformer, mode="full")
    groups = _sample(learner, actor, recipe, version=1)
    metrics = learner.train(groups, tiny_rewards(groups), step=1).metrics
    assert metrics["learner/ratio/max_deviation"] > recipe.algorithm.clip_range
    assert metrics["learner/replay_drift/max"] == 0.0


def test_bfloat16_without_a_float32_master_is_refused() -> None:
    """Stage 0 would round small steps away, silently."""
    recipe = tiny_recipe(learner={"mode": "full", "zero_stage": 0})
    model = tiny_model(0)
    model.transformer.to(torch.bfloat16)
    with pytest.raises(ValueError, match="without a float32 master; use zero_stage 1"):
        RlLearner(tiny_settings(recipe), model)
