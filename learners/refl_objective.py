"""Training by the gradient of a reward through the last denoising steps: refl.

The groups give prompts, and videos or initial noise to start from. Nothing is compared with how
they were sampled, so there is no replay and no drift. The steps are guided as the rollout's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rlvid.algorithms.base import GroupCredit, LossTerms
from rlvid.algorithms.data_regulariser import velocity_distance
from rlvid.algorithms.refl import GradientPath, Refl, judged, sample_with_gradient
from rlvid.algorithms.refl_batch import ReflBatch, assemble_refl, split_rows
from rlvid.config import AlgorithmConfig, KlConfig, LearnerConfig, RolloutConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.prompt_condition import prompt_condition
from rlvid.flow.sampler import VelocityFunction, sample_ode
from rlvid.learners.objective_base import ObjectiveBase
from rlvid.learners.open_batch import MicroBatch, OpenBatch
from rlvid.learners.reference import Reference
from rlvid.models.base import VideoModel
from rlvid.records import Prompt, RolloutGroup, StepPlan
from rlvid.reward_models.differentiable import open_differentiable
from rlvid.seeds import derive_seed


@runtime_checkable
class DecodesWithGradient(Protocol):
    """A video model through whose decoder a gradient flows."""

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] -> videos [B, T, 3, height, width] float32 in [0, 1]."""
        ...


class ReflObjective(ObjectiveBase):
    """The loss of videos that are predicted again, decoded and judged with gradient."""

    def __init__(
        self,
        algorithm: Refl,
        model: VideoModel,
        *,
        config: AlgorithmConfig,
        rollout: RolloutConfig,
        learner: LearnerConfig,
        seed: int,
    ) -> None:
        """Open the reward, and take the reference where it pulls; the policy is bare here.

        Args:
            seed: the recipe's; noise and steps follow from it.
        """
        if not isinstance(model, DecodesWithGradient):
            raise ValueError(
                f"algorithm.use: {config.use} needs a decoder with a gradient: expected a model "
                f"with decode_with_gradient(latents), got {type(model).__name__}"
            )
        if learner.zero_stage == 3 and config.refl.num_gradient_steps > 1:
            raise ValueError(
                "algorithm.refl.num_gradient_steps: ZeRO 3 lets no second forward in before the "
                f"backward of the first: expected 1, got {config.refl.num_gradient_steps}; or set "
                "learner.zero_stage to 2 or below"
            )
        self._algorithm = algorithm
        self._model = model
        self._decode = model.decode_with_gradient
        self._config = config
        self._rollout = rollout
        self._learner = learner
        self._seed = seed
        self._reward = open_differentiable(config.refl.reward, device=model.device)
        kind = KlConfig(kind="reference" if config.refl.reference_weight else "none")
        self._reference = Reference(model, kind, mode=learner.mode)

    @property
    def algorithm(self) -> Refl:
        return self._algorithm

    def open(self, plans: Sequence[StepPlan], *, step: int) -> OpenBatch:
        """Return the batch; every rollout is a row."""
        return OpenBatch(
            step=step,
            num_groups=len(plans),
            plans=plans,
            step_weights=(),
            nominal_rows=float(len(plans) * self._rollout.group_size),
            keeps=self._config.updates_per_batch > 1,
        )

    def cut(
        self,
        batch: OpenBatch,
        row: int,
        group: RolloutGroup,
        credit: GroupCredit,
        *,
        is_fresh: bool,
    ) -> list[MicroBatch[ReflBatch]]:
        """Draw the steps of a group and cut its rollouts into forwards.

        None is marked fresh: there is no replay that could be off.
        """
        generator = torch.Generator().manual_seed(
            derive_seed(self._seed, group.group_id, "gradient_path")
        )
        assembled = assemble_refl(
            group,
            credit.trained,
            self._algorithm.path(group.plan.num_steps, self._config, generator=generator),
            self._config.refl,
            seed=self._seed,
            device=self._attached.device,
        )
        return [
            MicroBatch(batch=part, is_fresh=False, num_forwards=len(part.start) * len(part.sigmas))
            for part in split_rows(assembled, self._learner.micro_batch_rows)
        ]

    def terms(self, micro_batch: MicroBatch[ReflBatch]) -> LossTerms:
        """Walk to the first step with a gradient, then on with it, decode, and ask the reward.

        The reference speaks before the policy does with gradient: between a forward and its
        backward stage 3 wants no other.
        """
        batch = micro_batch.batch
        velocity = self._velocity_for(batch.prompt, batch.start.shape[1:])
        first = len(batch.sigmas) - batch.num_gradient_steps
        state = sample_ode(velocity, batch.start, batch.sigmas[: first + 1])
        reference_velocity = self._reference_velocity(velocity, state, batch.sigmas[first])
        spoken: list[Tensor] = []

        def recorded(latents: Tensor, sigma: Tensor) -> Tensor:
            spoken.append(velocity(latents, sigma))
            return spoken[-1]

        path = GradientPath(
            num_gradient_steps=batch.num_gradient_steps,
            crosses_inputs=self._config.refl.crosses_inputs,
        )
        clean = sample_with_gradient(recorded, state, (*batch.sigmas[first:], 0.0), path)
        texts = [batch.prompt.text] * len(state)
        rewards = judged(
            clean, decode=self._decode, reward=lambda videos: self._reward.rewards(videos, texts)
        )
        distance = None
        if reference_velocity is not None:
            distance = velocity_distance(spoken[0], reference_velocity)
        return self._algorithm.terms(
            rewards, batch.trained, config=self._config, reference_distance=distance
        )

    def kept(self, micro_batch: MicroBatch[ReflBatch], terms: LossTerms) -> MicroBatch[ReflBatch]:
        """Return it as it is: a later update starts from the same states."""
        return micro_batch

    @torch.no_grad()
    def _reference_velocity(
        self, velocity: VelocityFunction, state: Tensor, sigma: float
    ) -> Tensor | None:
        """[N, C, F, H, W] of the policy before RL at `sigma`; None where it does not pull."""
        if not self._reference.is_used:
            return None
        with self._reference.speaking():
            return velocity(state, state.new_full((len(state),), sigma))

    def _velocity_for(self, prompt: Prompt, latent_shape: Sequence[int]) -> VelocityFunction:
        """Return the velocity of whoever speaks, guided as in rollouts."""
        condition, negative = prompt_condition(self._model, [prompt], latent_shape)
        scale = self._rollout.guidance_scale
        return lambda latents, sigma: guided_velocity(
            self._model, latents, sigma, condition, negative, scale
        )
