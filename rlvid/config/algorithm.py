"""The `algorithm` section: credit and loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlvid.config.base import Section


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

    kind: Literal["none", "reference", "moving_anchor"] = "none"
    """reference: the policy before RL; moving_anchor: a copy of the policy, renewed at times."""
    coefficient: float = Field(default=3e-4, ge=0.0)
    anchor_every: int = Field(default=10, ge=1)
    """Optimiser steps between renewals of the moving anchor (SAGE-GRPO, arXiv:2603.21872)."""


class AlgorithmConfig(Section):
    """GRPO and its family."""

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
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimiser steps taken on one batch of groups."""
    importance_cap: float | None = Field(default=None, ge=1.0)
    """Groups that older weights sampled are weighted by min(tempered ratio of the policy at the
    start of the update to the behaviour, this), and clipped around that policy (decoupled PPO);
    None clips them around the behaviour policy, unweighted. verl's 2.0 is of untempered ratios of
    tokens; tempered ones lie within some 1e-3 of 1."""
