"""The `dpo` section: preference optimisation on stored pairs, without rollouts."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlvid.config.algorithm import DpoConfig, ForwardConfig
from rlvid.config.base import Section
from rlvid.config.checkpoint import CheckpointConfig
from rlvid.config.learner import LearnerConfig, check_phase_learner


class OfflineDpoConfig(Section):
    """Flow-DPO on pairs of videos, of which one is better (arXiv:2501.13918)."""

    num_steps: int = Field(default=200, ge=1)
    batch_size: int = Field(default=8, ge=1)
    """Pairs of an optimiser step, over all ranks."""
    pairs: str = ""
    """A data set of phase data_engine, by its folder or as `artifact:<data_engine.name>`, whose
    scored clips of one prompt are paired; or a folder of .mp4 clips and a pairs.jsonl ({"text":
    ..., "chosen": "a.mp4", "rejected": "b.mp4"}, and {"media": {"first_frame": "c.png"}} beside
    for a model that is told it)."""
    by: str = "reward"
    """Of a data set: what orders its clips, "reward", the weighted mean of all scorers, or the
    label of one of them."""
    min_margin: float = Field(default=0.0, ge=0.0)
    """Of a data set: a pair whose scores differ by less is left out."""
    objective: DpoConfig = DpoConfig()
    """As `algorithm.dpo`; `max_pairs` is of a prompt's clips."""
    forward: ForwardConfig = ForwardConfig(num_noise_levels=1)
    """As `algorithm.forward`; every visit of a pair draws noise anew."""
    ema_is_policy: bool = False
    """Hand the averaged weights to the next phase instead of the last ones; needs learner.ema."""
    learner: LearnerConfig = LearnerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(every=100)

    @model_validator(mode="after")
    def _check(self) -> OfflineDpoConfig:
        check_phase_learner(self.learner, "dpo")
        if self.learner.micro_batch_rows < 2:
            raise ValueError(
                "learner.micro_batch_rows: the two clips of a pair share their noise and are "
                f"forwarded together: expected at least 2, got {self.learner.micro_batch_rows}"
            )
        return self
