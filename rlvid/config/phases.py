"""Sections of the single phases: sft, grpo, evaluate, and the checkpoints they write."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlvid.config.alarms import AlarmsConfig, EarlyStopConfig
from rlvid.config.base import Section
from rlvid.config.learner import LearnerConfig, OptimizerConfig
from rlvid.config.prompts import PromptsConfig
from rlvid.config.rewards import ScorerConfig


class CheckpointConfig(Section):
    """Checkpoints of a training phase."""

    every: int = Field(default=10, ge=1)
    """Optimiser steps."""
    keep: int = Field(default=2, ge=1)


class TinyBaseConfig(Section):
    """The tiny model from nothing: tokenizer, text encoder and a trained VAE."""

    num_clips: int = Field(default=4096, ge=64)
    """Tiny-world clips that the VAE is trained on."""
    vae_steps: int = Field(default=4000, ge=1)
    vae_batch_size: int = Field(default=8, ge=1)


class SftConfig(Section):
    """Flow matching on clips."""

    num_steps: int = Field(default=3000, ge=1)
    batch_size: int = Field(default=32, ge=1)
    """Clips per optimiser step, over all ranks."""
    clips: str = "tiny_world"
    """"tiny_world", or a folder of .mp4 clips and a captions.jsonl ({"file": ..., "text": ...})."""
    num_clips: int = Field(default=8192, ge=1)
    """Clips rendered from the tiny world; a folder gives what it holds."""
    clip_seed: int = 0
    timestep_density: Literal["uniform", "logit_normal"] = "logit_normal"
    """How sigma is drawn before the shift (Stable Diffusion 3, arXiv:2403.03206, section 3.1)."""
    prompt_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of clips trained with the empty prompt, which guidance needs."""
    initialise: bool = False
    """Start the transformer from random weights; False tunes the weights of `model.path`."""
    ema_is_policy: bool = False
    """Hand the averaged weights to the next phase instead of the last ones; needs learner.ema."""
    learner: LearnerConfig = LearnerConfig(
        mode="full", optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, decay="cosine")
    )
    checkpoint: CheckpointConfig = CheckpointConfig(every=500)


class GrpoConfig(Section):
    """Length of the RL phase."""

    num_steps: int = Field(default=30, ge=1)
    """Optimiser batches: sample, score, credit, learn, publish."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate_every: int = Field(default=10, ge=0)
    """Steps between held-out evaluations during training; 0 turns them off."""
    evaluate_prompts: int = Field(default=16, ge=1)
    """Prompts of an evaluation during training, one seed each; the judges of `evaluate.judges`
    score them too, and nothing else."""
    alarms: AlarmsConfig = AlarmsConfig()
    early_stop: EarlyStopConfig = EarlyStopConfig()
    replay_log: bool = True
    """Write down which weights sampled each group that was learned from (`replay.log`)."""
    replay: str | None = None
    """The `replay.log` of another run of this recipe, to do that run again: every group is sampled
    with the same version. It makes an overlapped run repeatable, bit for bit on a CPU; a group
    that comes out otherwise ends the run."""
    max_replay_drift_frac: float = Field(default=1.0, gt=0.0)
    """Stop when |ratio - 1| before an update exceeds this share of the clip range."""


class EvaluateConfig(Section):
    """Pinned, paired evaluation on held-out prompts."""

    prompts: PromptsConfig = PromptsConfig(split="heldout")
    """Prompts that training never sees; a prompt in both sets is an error."""
    num_prompts: int = Field(default=32, ge=2)
    """At least 2, since the interval resamples prompts."""
    seeds_per_prompt: int = Field(default=2, ge=1)
    num_denoising_steps: int = Field(default=20, ge=1)
    """Euler steps of the pinned ODE sampler."""
    guidance_scale: float | None = Field(default=None, ge=1.0)
    """None takes `rollout.guidance_scale`."""
    judges: tuple[ScorerConfig, ...] = (ScorerConfig(use="attribute_judge"),)
    """Scorers that took no part in training; at least one."""
    num_bootstrap: int = Field(default=10000, ge=100)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    num_clips: int = Field(default=6, ge=0)
    """Pairs of clips, before and after, that the report shows."""
    use_ema: bool = False
    """Judge the averaged weights instead of the last ones."""
