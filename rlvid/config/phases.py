"""Sections of the phases tiny_base, grpo and evaluate."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlvid.config.alarms import AlarmsConfig, EarlyStopConfig
from rlvid.config.base import Section
from rlvid.config.checkpoint import CheckpointConfig
from rlvid.config.prompts import PromptsConfig
from rlvid.config.rewards import ScorerConfig, repeated_label
from rlvid.config.stages import StagesConfig


class TinyBaseConfig(Section):
    """The tiny model from nothing: tokenizer, text encoder and a trained VAE."""

    num_clips: int = Field(default=4096, ge=64)
    """Tiny-world clips that the VAE is trained on."""
    vae_steps: int = Field(default=4000, ge=1)
    vae_batch_size: int = Field(default=8, ge=1)


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
    dimensions: tuple[str, ...] = ()
    """Labels of judges whose mean is a row of its own, each counting the same; () makes none."""
    num_bootstrap: int = Field(default=10000, ge=100)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    num_clips: int = Field(default=6, ge=0)
    """Pairs of clips, before and after, that the report shows."""
    enhance: str = "none"
    """Whose rewrites of the held-out prompts the newest policy is shown: "none", "artifact" (of the
    run's phase prompt_enhancement) or the folder of an enhancer. The base policy sees the user's
    words, and all clips are judged against these. A prompt whose rewrite is malformed keeps the
    user's words; it is counted and named in evaluation.json."""
    enhance_deadline_s: float = Field(default=600.0, gt=0.0)
    """Seconds that loading the enhancer and rewriting all held-out prompts may take."""
    use_ema: bool = False
    """Judge the averaged weights instead of the last ones."""
    stages: StagesConfig | None = None
    """Judge what every phase left as well, `{}` with nothing set; None only the newest policy."""

    @model_validator(mode="after")
    def _check_judges(self) -> EvaluateConfig:
        if (label := repeated_label(self.judges)) is not None:
            raise ValueError(f"judges: {label!r} appears twice; set `name` on one of them")
        for judge in self.judges:
            if judge.weight not in (0.0, 1.0):
                raise ValueError(
                    f"judges.{judge.label}.weight: a judge scores without weight: expected 0, or 1 "
                    f"as by default, got {judge.weight:g}; leave it out"
                )
        return self
