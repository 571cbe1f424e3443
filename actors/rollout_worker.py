"""Samples groups from the policy it holds; a plain class, run by a Ray actor or by a test.

It is stateless but for its weights: a GroupTask and the weights version replay a group.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlvid.actors.student_group import sample_student_group
from rlvid.config import LearnerConfig, ModelConfig, WeightsConfig
from rlvid.config.inference import InferenceConfig
from rlvid.flow.prompt_condition import canary_condition, prompt_condition
from rlvid.flow.sampler import GroupSample, sample_group
from rlvid.inference.optimise import OptimisedModel, optimise
from rlvid.models.base import VideoModel
from rlvid.models.policy import Policy, open_policy
from rlvid.models.student import StudentSampling
from rlvid.records import GroupTask, Rollout, RolloutGroup, WeightsManifest, WeightsReceipt
from rlvid.weights import Bucket, WeightsHolder, WeightsPart

if TYPE_CHECKING:
    from rlvid.actors.gang import Gang


class RolloutWorker:
    """One video model and the weights version it samples with."""

    def __init__(
        self,
        model: VideoModel,
        model_config: ModelConfig,
        *,
        actor_id: str,
        mode: str,
        weights_config: WeightsConfig | None = None,
        student: StudentSampling | None = None,
    ) -> None:
        """`student` is how tasks without stochastic steps are sampled, of a distilled policy."""
        self._model = model
        self._student = student
        self._model_config = model_config
        self._actor_id = actor_id
        self._mode = mode
        self._weights_config = weights_config or WeightsConfig()
        self._weights = self._hold()
        self._optimised = OptimisedModel(model, InferenceConfig())
        self._base_name = "base"
        self._lock = threading.Lock()
        """Held by whoever uses the model or changes it; staging does neither."""
        self._num_steps = 0
        self._gang: Gang | None = None

    @property
    def actor_id(self) -> str:
        return self._actor_id

    @property
    def held(self) -> tuple[int, int]:
        """(incarnation, version) that the next group will be sampled with; (-1, -1) is none yet."""
        return self._weights.newest

    @property
    def live(self) -> tuple[int, int]:
        """(incarnation, version) that the last group or canary was computed with."""
        return self._weights.order

    @property
    def num_steps(self) -> int:
        """Denoising steps done since it began; read from another thread to see that it goes on."""
        return self._num_steps

    def sample(self, task: GroupTask) -> RolloutGroup:
        """Sample every rollout of the task under one step plan.

        New weights that were staged become the live ones first, and no later: a video has one
        policy.

        Raises:
            WeightsError: the live parameters are not what was published; stage again.
            GangError: a process that this one samples with is gone or late.
        """
        with self._lock, self._together():
            swap_s = self._swap()
            group = self._sample(task, swap_s)
            self._weights.check_live()
            return group

    def _sample(self, task: GroupTask, swap_s: float) -> RolloutGroup:
        started = time.perf_counter()
        config = self._model_config
        shape = self._model.latent_shape(config.num_frames, config.height, config.width)
        if self._student is not None and not task.plan.stochastic_steps:
            with self._optimised.plain():
                sample = sample_student_group(
                    self._model, self._student, task, latent_shape=shape, dtype=config.dtype
                )
            self._num_steps += len(self._student.sigmas)
            return self._group(task, sample, swap_s, time.perf_counter() - started)
        with torch.no_grad(), self._optimised.clip(is_plain=task.is_pinned) as clip:
            condition, negative = prompt_condition(
                self._model, [task.prompt], shape, encode_prompts=clip.encode_prompts
            )

            def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
                found = clip.guided_velocity(
                    latents, sigma, condition, negative, task.guidance_scale
                )
                self._num_steps += 1
                return found

            sample = sample_group(
                velocity,
                task.plan,
                noise_seeds=task.noise_seeds,
                step_seeds=task.step_seeds,
                latent_shape=shape,
                device=self._model.device,
            )
        return self._group(task, sample, swap_s, time.perf_counter() - started)

    def _group(
        self, task: GroupTask, sample: GroupSample, swap_s: float, sample_s: float
    ) -> RolloutGroup:
        return RolloutGroup(
            group_id=task.group_id,
            lease_id=task.lease_id,
            prompt=task.prompt,
            plan=task.plan,
            rollouts=_rollouts(task, sample),
            policy_version=self._weights.version,
            weights_digest=self._weights.digest if self._weights.version >= 0 else self._base_name,
            actor_id=self._actor_id,
            sample_s=sample_s,
            num_forwards=sample.num_forwards,
            swap_s=swap_s,
        )

    def stage(
        self, manifest: WeightsManifest, parts: Sequence[Bucket | WeightsPart]
    ) -> WeightsReceipt:
        """Verify a publish into the spare buffer; the next group is sampled with it.

        May run in another thread while `sample` runs. The newest (incarnation, version) wins; the
        same one again is acknowledged and nothing done.

        Args:
            parts: the buckets, or what says where they are (`rlvid.weights.sources`).

        Raises:
            WeightsError: older than what is held, of another model, damaged or incomplete. What is
                held stays; a damaged publish may be fetched again.
        """
        return self._weights.stage(manifest, parts)

    def fetch_weights(
        self, manifest: WeightsManifest, parts: Sequence[Bucket | WeightsPart]
    ) -> WeightsReceipt:
        """Stage a publish and make it the live one as soon as no group is being sampled.

        Raises:
            WeightsError: as `stage`, or the live parameters are not what was published.
        """
        receipt = self._weights.stage(manifest, parts)
        with self._lock, self._together():
            swap_s = self._swap()
            self._weights.check_live()
        return replace(receipt, swap_s=swap_s)

    def optimise(self, config: InferenceConfig) -> None:
        """Sample with these optimisations from now on, but for pinned groups and the canary.

        Raises:
            ValueError: the setting cannot run here, or does not go with how weights are published.
        """
        if config.quantise != "none" and self._mode != "lora":
            raise ValueError(
                f"rollout.inference.quantise: expected learner.mode 'lora' with "
                f"{config.quantise!r}, got {self._mode!r}: a publish would replace the weights "
                "that were quantised. Train a LoRA, or set quantise to none"
            )
        with self._lock:
            self._weights.note_base()
            try:
                self._optimised = optimise(self._model, config)
            except ValueError as error:
                raise ValueError(f"rollout.{error}") from error

    def join(self, gang: Gang) -> None:
        """Sample together with the gang's processes, which load the same policy, from now on.

        Raises:
            ValueError: the model's tokens cannot be spread over them.
            GangError: one ended, or did not load in time.
        """
        with self._lock:
            self._gang = gang
            gang.lead(self._model.transformer)

    def use_policy(self, policy: Policy) -> None:
        """Replace the model by a policy from files; used by evaluation, not by training."""
        with self._lock, self._together():
            if self._gang is not None:
                self._gang.begin_open(policy)
            self._model = open_policy(policy, self._model_config)
            self._student = policy.sampling
            self._optimised = OptimisedModel(self._model, InferenceConfig())
            self._weights = self._hold()
            self._base_name = "files"
            if self._gang is not None:
                self._gang.lead(self._model.transformer)

    def canary(self, latents: Tensor, sigma: Tensor, text: str) -> Tensor:
        """Return the velocity for a fixed input; the learner's must be the same.

        It speaks for the newest weights: what is staged becomes live first. Optimisations are off:
        it asks what the weights are, and how far sampling drifts is for the learner to measure.
        """
        with self._lock, self._together(), torch.no_grad(), self._optimised.plain():
            self._swap()
            self._weights.check_live()
            return self._model.velocity(
                latents.to(self._model.device),
                sigma.to(self._model.device),
                canary_condition(self._model, text, latents.shape[1:]),
            ).cpu()

    def _together(self) -> AbstractContextManager[None]:
        return nullcontext() if self._gang is None else self._gang.explained()

    def _swap(self) -> float:
        """Make staged weights live, here and in the gang; return the seconds."""
        swap_s = self._weights.swap()
        if self._gang is None:
            return swap_s
        return swap_s + self._gang.hold(
            self._weights.manifest,
            self._model.transformer,
            verify_every=self._weights_config.verify_live_every,
        )

    def _hold(self) -> WeightsHolder:
        return WeightsHolder(
            self._model.transformer,
            mode=self._mode,
            actor_id=self._actor_id,
            verify_live_every=self._weights_config.verify_live_every,
            num_threads=torch.get_num_threads(),
        )


def open_rollout_worker(
    policy: Policy,
    model_config: ModelConfig,
    learner_config: LearnerConfig | None,
    *,
    actor_id: str,
    num_threads: int,
    weights_config: WeightsConfig | None = None,
    options: Mapping[str, Any] | None = None,
) -> RolloutWorker:
    """Load a policy and make it ready to take weights from the learner.

    Args:
        learner_config: None when the worker will only sample (evaluation); else what the learner
            trains, so that LoRA adapters are bound before the first publish.
        options: `rollout.worker_options`; this worker has none.
    """
    if options:
        raise ValueError(
            f"rollout.worker_options: the diffusion worker has none, got {sorted(options)}; "
            "leave them out"
        )
    torch.set_num_threads(num_threads)
    model, mode = open_for_sampling(policy, model_config, learner_config)
    return RolloutWorker(
        model,
        model_config,
        actor_id=actor_id,
        mode=mode,
        weights_config=weights_config,
        student=policy.sampling,
    )


def open_for_sampling(
    policy: Policy, model_config: ModelConfig, learner_config: LearnerConfig | None
) -> tuple[VideoModel, str]:
    """Load a policy, adapters bound if the learner trains such; return it and "full" or "lora"."""
    model = open_policy(policy, model_config)
    mode = "full"
    if learner_config is not None and learner_config.mode == "lora":
        from rlvid.models.lora import add_lora

        add_lora(model.transformer, learner_config.lora)
        mode = "lora"
    model.transformer.eval()
    return model, mode


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
