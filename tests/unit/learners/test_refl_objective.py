"""One rank of the RL learner under reward back-propagation, on a tiny real model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.base import GroupCredit
from rlvid.algorithms.refl import Refl
from rlvid.algorithms.refl_batch import assemble_refl, split_rows
from rlvid.config.base import Section
from rlvid.learners.refl_objective import ReflObjective
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_rewards
from rlvid.observability.metrics import check_names
from rlvid.seeds import derive_seed
from rlvid.testing import tiny_model
from rlvid.weights import trainable_parameters
from tests.unit.learners.forward_learner import (
    digest_of,
    forward_recipe,
    open_forward,
    sampled,
    take_publish,
)

LAST_STEP = {"exit_frac": (0.75, 1.0)}
"""Of the four steps of the tiny recipe, the fourth."""


class Brightness:
    """The mean of the pixels, as a reward plug-in of a user would be."""

    class Config(Section):
        scale: float = 1.0

    def __init__(self, config: Config, device: torch.device) -> None:
        self._scale = config.scale

    def rewards(self, videos: Tensor, texts: Sequence[str]) -> Tensor:
        return self._scale * videos.mean(dim=(1, 2, 3, 4))


BRIGHT = {"use": f"{__name__}:Brightness"}


def refl(**settings: Any) -> dict[str, Any]:
    return {"refl": {"reward": BRIGHT, **LAST_STEP, **settings}}


def bare(config: Any) -> tuple[ReflObjective, Any]:
    """Return an objective on a policy that no engine wraps, and its model: autograd may look in."""
    recipe = forward_recipe("refl", learner={"mode": "full"}, algorithm=config)
    model = tiny_model(0)
    model.transformer.requires_grad_(True)
    objective = ReflObjective(
        Refl(),
        model,
        config=recipe.algorithm,
        rollout=recipe.rollout,
        learner=recipe.learner,
        seed=recipe.seed,
    )
    objective.attach(SimpleNamespace(device=model.device))  # type: ignore[arg-type]
    return objective, model


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    held = trainable_parameters(model.transformer, "full")
    return dict(zip(held, torch.autograd.grad(loss, list(held.values())), strict=True))


def test_gradient_is_that_of_the_chain_written_out_by_hand() -> None:
    """Noise again, one velocity, the clean video, the VAE's own decoder, the mean of its pixels."""
    objective, model = bare(refl())
    recipe = forward_recipe("refl", algorithm=refl())
    group = next(iter(tiny_groups(model, recipe).values()))
    batch = objective.open([group.plan], step=0)
    credit = GroupCredit(advantage=torch.zeros(4), trained=torch.ones(4, dtype=torch.bool))
    [micro_batch] = objective.cut(batch, 0, group, credit, is_fresh=True)
    terms = objective.terms(micro_batch)
    found = gradients(model, terms.loss_sum)

    sigma = group.plan.sigmas[3]
    condition = model.encode_prompts([group.prompt.text])
    loss = torch.zeros(())
    for rollout in group.rollouts:
        seed = derive_seed(recipe.seed, group.group_id, rollout.index, "refl")
        noise = torch.randn(rollout.latents.shape, generator=torch.Generator().manual_seed(seed))
        state = ((1.0 - sigma) * rollout.latents + sigma * noise)[None]
        clean = state - sigma * model.velocity(state, torch.tensor([sigma]), condition)
        config = model.vae.config
        std, mean = (
            torch.tensor(values).view(1, -1, 1, 1, 1)
            for values in (config.latents_std, config.latents_mean)
        )
        pixels = model.vae.decode(clean * std + mean, return_dict=False)[0]
        loss = loss - (pixels / 2.0 + 0.5).clamp(0.0, 1.0).mean()
    expected = gradients(model, loss)
    assert terms.num_rows == 4
    torch.testing.assert_close(terms.loss_sum, loss)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)


def test_from_noise_on_the_video_is_the_rollouts_own() -> None:
    """All steps again with the weights that sampled: what is judged is what was rolled out."""
    learner, actor, recipe = open_forward("refl", algorithm=refl(start="noise"))
    groups = sampled(learner, actor, recipe)
    rewards = [
        float(actor.decode(rollout.latents[None]).mean())
        for group in groups.values()
        for rollout in group.rollouts
    ]
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    expected = sum(rewards) / len(rewards)
    assert metrics["learner/differentiable_reward/mean"] == pytest.approx(expected, abs=1e-5)
    assert metrics["learner/forward_rows/count"] == 4 * 4 * 4


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_it_learns_and_reports_only_what_it_has(mode: str) -> None:
    learner, actor, recipe = open_forward(
        "refl", learner={"mode": mode}, algorithm=refl(reference_weight=0.1)
    )
    groups = sampled(learner, actor, recipe)
    before = digest_of(learner)
    level = tiny_rewards(groups, uniform=list(groups))
    report = learner.train(groups, level, step=0)
    assert digest_of(learner) != before
    assert list(report.trained_group_ids) == list(groups), "a gradient needs no spread"
    check_names(report.metrics)
    assert "learner/replay_drift/max" not in report.metrics
    assert report.metrics["learner/rows/count"] == 4 * 4
    assert report.metrics["learner/reference_distance/mean"] == 0.0
    second = learner.train(groups, level, step=0).metrics
    assert second["learner/reference_distance/mean"] > 0.0


def test_rollout_without_a_score_is_left_out() -> None:
    """Its video may be broken; a group without any is dropped."""
    learner, actor, recipe = open_forward("refl", algorithm=refl())
    groups = sampled(learner, actor, recipe)
    rewards = tiny_rewards(groups)
    rewards.values["reward"][0, 1] = torch.nan
    rewards.values["reward"][1] = torch.nan
    report = learner.train(groups, rewards, step=0)
    assert report.metrics["learner/rows/count"] == 3 + 4 + 4
    assert list(report.dropped_group_ids) == [list(groups)[1]]


@pytest.mark.parametrize("crosses", [True, False])
def test_two_steps_have_another_gradient_and_the_same_start(crosses: bool) -> None:
    learner, actor, recipe = open_forward(
        "refl", algorithm=refl(num_gradient_steps=2, crosses_inputs=crosses)
    )
    groups = sampled(learner, actor, recipe)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/forward_rows/count"] == 2 * 4 * 4
    assert metrics["learner/grad_norm/total"] > 0.0


def test_video_past_the_target_is_left_alone() -> None:
    learner, actor, recipe = open_forward("refl", algorithm=refl(target=-1.0))
    groups = sampled(learner, actor, recipe)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/loss/mean"] == metrics["learner/grad_norm/total"] == 0.0


def test_rows_follow_from_their_rollout_and_add_up_over_any_cut() -> None:
    recipe = forward_recipe("refl", algorithm=refl())
    group = next(iter(tiny_groups(tiny_model(0), recipe).values()))
    config = recipe.algorithm
    path = Refl().path(4, config, generator=torch.Generator())
    everything = assemble_refl(group, torch.ones(4) > 0, path, config.refl, seed=0)
    some = assemble_refl(group, torch.tensor([0, 1, 0, 1]) > 0, path, config.refl, seed=0)
    assert torch.equal(everything.start[[1, 3]], some.start)
    parts = split_rows(everything, 3)
    assert [len(part.start) for part in parts] == [3, 1]
    assert torch.equal(torch.cat([part.start for part in parts]), everything.start)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_resumed_learner_goes_on_bit_for_bit(mode: str, tmp_path: Path) -> None:
    def advance(learner: RlLearner, actor: Any, first: int, last: int) -> None:
        for step in range(first, last):
            take_publish(learner, actor, recipe, step)
            groups = sampled(learner, actor, recipe, step)
            learner.train(groups, tiny_rewards(groups), step=step)

    settings = {"learner": {"mode": mode}, "algorithm": refl(reference_weight=0.1)}
    learner, actor, recipe = open_forward("refl", **settings)
    advance(learner, actor, 0, 2)
    learner.save(tmp_path)
    advance(learner, actor, 2, 4)
    resumed, fresh, _ = open_forward("refl", **settings)
    resumed.load(tmp_path)
    advance(resumed, fresh, 2, 4)
    assert digest_of(resumed) == digest_of(learner)


def test_decoder_has_the_bits_of_decode_and_a_gradient() -> None:
    """Against the central difference along one direction, in float32."""
    model: Any = tiny_model(0)
    generator = torch.Generator().manual_seed(0)
    latents, direction = (torch.randn(2, 4, 3, 2, 2, generator=generator) for _ in range(2))
    assert torch.equal(model.decode_with_gradient(latents), model.decode(latents))
    wanted = latents.requires_grad_()
    model.decode_with_gradient(wanted).square().mean().backward()
    h = 1e-2
    with torch.no_grad():
        high, low = (
            model.decode(latents + sign * h * direction).double().square().mean()
            for sign in (1.0, -1.0)
        )
    assert wanted.grad is not None
    along = float((wanted.grad * direction).sum())
    assert along == pytest.approx(float(high - low) / (2.0 * h), rel=2e-2)


def test_zero_3_takes_one_step_alone() -> None:
    with pytest.raises(ValueError, match=r"num_gradient_steps: ZeRO 3 .* expected 1, got 2"):
        open_forward("refl", learner={"zero_stage": 3}, algorithm=refl(num_gradient_steps=2))


def test_model_without_such_a_decoder_is_named() -> None:
    recipe = open_forward("refl", algorithm=refl())[2]
    with pytest.raises(ValueError, match="decode_with_gradient"):
        ReflObjective(
            None,  # type: ignore[arg-type]
            object(),  # type: ignore[arg-type]
            config=recipe.algorithm,
            rollout=recipe.rollout,
            learner=recipe.learner,
            seed=0,
        )


@pytest.mark.slow
@pytest.mark.parametrize("start", ["renoised", "noise"])
def test_it_raises_the_reward(start: str) -> None:
    """Of whole sampled videos, not of the step that is trained: by several of their spreads."""
    learner, actor, recipe = open_forward(
        "refl",
        learner={"mode": "full", "optimizer": {"learning_rate": 3e-3}},
        algorithm=refl(start=start),
    )
    for step in range(11):
        take_publish(learner, actor, recipe, step)
        groups = sampled(learner, actor, recipe, step)
        learner.train(groups, tiny_rewards(groups), step=step)

    def brightness(model: Any) -> Tensor:
        groups = tiny_groups(model, recipe).values()
        clips = torch.stack([one.latents for group in groups for one in group.rollouts])
        pixels: Tensor = model.decode(clips).mean(dim=(1, 2, 3, 4))
        return pixels

    before, after = brightness(tiny_model(0)), brightness(actor)
    assert float(after.mean() - before.mean()) > 3.0 * float(before.std())
