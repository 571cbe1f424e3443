"""Samples groups from the policy it holds; a plain class, run by a Ray actor or by a test.

It is stateless but for its weights: a GroupTask and the weights version replay a group.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlvid.config import LearnerConfig, ModelConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import GroupSample, sample_group
from rlvid.models.base import VideoModel
from rlvid.models.policy import Policy, open_policy
from rlvid.records import GroupTask, Rollout, RolloutGroup, WeightsManifest
from rlvid.weights import apply_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReceipt:
    """An actor's word that it samples with a publish from now on."""

    actor_id: str
    version: int
    digest: str
    """Of the manifest it took."""
    num_bytes: int
    swap_s: float
    """Seconds of verifying and swapping."""


class RolloutWorker:
    """One video model and the weights version it samples with."""

    def __init__(self, model: VideoModel, model_config: ModelConfig, *, actor_id: str, mode: str):
        self._model = model
        self._model_config = model_config
        self._actor_id = actor_id
        self._mode = mode
        self._version = -1
        self._digest = "base"

    @property
    def actor_id(self) -> str:
        return self._actor_id

    def sample(self, task: GroupTask) -> RolloutGroup:
        """Sample every rollout of the task under one step plan."""
        started = time.perf_counter()
        config = self._model_config
        shape = self._model.latent_shape(config.num_frames, config.height, config.width)
        with torch.no_grad():
            prompt_embeds = self._model.encode_prompts([task.prompt.model_text])
            negative = self._model.encode_prompts([""])
            sample = sample_group(
                lambda latents, sigma: guided_velocity(
                    self._model, latents, sigma, prompt_embeds, negative, task.guidance_scale
                ),
                task.plan,
                noise_seeds=task.noise_seeds,
                step_seeds=task.step_seeds,
                latent_shape=shape,
                device=self._model.device,
            )
        return RolloutGroup(
            group_id=task.group_id,
            lease_id=task.lease_id,
            prompt=task.prompt,
            plan=task.plan,
            rollouts=_rollouts(task, sample),
            policy_version=self._version,
            weights_digest=self._digest,
            actor_id=self._actor_id,
            sample_s=time.perf_counter() - started,
            num_forwards=sample.num_forwards,
        )

    def fetch_weights(
        self,
        manifest: WeightsManifest,
        buckets: Sequence[np.ndarray[tuple[int], np.dtype[np.uint8]]],
    ) -> WeightsReceipt:
        """Verify a publish, load it and sample with it from the next group on.

        Raises:
            ValueError: digest, base model, names, shapes or version do not fit; the weights held
                before stay in place.
        """
        started = time.perf_counter()
        if manifest.version <= self._version:
            raise ValueError(
                f"{self._actor_id}: weights version {manifest.version} is not newer than "
                f"{self._version}, which it already samples with; publish a higher version"
            )
        apply_weights(manifest, buckets, self._model.transformer, mode=self._mode)
        self._version = manifest.version
        self._digest = manifest.digest
        return WeightsReceipt(
            actor_id=self._actor_id,
            version=manifest.version,
            digest=manifest.digest,
            num_bytes=sum(bucket.num_bytes for bucket in manifest.buckets),
            swap_s=time.perf_counter() - started,
        )

    def use_policy(self, policy: Policy) -> None:
        """Replace the model by a policy from files; used by evaluation, not by training."""
        self._model = open_policy(policy, self._model_config)
        self._version = -1
        self._digest = "files"

    def canary(self, latents: Tensor, sigma: Tensor, text: str) -> Tensor:
        """Return the velocity for a fixed input; the learner's must be the same."""
        with torch.no_grad():
            return self._model.velocity(
                latents.to(self._model.device),
                sigma.to(self._model.device),
                self._model.encode_prompts([text]),
            ).cpu()


def open_rollout_worker(
    policy: Policy,
    model_config: ModelConfig,
    learner_config: LearnerConfig | None,
    *,
    actor_id: str,
    num_threads: int,
) -> RolloutWorker:
    """Load a policy and make it ready to take weights from the learner.

    Args:
        learner_config: None when the worker will only sample (evaluation); else what the learner
            trains, so that LoRA adapters are bound before the first publish.
    """
    torch.set_num_threads(num_threads)
    model = open_policy(policy, model_config)
    mode = "full"
    if learner_config is not None and learner_config.mode == "lora":
        from rlvid.models.lora import add_lora

        add_lora(model.transformer, learner_config.lora)
        mode = "lora"
    model.transformer.eval()
    return RolloutWorker(model, model_config, actor_id=actor_id, mode=mode)


def _rollouts(task: GroupTask, sample: GroupSample) -> tuple[Rollout, ...]:
    return tuple(
        Rollout(
            index=index,
            noise_seed=task.noise_seeds[index],
            step_seed=task.step_seeds[index],
            latents=sample.latents[index].cpu(),
            trained_latents=sample.trained_latents[index].cpu(),
            trained_next_latents=sample.trained_next_latents[index].cpu(),
            behaviour_mean=sample.behaviour_mean[index].cpu(),
            behaviour_log_prob=sample.behaviour_log_prob[index].cpu(),
        )
        for index in range(len(task.noise_seeds))
    )
