"""A tiny rollout worker, publishes for it and groups to sample; shared by the tests of weights."""

from __future__ import annotations

from typing import Any

import torch

from rlvid.actors.rollout_worker import RolloutWorker
from rlvid.config import LoraConfig, ModelConfig, RolloutConfig, WeightsConfig
from rlvid.flow.step_plans import make_step_plan
from rlvid.models.lora import add_lora
from rlvid.records import GroupTask, Prompt, RolloutGroup, WeightsManifest
from rlvid.testing import tiny_model
from rlvid.weights import Bucket, base_digest, pack, trainable_parameters

CLIP = ModelConfig(num_frames=5, height=16, width=16)
SAMPLING = RolloutConfig(shift=3.0, group_size=2, num_denoising_steps=2, guidance_scale=1.0)
LORA = LoraConfig(rank=2, alpha=4.0)


def open_worker(mode: str = "full", *, verify_live_every: int = 1) -> RolloutWorker:
    """Return a worker on the tiny model of seed 0."""
    model = tiny_model(0)
    if mode == "lora":
        add_lora(model.transformer, LORA)
    return RolloutWorker(
        model,
        CLIP,
        actor_id="actor-0.0",
        mode=mode,
        weights_config=WeightsConfig(verify_live_every=verify_live_every),
    )


def transformer_of(worker: RolloutWorker) -> Any:
    inside: Any = worker
    return inside._model.transformer


def published(
    version: int, *, incarnation: int = 0, mode: str = "full", seed: int | None = None
) -> tuple[WeightsManifest, list[Bucket]]:
    """Return a publish of random weights; `seed` is the version's where not given."""
    transformer = tiny_model(0).transformer
    if mode == "lora":
        add_lora(transformer, LORA)
    parameters = trainable_parameters(transformer, mode)
    generator = torch.Generator().manual_seed(version if seed is None else seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return pack(
        parameters,
        incarnation=incarnation,
        version=version,
        parent_version=version - 1,
        kind=mode,
        base_digest=base_digest(transformer, mode),
        bucket_bytes=32 * 2**10 if mode == "full" else 2**10,
    )


def task() -> GroupTask:
    """Return always the same group to sample."""
    return GroupTask(
        group_id="000000-00",
        lease_id="lease",
        prompt=Prompt(prompt_id="p", text="a red ball falls"),
        plan=make_step_plan(SAMPLING, recipe_seed=0, prompt_id="p", step=0),
        noise_seeds=(1, 1),
        step_seeds=(2, 3),
        guidance_scale=1.0,
    )


def clips(group: RolloutGroup) -> torch.Tensor:
    """Return the sampled latents, [G, C, F, H, W]."""
    return torch.stack([rollout.latents for rollout in group.rollouts])
