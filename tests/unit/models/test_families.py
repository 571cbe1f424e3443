"""Of every family: the protocol, a LoRA that its pipeline reads, and a true GRPO gradient.

`test_families_folders`, `test_families_sampling` and `test_families_frames` have the rest of it.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.algorithms.batch import assemble
from rlvid.algorithms.grpo import Grpo
from rlvid.condition import Condition
from rlvid.config.algorithm import AlgorithmConfig
from rlvid.config.rollout import RolloutConfig
from rlvid.config.step_plan import StepPlanConfig
from rlvid.flow.sampler import GroupSample, sample_group
from rlvid.flow.step_plans import make_step_plan
from rlvid.models import MODELS
from rlvid.models.base import MediaModel
from rlvid.models.lora import (
    LORA_FILE,
    LORA_FILE_2,
    count_adapter_modules,
    load_lora,
    save_lora,
    trainable_parameters,
)
from rlvid.records import LearnerBatch, Prompt, Rollout, RolloutGroup, StepPlan
from rlvid.testing import check_model
from tests.unit.models.family_checks import (
    BFLOAT16_DEVIATION,
    FAMILIES,
    FOLDERS,
    Family,
    build,
    condition_of,
    deviation,
    velocity,
    with_adapter,
)

GROUP_SIZE = 4

WIDE_CLIP_RANGE = 0.5
"""No ratio reaches it; a clipped loss has kinks."""

STEP = 2e-3
"""Of central differences of the fourth order, in units of the adapter's weights."""


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def test_every_registered_family_is_tested_here() -> None:
    """A family that nobody holds to the rules of this file would drift from them."""
    assert {family.use for family in FAMILIES.values()} == set(MODELS)


@pytest.mark.parametrize("name", FOLDERS)
def test_adapter_keeps_the_protocol(name: str) -> None:
    model, (num_frames, height, width) = build(FOLDERS[name]), FOLDERS[name].clip
    check_model(model, num_frames=num_frames, height=height, width=width)
    assert isinstance(model, MediaModel) or not FOLDERS[name].is_shown_frames


def test_pipeline_reads_the_lora(family: Family, tmp_path: Path) -> None:
    """`load_lora_weights` is how a stranger uses the result: the bits of the trained policy."""
    model = with_adapter(family)
    assert count_adapter_modules(model.transformer) > 0
    trained = velocity(family, model)
    # Seen through a bfloat16 transformer too.
    assert deviation(trained, velocity(family, build(family))) > 3.0 * BFLOAT16_DEVIATION
    save_lora(tmp_path, trainable_parameters(model.transformer, "lora"), family.lora)

    stranger = build(family)
    if family.has_experts:
        second = {"weight_name": LORA_FILE_2, "load_into_transformer_2": True}
        for options in ({}, second):
            stranger._pipeline.load_lora_weights(str(tmp_path), **options)
    elif family.pipeline_loads_lora:
        stranger._pipeline.load_lora_weights(str(tmp_path))
    else:
        assert not hasattr(stranger._pipeline, "load_lora_weights")
        stranger.transformer.load_lora_adapter(str(tmp_path), weight_name=LORA_FILE)
    assert torch.equal(velocity(family, stranger), trained)

    again = build(family)
    load_lora(again.transformer, tmp_path)
    assert torch.equal(velocity(family, again), trained)


def test_grpo_gradient_is_that_of_finite_differences(family: Family) -> None:
    """Of one step, sampled, rewarded and credited, it is the slope of the loss in any direction.

    Along a standard normal direction the slope is of the size of the gradient's norm, by which the
    tolerance goes: forwards are float32, so a difference of losses carries rounding of some 1e-7.
    """
    model = with_adapter(family)
    batch, condition = sampled_batch(family, model)
    parameters = list(trainable_parameters(model.transformer, "lora").values())
    before = [parameter.detach().clone() for parameter in parameters]
    terms = loss_terms(model, batch, condition)
    assert terms.maxima["ratio_deviation_max"] == 0.0
    gradient = torch.autograd.grad(terms.loss_sum, parameters)
    norm = float(sum(part.square().sum() for part in gradient)) ** 0.5
    assert norm > 1e-3

    def loss_at(distance: float) -> float:
        with torch.no_grad():
            for parameter, start, way in zip(parameters, before, direction, strict=True):
                parameter.copy_(start + distance * way)
            return float(loss_terms(model, batch, condition).loss_sum)

    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator) for p in parameters]
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        near, far = (loss_at(h) - loss_at(-h) for h in (STEP, 2.0 * STEP))
        measured = (8.0 * near - far) / (12.0 * STEP)
        assert measured == pytest.approx(slope, abs=1e-2 * norm)


def loss_terms(model: Any, batch: LearnerBatch, condition: Condition) -> Any:
    predicted = model.velocity(batch.latents, batch.sigma, condition)
    config = AlgorithmConfig(clip_range=WIDE_CLIP_RANGE)
    return Grpo().loss(batch, predicted, config=config)


def sampled_batch(family: Family, model: Any) -> tuple[LearnerBatch, Condition]:
    """Return a group with one trained step, rewarded by how bright its clips are."""
    plan = make_step_plan(
        RolloutConfig(
            group_size=GROUP_SIZE,
            num_denoising_steps=3,
            shift=3.0,
            initial_noise="independent",
            step_plan=StepPlanConfig(kind="isotemporal"),
        ),
        recipe_seed=0,
        prompt_id="prompt",
        step=0,
    )
    condition = condition_of(family, model, [family.caption]).expand(GROUP_SIZE)
    sample = sample_group(
        lambda latents, sigma: model.velocity(latents, sigma, condition),
        plan,
        noise_seeds=range(GROUP_SIZE),
        step_seeds=range(10, 10 + GROUP_SIZE),
        latent_shape=model.latent_shape(*family.clip),
    )
    brightness = model.decode(sample.latents).mean(dim=(1, 2, 3, 4))
    credit = Grpo().credit(
        {"brightness": brightness[None]}, {"brightness": 1.0}, AlgorithmConfig().advantage
    )
    batch = assemble(
        as_group(sample, plan, family.caption),
        credit.advantage[0],
        credit.trained[0],
        step_weights=torch.ones(1),
    )
    return batch, condition


def as_group(sample: GroupSample, plan: StepPlan, text: str) -> RolloutGroup:
    stacked = [field.name for field in fields(sample) if field.name != "num_forwards"]
    return RolloutGroup(
        group_id="000000-0000",
        lease_id="lease",
        prompt=Prompt(prompt_id="prompt", text=text),
        plan=plan,
        rollouts=tuple(
            Rollout(
                index=g,
                noise_seed=g,
                step_seed=g,
                **{name: getattr(sample, name)[g] for name in stacked},
            )
            for g in range(GROUP_SIZE)
        ),
        policy_version=0,
        weights_digest="",
        actor_id="actor",
        sample_s=0.0,
        num_forwards=sample.num_forwards,
    )
