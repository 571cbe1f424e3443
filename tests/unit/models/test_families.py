"""What every model family must do: a LoRA that its pipeline reads, and a true GRPO gradient.

A family has one row in `FAMILIES`, more if its folders differ (with and without a first frame).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.batch import assemble
from rlvid.algorithms.grpo import Grpo
from rlvid.condition import Condition
from rlvid.config import LoraConfig
from rlvid.config.algorithm import AlgorithmConfig
from rlvid.config.rollout import RolloutConfig, StepPlanConfig
from rlvid.flow.sampler import GroupSample, sample_group
from rlvid.flow.step_plans import make_step_plan
from rlvid.models import MODELS
from rlvid.models.lora import (
    LORA_FILE,
    LORA_FILE_2,
    add_lora,
    count_adapter_modules,
    load_lora,
    save_lora,
    trainable_parameters,
)
from rlvid.models.pipeline_model import PipelineModel
from rlvid.records import LearnerBatch, Prompt, Rollout, RolloutGroup, StepPlan

CPU = torch.device("cpu")
GROUP_SIZE = 4
TEXTS = ("a red ball", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One tiny model."""

    use: str
    """Short name in MODELS."""
    build: str
    """"module:function" that returns the adapter, with the same random weights on every call."""
    clip: tuple[int, int, int] = (9, 16, 16)
    """(num_frames, height, width) that it takes."""
    media: Callable[[PipelineModel, int], Condition] | None = None
    """(model, rows) -> what it is told beside the prompt; None where a prompt is all."""
    pipeline_loads_lora: bool = True
    """False where diffusers' pipeline has no `load_lora_weights`, only its transformer."""
    has_experts: bool = False
    """Two transformers, a LoRA file for each."""
    lora_targets: tuple[str, ...] = LoraConfig().target_modules
    """Other than the recipe's default where that would bind to what never learns."""

    @property
    def lora(self) -> LoraConfig:
        """alpha is not the rank."""
        return LoraConfig(rank=2, alpha=8.0, target_modules=self.lora_targets)


def pictures(model: Any, rows: int) -> Condition:
    """Return what a model makes of random frames for clips of 9x32x32, all that it takes."""
    generator = torch.Generator().manual_seed(5)
    frames = {
        name: torch.rand(rows, 3, 32, 32, generator=generator) for name in sorted(model.media)
    }
    condition: Condition = model.encode_media(frames, 9)
    return condition


FAMILIES = {
    "cogvideox": Family(
        use="cogvideox", build="rlvid.models.tiny_families.cogvideox:build_model", clip=(9, 16, 32)
    ),
    "cogvideox_i2v": Family(
        use="cogvideox_i2v",
        build="rlvid.models.tiny_families.cogvideox:build_image_model",
        clip=(9, 32, 32),
        media=pictures,
    ),
    "cosmos": Family(
        use="cosmos", build="rlvid.models.tiny_families.cosmos:build_model", clip=(9, 16, 32)
    ),
    "cosmos_first_frame": Family(
        use="cosmos",
        build="rlvid.models.tiny_families.cosmos:build_model",
        clip=(9, 32, 32),
        media=pictures,
    ),
    "ltx": Family(use="ltx", build="rlvid.models.tiny_families.ltx:build_model", clip=(9, 32, 64)),
    "ltx2": Family(
        use="ltx2",
        build="rlvid.models.tiny_families.ltx2:build_model",
        clip=(9, 32, 64),
        lora_targets=tuple(
            f"{attention}.{layer}"
            for attention in ("attn1", "attn2")
            for layer in LoraConfig().target_modules
        ),
    ),
    "mochi": Family(
        use="mochi", build="rlvid.models.tiny_families.mochi:build_model", clip=(13, 16, 32)
    ),
    "wan": Family(use="wan", build="rlvid.testing:tiny_model"),
    "wan_experts": Family(
        use="wan_experts",
        build="rlvid.models.tiny_families.wan:tiny_experts",
        clip=(9, 32, 32),
        has_experts=True,
    ),
    "wan_i2v": Family(
        use="wan_i2v",
        build="rlvid.models.tiny_families.wan:tiny_i2v",
        clip=(9, 32, 32),
        media=pictures,
    ),
    "wan_flf2v": Family(
        use="wan_i2v",
        build="rlvid.models.tiny_families.wan:tiny_flf2v",
        clip=(9, 32, 32),
        media=pictures,
        lora_targets=("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"),
    ),
    "wan_ti2v": Family(
        use="wan_ti2v",
        build="rlvid.models.tiny_families.wan:tiny_ti2v",
        clip=(9, 32, 32),
        media=pictures,
    ),
    "sd3": Family(use="sd3", build="rlvid.models.tiny_families.sd3:build_model", clip=(1, 16, 32)),
    "hunyuan_video15": Family(
        use="hunyuan_video15",
        build="rlvid.models.tiny_families.hunyuan_video15:build_model",
        pipeline_loads_lora=False,
    ),
    "hunyuan_video15_i2v": Family(
        use="hunyuan_video15_i2v",
        build="rlvid.models.tiny_families.hunyuan_video15:build_image_model",
        clip=(9, 32, 32),
        media=pictures,
        pipeline_loads_lora=False,
    ),
    "hunyuan_video": Family(
        use="hunyuan_video", build="rlvid.models.tiny_families.hunyuan_video:build_model"
    ),
}

WIDE_CLIP_RANGE = 0.5
"""No ratio reaches it; a clipped loss has kinks."""

STEP = 2e-3
"""Of central differences of the fourth order, in units of the adapter's weights."""


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def build(family: Family) -> Any:
    module, _, function = family.build.partition(":")
    return getattr(import_module(module), function)()


def condition_of(family: Family, model: Any, rows: int) -> Condition:
    """Return the condition of `TEXTS`, in turn, with the family's media."""
    condition: Condition = model.encode_prompts([TEXTS[n % len(TEXTS)] for n in range(rows)])
    return condition if family.media is None else condition | family.media(model, rows)


@cache
def inputs(family: Family) -> tuple[Tensor, Tensor, Condition]:
    """Two latents at different noise levels, told two texts."""
    model = build(family)
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(2, *model.latent_shape(*family.clip), generator=generator)
    return latents, torch.tensor([0.9, 0.4]), condition_of(family, model, 2)


def velocity(family: Family, model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.velocity(*inputs(family))
    return result


def with_adapter(family: Family) -> Any:
    """A model whose adapter does something."""
    model = build(family)
    add_lora(model.transformer, family.lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model.transformer, "lora").values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def test_every_registered_family_is_tested_here() -> None:
    """A family that nobody holds to the rules of this file would drift from them."""
    assert {family.use for family in FAMILIES.values()} == set(MODELS)


def test_pipeline_reads_the_lora(family: Family, tmp_path: Path) -> None:
    """`load_lora_weights` is how a stranger uses the result: the bits of the trained policy."""
    model = with_adapter(family)
    assert count_adapter_modules(model.transformer) > 0
    trained = velocity(family, model)
    assert not torch.equal(trained, velocity(family, build(family)))
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
            initial_noise="independent",
            step_plan=StepPlanConfig(kind="isotemporal"),
        ),
        recipe_seed=0,
        prompt_id="prompt",
        step=0,
    )
    condition = condition_of(family, model, 1).expand(GROUP_SIZE)
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
        as_group(sample, plan),
        credit.advantage[0],
        credit.trained[0],
        step_weights=torch.ones(1),
    )
    return batch, condition


def as_group(sample: GroupSample, plan: StepPlan) -> RolloutGroup:
    stacked = [field.name for field in fields(sample) if field.name != "num_forwards"]
    return RolloutGroup(
        group_id="000000-0000",
        lease_id="lease",
        prompt=Prompt(prompt_id="prompt", text=TEXTS[0]),
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
