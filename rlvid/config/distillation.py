"""The `distillation` section: a slow bidirectional teacher into a few-step or a causal student.

After stage 4 of arXiv:2604.25427, whose numbers were NOT FOUND; those marked DMD2 are of
arXiv:2405.14867, Self-Forcing of arXiv:2506.08009, Causal Forcing of arXiv:2602.02214, each as in
its released configuration.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section
from rlvid.config.checkpoint import CheckpointConfig
from rlvid.config.learner import (
    EmaConfig,
    LearnerConfig,
    OptimizerConfig,
    check_phase_learner,
)
from rlvid.config.prompts import PromptsConfig

StageName = Literal["few_step", "causal_teacher", "causal_init", "self_forcing"]
DMD_STAGES: tuple[StageName, ...] = ("few_step", "self_forcing")
"""Stages trained by distribution matching, which have a fake score and a motion monitor."""


class CausalConfig(Section):
    """Blocks of latent frames that the causal student makes one after the other."""

    frames_per_block: int = Field(default=3, ge=1)
    """Latent frames denoised together; Self-Forcing: 3, or 1 for a frame-wise student. It divides
    the latent frames of a clip."""
    window_blocks: int | None = Field(default=None, ge=1)
    """Blocks that a block attends to while a clip is made, itself and the sinks included; None is
    all before it. `rlvid sample --stream` rolls the window of a longer clip."""
    sink_blocks: int = Field(default=0, ge=0)
    """First blocks that never leave the window."""
    positions: Literal["absolute", "window"] = "absolute"
    """Temporal positions: the frame's own, or counted anew in each window, which has no end."""


class StageConfig(Section):
    """What every stage has."""

    num_steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Clips of a step over all ranks."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-6, betas=(0.0, 0.999), weight_decay=0.01
    )
    """AdamW of the student; Self-Forcing."""
    ema: EmaConfig | None = None
    """Average of the student, handed on in place of the last weights where it is kept."""


class ClipsConfig(Section):
    """Clean clips that a stage learns from; each stage encodes its own once."""

    clips: str = "tiny_world"
    """As in `sft.clips`."""
    num_clips: int = Field(default=8192, ge=1)
    """Clips rendered from the tiny world; other sources give what they hold."""
    clip_seed: int = 0


class GanConfig(ClipsConfig):
    """DMD2's GAN term: a head on the fake score's features tells a student's clips from real ones.

    Real clips are noised as the student's are, and read with their own captions.
    """

    weight: float = Field(default=0.0, ge=0.0)
    """Of the term in the student's loss, beside a matching loss that is a mean over elements; 0 has
    no discriminator and needs no clips. DMD2: 5e-3 on SDXL."""
    discriminator_weight: float = Field(default=1e-2, gt=0.0)
    """Of the discriminator's loss beside the fake score's; DMD2: 1e-2 on SDXL."""
    block: int | None = Field(default=None, ge=0)
    """Layer of the fake score whose output is read, from 0; None is the middle one, where DMD2 has
    the bottleneck of a U-Net."""
    width: int = Field(default=256, ge=1)
    """Of the head's hidden layer, a choice of ours."""


class DmdConfig(StageConfig):
    """Distribution matching (DMD2): the student's samples against the teacher's distribution."""

    num_steps: int = Field(default=600, ge=1)
    """Every step trains the fake score, every `fake_updates_per_student`-th the student before
    it. Self-Forcing: 600."""
    max_steps: int = Field(default=1000, ge=1)
    """`num_steps` above this is refused: at batch 64 longer training makes motion fade (Causal
    Forcing). Raise it knowingly."""
    fake_updates_per_student: int = Field(default=5, ge=1)
    """DMD2's two time scales."""
    fake_optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=4e-7, betas=(0.0, 0.999), weight_decay=0.01
    )
    """AdamW of the fake score; Self-Forcing."""
    real_guidance_scale: float = Field(default=4.0, ge=1.0)
    """Guidance of the teacher's score, 1 being none. Self-Forcing's 3, which it writes as
    cond + 3 (cond - uncond). DMD2: 8 on SDXL."""
    sigma_range: tuple[float, float] = (0.02, 0.98)
    """Noise levels at which the two scores are compared (DMD2, Self-Forcing)."""
    ema: EmaConfig | None = EmaConfig(decay=0.99, every=1)
    """Self-Forcing: 0.99, which it begins at step 200."""
    gan: GanConfig = GanConfig()

    @model_validator(mode="after")
    def _check(self) -> DmdConfig:
        low, high = self.sigma_range
        if not 0.0 < low < high < 1.0:
            raise ValueError(f"sigma_range: expected 0 < low < high < 1, got {self.sigma_range}")
        if self.num_steps > self.max_steps:
            raise ValueError(
                f"num_steps: expected at most max_steps {self.max_steps}, got {self.num_steps}; "
                "long distribution matching makes motion fade. Lower it, or raise max_steps and "
                "keep distillation.monitor on"
            )
        return self


class CausalTeacherConfig(StageConfig, ClipsConfig):
    """Causal Forcing's first stage: the teacher made causal, by teacher forcing on clean clips."""

    num_steps: int = Field(default=2000, ge=1)
    """Causal Forcing: at least 2000, better 5000 to 10000."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-6)
    """Causal Forcing: 2e-6."""
    timestep_density: Literal["uniform", "logit_normal"] = "uniform"
    """How the sigma of each block is drawn before the shift."""
    prompt_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of clips with the empty prompt, which guided trajectories need."""


class ConsistencyConfig(ClipsConfig):
    """Consistency distillation; its clips are a causal teacher's, a student brings its own."""

    target_decay: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Of the average whose answer at the next lower level is the target, moved at every step;
    Causal Forcing: 0.99."""


class CausalInitConfig(StageConfig):
    """The causal student's start: it learns where a teacher's trajectories end."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-6)
    """Causal Forcing: 2e-6, and at least 1000 steps by ode or 3000 by consistency."""
    method: Literal["ode", "consistency"] = "ode"
    """ode: regression on the ends of whole trajectories. consistency: the same answer at two
    neighbouring levels of a trajectory, one step of the teacher apart, so that none is walked to
    its end."""
    teacher: Literal["causal", "bidirectional_student"] = "causal"
    """causal: the ODE of stage `causal_teacher` (Causal Forcing: a causal student cannot follow a
    bidirectional teacher). bidirectional_student: that of stage `few_step`, over its few levels,
    the order of arXiv:2604.25427."""
    num_denoising_steps: int = Field(default=48, ge=1)
    """Euler steps of a causal teacher's trajectory, and by consistency its levels; those of the
    student are among them. Causal Forcing: 48."""
    guidance_scale: float = Field(default=3.0, ge=1.0)
    """Of the causal teacher's steps; the few-step student needs none."""
    consistency: ConsistencyConfig = ConsistencyConfig()
    """Read by method consistency alone."""


class MonitorConfig(Section):
    """Motion of the student's clips beside the teacher's, measured at every checkpoint."""

    num_prompts: int = Field(default=8, ge=1)
    """One clip each, the same seeds every time."""
    min_frac: float | None = Field(default=0.9, gt=0.0, le=1.0)
    """A stage ends, with the last checkpoint before, once motion is below this share of the
    teacher's and of the most that the student has had; None only records it."""


class DistillationConfig(Section):
    """The stages of the phase, in order; each hands its policy to the next."""

    stages: tuple[StageName, ...] = ("causal_teacher", "causal_init", "self_forcing")
    """few_step: a few-step student with full attention. causal_teacher, causal_init, self_forcing:
    Causal Forcing's way to a causal student. few_step, causal_init, self_forcing with
    `causal_init.teacher: bidirectional_student`: the paper's. What the last stage trains is the
    policy that the phase hands on; that of every stage stays in `<phase>/<stage>/policy`."""
    student_steps: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    """Noise levels that the student denoises from, before `rollout.shift` moves them; descending,
    the first 1. Self-Forcing: these, at shift 5."""
    causal: CausalConfig = CausalConfig()
    few_step: DmdConfig = DmdConfig()
    causal_teacher: CausalTeacherConfig = CausalTeacherConfig()
    causal_init: CausalInitConfig = CausalInitConfig()
    self_forcing: DmdConfig = DmdConfig()
    prompts: PromptsConfig | None = None
    """None takes the recipe's `prompts`; with media for stage few_step alone (`tells_media`)."""
    monitor: MonitorConfig = MonitorConfig()
    teacher_denoising_steps: int = Field(default=20, ge=1)
    """Euler steps of the teacher's clips that the monitor compares with."""
    learner: LearnerConfig = LearnerConfig(mode="full", zero_stage=2)
    """Ranks and sharding of every stage; `optimizer` and `ema` are each stage's own."""
    checkpoint: CheckpointConfig = CheckpointConfig(every=100)

    @model_validator(mode="after")
    def _check(self) -> DistillationConfig:
        check_phase_learner(self.learner, "distillation")
        if self.learner.sequence_parallel > 1:
            raise ValueError(
                "learner.sequence_parallel: teacher and student of a distillation share no clips "
                f"between ranks: expected 1, got {self.learner.sequence_parallel}"
            )
        self._check_stages()
        levels = (*self.student_steps, 0.0)
        if len(levels) < 2 or levels[0] != 1.0 or any(a <= b for a, b in pairwise(levels)):
            raise ValueError(
                "student_steps: expected levels that fall from 1 and stay above 0, got "
                f"{list(self.student_steps)}"
            )
        if self.learner.mode == "lora" and len(self.stages) > 1:
            raise ValueError(
                "learner.mode: 'lora' is for one stage, got "
                f"{', '.join(self.stages)}: a LoRA on top of a LoRA cannot be exported as one "
                "adapter. Set learner.mode full"
            )
        if self.learner.mode == "lora" and any(stage.gan.weight for stage in self.dmd_stages):
            raise ValueError(
                "learner.mode: 'lora' trains adapters alone, so the fake score cannot carry a "
                "discriminator. Set learner.mode full, or gan.weight 0"
            )
        if self.learner.optimizer != OptimizerConfig() or self.learner.ema is not None:
            raise ValueError(
                "learner: optimizer and ema are each stage's own; set e.g. few_step.optimizer"
            )
        return self

    @property
    def dmd_stages(self) -> tuple[DmdConfig, ...]:
        """Sections of the stages of distribution matching that are run."""
        return tuple(getattr(self, name) for name in self.stages if name in DMD_STAGES)

    @property
    def tells_media(self) -> bool:
        """Whether the model is told the media of the prompts: a few-step student with full
        attention is, unless a discriminator compares it with clips that have none."""
        return self.stages == ("few_step",) and not self.few_step.gan.weight

    @property
    def clean_clips(self) -> dict[str, ClipsConfig]:
        """Clips that the stages read, by their place in the section, e.g. "few_step.gan"."""
        found: dict[str, ClipsConfig] = {}
        for stage in self.stages:
            if stage == "causal_teacher":
                found[stage] = self.causal_teacher
            elif stage == "causal_init":
                init = self.causal_init
                if init.method == "consistency" and init.teacher == "causal":
                    found["causal_init.consistency"] = init.consistency
            elif (gan := getattr(self, stage).gan).weight:
                found[f"{stage}.gan"] = gan
        return found

    def _check_stages(self) -> None:
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages: expected at least one, each once, got {list(self.stages)}")
        if self.stages[-1] == "causal_teacher":
            raise ValueError(
                "stages: causal_teacher is no student, only the start of causal_init: expected "
                f"causal_init after it, got {list(self.stages)}"
            )
        needs: dict[StageName, StageName] = {"self_forcing": "causal_init"}
        is_causal = self.causal_init.teacher == "causal"
        needs["causal_init"] = "causal_teacher" if is_causal else "few_step"
        for stage, before in needs.items():
            if stage in self.stages and before not in self.stages[: self.stages.index(stage)]:
                raise ValueError(
                    f"stages: {stage} starts from what {before} trained: expected {before} before "
                    f"it, got {list(self.stages)}. Add it, or change causal_init.teacher"
                )
