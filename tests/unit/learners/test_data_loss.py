"""Clips beside the RL batch: what their loss adds, and that nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.algorithms.flow_matching import add_noise
from rlvid.data.clips import clip_shape, open_clips
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.observability.metrics import check_names
from rlvid.records import StepReport
from rlvid.testing import tiny_model
from tests.unit.learners.forward_learner import digest_of, open_forward, sampled

BESIDE = {"data_loss": {"coefficient": 0.5, "batch_size": 3}}


def trained(algorithm: dict[str, Any], *, uniform: bool = False) -> tuple[RlLearner, StepReport]:
    """Train GRPO on one batch; `uniform` leaves it one group of four."""
    recipe = tiny_recipe(algorithm=algorithm, learner={"micro_batch_rows": 2})
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    groups = tiny_groups(tiny_model(0), recipe, digest=learner.published_digest(0))
    names = list(groups)[1:] if uniform else []
    return learner, learner.train(groups, tiny_rewards(groups, uniform=names), step=0)


def test_loss_is_flow_matching_on_the_clips_and_leaves_the_rest_alone() -> None:
    """Against the formula, with the policy before the update."""
    learner, report = trained(BESIDE)
    _, without = trained({})
    check_names(report.metrics)
    assert "learner/data_loss/mean" not in without.metrics
    assert report.metrics["learner/loss/mean"] == without.metrics["learner/loss/mean"]
    assert report.metrics["learner/rows/count"] == without.metrics["learner/rows/count"]
    recipe, model = tiny_recipe(), tiny_model(0)
    assert learner._batches.data_loss is not None
    drawn = learner._batches.data_loss.rows(0)
    clips = open_clips("tiny_world", clip_shape(recipe.model), num_clips=8192, clip_seed=0)
    losses = []
    for row, index in enumerate(drawn.indices):
        video, text = clips.clip(index)
        clean, noise, sigma = model.encode(video[None]), drawn.noise[[row]], drawn.sigma[[row]]
        with torch.no_grad():
            velocity = model.velocity(
                add_noise(clean, noise, sigma), sigma, model.encode_prompts([text])
            )
        losses.append(float((velocity - (noise - clean)).square().mean()))
    expected = sum(losses) / 3
    assert report.metrics["learner/data_loss/mean"] == pytest.approx(expected, rel=1e-5)


def test_its_weight_does_not_depend_on_how_many_groups_were_dropped() -> None:
    """With a coefficient that drowns the rest the norm is the clips' alone, four groups or one."""
    drowned = {"data_loss": {"coefficient": 1e6, "batch_size": 3}}
    norms = [
        trained(drowned, uniform=uniform)[1].metrics["learner/grad_norm/total"]
        for uniform in (False, True)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[0] > 1e3


@pytest.mark.parametrize("engine", ["nft", "refl"])
def test_it_goes_with_every_engine(engine: str) -> None:
    algorithm: dict[str, Any] = {**BESIDE, "updates_per_batch": 2}
    learner, actor, recipe = open_forward(engine, algorithm=algorithm)
    groups = sampled(learner, actor, recipe)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/data_loss/mean"] > 0.0
    assert learner.trainee.optimizer_steps == 2


def test_every_update_has_its_own_clips_and_a_resume_the_same(tmp_path: Path) -> None:
    def go_on(learner: RlLearner) -> str:
        learner.publish(1)
        digest = learner.published_digest(1)
        groups = tiny_groups(tiny_model(0), recipe, version=1, digest=digest, step=1)
        learner.train(groups, tiny_rewards(groups), step=1)
        return digest_of(learner)

    learner, actor, recipe = open_forward("dpo", algorithm=BESIDE)
    groups = sampled(learner, actor, recipe)
    learner.train(groups, tiny_rewards(groups), step=0)
    beside = learner._batches.data_loss
    assert beside is not None
    assert beside.rows(0).indices != beside.rows(1).indices
    learner.save(tmp_path)
    resumed, _, _ = open_forward("dpo", algorithm=BESIDE)
    resumed.load(tmp_path)
    assert go_on(resumed) == go_on(learner)


def test_clips_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="captions"):
        trained({"data_loss": {"coefficient": 1.0, "clips": str(tmp_path)}})
