"""The `algorithm` section: credit and loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section, is_set, refuse_unread
from rlvid.config.tree import TreeConfig


class AdvantageConfig(Section):
    """From scores to advantages."""

    std: Literal["group", "global", "max_group", "none"] = "group"
    """What the centred reward is divided by: the group's std, the std over the whole batch, or the
    largest group std of the batch (LongCat-Video, arXiv:2510.22200). none divides by 1, for rewards
    that have a scale of their own, such as `rewards.aggregation.running` gives them."""
    best_of_n: int | None = Field(default=None, ge=2)
    """Keep the top and bottom halves of this many rollouts of a group (DanceGRPO); None: all."""
    clip: float = Field(default=5.0, gt=0.0)
    """Advantages are clipped to [-clip, clip]."""
    min_std: float = Field(default=1e-6, gt=0.0)
    """A group whose reward std is below this has no spread and is dropped and counted."""


class KlConfig(Section):
    """Pull towards another policy; the closed form of Flow-GRPO on velocities."""

    kind: Literal["none", "reference", "moving_anchor", "dual"] = "none"
    """reference: the policy before RL; moving_anchor: a copy of the policy, renewed at times; dual:
    both at once."""
    coefficient: float = Field(default=3e-4, ge=0.0)
    """Of dual: to the reference."""
    anchor_coefficient: float = Field(default=3e-4, ge=0.0)
    """Of dual: to the moving anchor. A ratio for this pair was not found; SAGE-GRPO's 1.0 to 0.1 is
    of a moving anchor and the policy one update ago."""
    anchor_every: int = Field(default=10, ge=2)
    """Optimiser steps between renewals of the moving anchor (SAGE-GRPO, arXiv:2603.21872). With 1
    it would be the policy itself at every gradient, and pull nowhere."""

    @model_validator(mode="after")
    def _check(self) -> KlConfig:
        if self.kind != "dual" and is_set(self, "anchor_coefficient"):
            raise ValueError(
                f"anchor_coefficient is read by kind dual alone, got kind {self.kind}; "
                "coefficient is the one of a single pull"
            )
        if self.kind == "none":
            refuse_unread(self, ("coefficient",), "by kind none, but by every other kind")
        if self.kind not in ("moving_anchor", "dual"):
            why = f"by kind {self.kind}, but by moving_anchor and dual"
            refuse_unread(self, ("anchor_every",), why)
        return self


class SelectiveKlConfig(Section):
    """Pull on the rollouts on which the rewards disagree, and on no other (GARDO, arXiv:2512.24138,
    measured by ranks as Astrolabe does, arXiv:2603.17051).

    It acts on every pull of the engine: `kl` of grpo, those of `nft` and `awm`. Rollouts of a whole
    step are ranked under each scorer with weight, so steps are not trained in chunks.
    """

    main: str
    """Label of the scorer that may be over-optimised, or that is found wrong."""
    frac: float = Field(default=0.1, gt=0.0, le=1.0)
    """Share of the step's rollouts, at most; Astrolabe moves it between 0.02 and 0.2, by a rule
    that was not found."""
    direction: Literal["others_high", "main_high"] = "others_high"
    """others_high: where the other rewards rank a rollout above the main one, as Astrolabe's code
    does. main_high: where the main one ranks it above the others, a guard against its hacking."""


class ForwardConfig(Section):
    """How final videos are noised again, for nft, awm and dpo.

    Velocities are compared there without guidance; nft samples without it as well.
    """

    num_noise_levels: int = Field(default=6, ge=1)
    """Draws of noise level and noise for each rollout, or each pair: as many rows as rollouts times
    this. AWM takes six (arXiv:2509.25050)."""
    density: Literal["uniform", "logit_normal"] = "uniform"
    """Of the noise levels, before `rollout.shift`."""
    sigma_range: tuple[float, float] = (0.0, 1.0)
    """Where the noise levels lie, the shifted ones stretched to it."""

    @model_validator(mode="after")
    def _check(self) -> ForwardConfig:
        low, high = self.sigma_range
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(
                f"sigma_range must be two ascending numbers in [0, 1], got {low}, {high}"
            )
        return self


class OldPolicyConfig(Section):
    """The average that follows the policy: decay 0 up to `start`, then rising to `cap`."""

    start: int = Field(default=0, ge=0)
    """Batches through which the old policy is a copy of the policy."""
    rate: float = Field(default=0.001, ge=0.0)
    """Rise of the decay a batch."""
    cap: float = Field(default=0.5, ge=0.0, le=1.0)
    """Largest decay; 0 makes the old policy the policy of the last batch."""


class AwmOldPolicyConfig(OldPolicyConfig):
    """AWM's: min(0.001 i, 0.3)."""

    cap: float = Field(default=0.3, ge=0.0, le=1.0)


class NftConfig(Section):
    """DiffusionNFT (arXiv:2509.16117); optimality is 1/2 + A / (2 advantage.clip)."""

    beta: float = Field(default=1.0, gt=0.0)
    """How far the implicit policies lie from the old one: 1 for one reward, 0.1 for several."""
    weighting: Literal["adaptive", "none"] = "adaptive"
    """adaptive divides a branch by its mean absolute error in the clean video."""
    reference_weight: float = Field(default=1e-4, ge=0.0)
    """Of the mean square distance to the velocity before RL; 0 holds no reference."""
    old_policy: OldPolicyConfig = OldPolicyConfig()
    """The policy that samples and that the targets are built around; min(0.001 i, 0.5)."""


class AwmConfig(Section):
    """Advantage-weighted matching (arXiv:2509.25050), with the released code's settings."""

    weight: Literal["uniform", "sigma", "sigma_squared", "huber", "generalised_huber"] = (
        "generalised_huber"
    )
    """Of the flow-matching error that stands for the log-probability."""
    power: float = Field(default=0.25, gt=0.0, le=1.0)
    """Of generalised_huber."""
    clip_range: float = Field(default=1.0, gt=0.0)
    """Of the ratio to the policy at the start of the update."""
    reference_weight: float = Field(default=1e-4, ge=0.0)
    """Of the mean square distance to the velocity before RL: 1e-4 for PickScore, 3e-3 for GenEval;
    0 holds no reference."""
    old_weight: float = Field(default=1.0, ge=0.0)
    """Likewise to the old policy; 0 holds none."""
    old_policy: AwmOldPolicyConfig = AwmOldPolicyConfig()

    @model_validator(mode="after")
    def _check(self) -> AwmConfig:
        if self.weight != "generalised_huber":
            refuse_unread(self, ("power",), f"by weight {self.weight}, but by generalised_huber")
        if not self.old_weight:
            refuse_unread(self, ("old_policy",), "with old_weight 0, but above it")
        return self


class DpoConfig(Section):
    """Online Flow-DPO (arXiv:2501.13918): the best of a group against its worst."""

    beta: float = Field(default=2000.0, gt=0.0)
    """Of errors that are means over elements (Flow-Factory's); the paper's was not found."""
    schedule: Literal["constant", "derived"] = "constant"
    """derived multiplies beta by (1 - sigma)^2; Flow-DPO reports constant as better."""
    max_pairs: int | None = Field(default=1, ge=1)
    """Pairs of a group: its k-th best against its k-th worst; None takes as many as there are."""


class DifferentiableRewardConfig(Section):
    """A reward whose gradient reaches the pixels; none of the pool's, which hand out numbers."""

    use: str = "trained_reward"
    """trained_reward, video_text, or `package.module:Class`
    (`rlvid.reward_models.differentiable`)."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of its own `Config`, e.g. {folder: "artifact:<reward_model.name>"}."""


class DataLossConfig(Section):
    """Flow matching on clips beside the RL loss, which stays near good data (DDRL, 2512.04332)."""

    coefficient: float = Field(default=0.0, ge=0.0)
    """Of the clips' mean loss beside the mean loss of the trained rows; 0 is none. DDRL's value was
    not found."""
    clips: str = "tiny_world"
    """As `sft.clips`; of a data set its real clips, or where it has none the synthetic ones."""
    num_clips: int = Field(default=8192, ge=1)
    """Clips rendered from the tiny world."""
    clip_seed: int = 0
    batch_size: int = Field(default=8, ge=1)
    """Clips of an optimiser step over all ranks. They are encoded when they are due: each costs a
    forward of the VAE's encoder beside one of the model."""
    timestep_density: Literal["uniform", "logit_normal"] = "logit_normal"
    """Of the noise levels, before `rollout.shift`."""

    @model_validator(mode="after")
    def _check(self) -> DataLossConfig:
        if not self.coefficient:
            names = [name for name in type(self).model_fields if name != "coefficient"]
            refuse_unread(self, names, "with coefficient 0, but above it")
        return self


class ReflConfig(Section):
    """Reward back-propagation: ReFL (arXiv:2304.05977), and with more steps DRaFT-K and DRTune.

    The scores of `rewards` train nothing here, but show whether others agree.
    """

    reward: DifferentiableRewardConfig = DifferentiableRewardConfig()
    start: Literal["renoised", "noise"] = "renoised"
    """renoised: final videos of the rollouts are noised again to the first step with a gradient.
    noise: all steps are taken anew from the rollouts' initial noise, as published; that costs as
    many forwards as sampling."""
    exit_frac: tuple[float, float] = (0.75, 1.0)
    """Share of the schedule from whose steps, drawn for each group, the clean video is predicted:
    ReFL's 30 to 39 of 40."""
    num_gradient_steps: int = Field(default=1, ge=1)
    """Denoising steps up to there that keep their gradient; memory grows with each."""
    crosses_inputs: bool = True
    """Whether the gradient also flows from step to step through the state (off: DRTune)."""
    target: float | None = None
    """A video whose reward has reached it is left alone; None bounds nothing. ReFL's is 2 in
    standard deviations of its reward."""
    reference_weight: float = Field(default=0.0, ge=0.0)
    """Of the mean square distance to the velocity before RL, at the first step with a gradient; 0
    holds no reference. The papers have no figure for it: ReFL stays near by a loss on data."""

    @model_validator(mode="after")
    def _check(self) -> ReflConfig:
        low, high = self.exit_frac
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(
                f"exit_frac must be two ascending numbers in [0, 1], got {low}, {high}"
            )
        if self.num_gradient_steps == 1:
            refuse_unread(self, ("crosses_inputs",), "with num_gradient_steps 1, but above it")
        return self


class AlgorithmConfig(Section):
    """GRPO and its family; nft, awm, dpo on the forward process; refl through the reward."""

    use: str = "grpo"
    """Short name or `package.module:Class`."""
    step_weight: Literal["none", "inverse_lambda", "tempflow", "longcat", "guard"] = (
        "inverse_lambda"
    )
    """Weight of a trained step; inverse_lambda is temporal gradient rectification."""
    ratio: Literal["plain", "guard"] = "plain"
    trust_region: Literal["clip", "divergence_mask"] = "clip"
    """PPO clipping, or Flow-DPPO's mask (arXiv:2606.11025)."""
    clip_range: float = Field(default=1e-3, gt=0.0)
    """Of the tempered ratio; must lie above the measured replay drift."""
    divergence_threshold: float = Field(default=1e-5, gt=0.0)
    advantage: AdvantageConfig = AdvantageConfig()
    kl: KlConfig = KlConfig()
    """Of grpo; nft and awm have pulls of their own."""
    selective_kl: SelectiveKlConfig | None = None
    """Pull on some rollouts only; None pulls on all. Of grpo, nft and awm."""
    tree: TreeConfig = TreeConfig()
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimiser steps taken on one batch of groups."""
    importance_cap: float | None = Field(default=None, ge=1.0)
    """Groups that older weights sampled are weighted by min(tempered ratio of the policy at the
    start of the update to the behaviour, this), and clipped around that policy (decoupled PPO);
    None clips them around the behaviour policy, unweighted. verl's 2.0 is of untempered ratios of
    tokens; tempered ones lie within some 1e-3 of 1."""
    data_loss: DataLossConfig = DataLossConfig()
    """For every engine."""
    forward: ForwardConfig = ForwardConfig()
    nft: NftConfig = NftConfig()
    awm: AwmConfig = AwmConfig()
    dpo: DpoConfig = DpoConfig()
    refl: ReflConfig = ReflConfig()

    @property
    def is_forward(self) -> bool:
        """Whether it is one of the engines that noise final videos again."""
        return self.use in FORWARD_ENGINES

    @property
    def held_policies(self) -> tuple[str, ...]:
        """What a built-in engine forwards beside the policy: "old", "reference", "anchor"."""
        weights: dict[str, dict[str, float]] = {
            "grpo": {
                "reference": self.kl.kind in ("reference", "dual"),
                "anchor": self.kl.kind in ("moving_anchor", "dual"),
            },
            "nft": {"old": True, "reference": self.nft.reference_weight},
            "awm": {"old": self.awm.old_weight, "reference": self.awm.reference_weight},
            "dpo": {"reference": True},
            "refl": {"reference": self.refl.reference_weight},
        }
        return tuple(name for name, weight in weights.get(self.use, {}).items() if weight)

    @model_validator(mode="after")
    def _check(self) -> AlgorithmConfig:
        """Refuse settings that the engine would not look at; a plug-in may read any of them."""
        if ":" in self.use or self.use not in READ_BY:
            return self
        self._check_selective()
        foreign = {name for names in READ_BY.values() for name in names} - set(READ_BY[self.use])
        for name in sorted(foreign):
            if is_set(self, name):
                readers = [engine for engine, names in READ_BY.items() if name in names]
                raise ValueError(
                    f"{name} is not read by {self.use}, which `use` names, but by "
                    f"{', '.join(readers)}; leave it out, or set algorithm.use to one of them"
                )
        if self.trust_region == "clip":
            why = "by trust_region clip, but by divergence_mask"
            refuse_unread(self, ("divergence_threshold",), why)
        return self

    def _check_selective(self) -> None:
        pulls = {
            "grpo": self.kl.kind != "none",
            "nft": self.nft.reference_weight > 0.0,
            "awm": self.awm.reference_weight > 0.0 or self.awm.old_weight > 0.0,
        }
        if self.selective_kl is not None and not pulls.get(self.use, True):
            where = "kl.kind" if self.use == "grpo" else f"{self.use}.reference_weight"
            raise ValueError(f"selective_kl: there is no pull to select for: set {where}")


FORWARD_ENGINES = ("nft", "awm", "dpo")

READ_BY = {
    "grpo": (
        "advantage",
        "step_weight",
        "ratio",
        "trust_region",
        "clip_range",
        "divergence_threshold",
        "kl",
        "selective_kl",
        "tree",
        "importance_cap",
    ),
    "nft": ("advantage", "forward", "nft", "selective_kl"),
    "awm": ("advantage", "forward", "awm", "selective_kl"),
    "dpo": ("advantage", "forward", "dpo"),
    "refl": ("refl",),
}
"""Engine to the settings that it reads; those in no list are read by all."""
