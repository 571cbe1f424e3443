"""The `sft` section: flow matching on clips, plain, filtered or weighted by reward."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section
from rlvid.config.checkpoint import CheckpointConfig
from rlvid.config.learner import LearnerConfig, OptimizerConfig, check_phase_learner


class WeightingConfig(Section):
    """Which clips of a data set are trained on, and how much each counts (`reward_weighted`).

    Range and normalisation of GigaVideo-1's reward were NOT FOUND; the defaults are ours.
    """

    kind: Literal["uniform", "raw", "exponential", "group_softmax", "positive_advantage"] = (
        "uniform"
    )
    temperature: float = Field(default=0.1, gt=0.0)
    """Of exponential and group_softmax, in units of the reward."""
    max_weight: float | None = Field(default=5.0, gt=0.0)
    """Cut-off after normalising."""
    normalise: bool = True
    """Divide by the mean weight, so that the learning rate means the same for every kind."""
    by: Literal["reward", "dimension"] = "reward"
    """The weighted mean of all scorers, or the score of the dimension the clip was made for."""
    standardise: bool = False
    """Rewards of each dimension to mean 0 and spread 1 first, so that an easy one does not
    outweigh a hard one; not for `raw`, which needs [0, 1]."""
    best_frac: float = Field(default=1.0, gt=0.0, le=1.0)
    """Filtered fine-tuning: share of the clips of each prompt that is kept, the best."""
    min_reward: float | None = None
    """Clips below are left out."""


class AnchorConfig(Section):
    """The realism constraint: flow matching on real pairs beside the synthetic ones."""

    beta: float = Field(default=0.0, ge=0.0)
    """Weight of the real clips' mean loss beside the synthetic clips'; 0 is none. NOT FOUND in the
    paper."""
    batch_size: int = Field(default=8, ge=1)
    """Real clips of a step, on top of `sft.batch_size`."""


class MergeConfig(Section):
    """How the adapters of `balance: adapters` become one policy.

    With the deltas d_i = alpha / r B_i A_i and the weights w_i,

        mean   sum_i w_i d_i / sum_i w_i
        sum    sum_i w_i d_i                             task arithmetic, arXiv:2212.04089
        ties   of each d_i the largest values; of these, where signs differ, those of the side
               with the larger sum; their mean           arXiv:2306.01708, section 4

    Every rule is applied to the deltas themselves, matrix by matrix, and added to the base's
    weights: nothing is rounded to a rank.
    """

    rule: Literal["mean", "sum", "ties"] = "mean"
    """mean keeps the size of one adapter's step however many there are; sum adds up what they have
    in common too, and needs a `scale` below 1 where that is much."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Of dimensions; one that is not named has 1. An adapter of weight 0 is trained and kept, and
    takes no part. For ties they scale the values after the signs are elected, and only their ratios
    count."""
    density: float = Field(default=0.2, gt=0.0, le=1.0)
    """Share of each delta's values that ties keeps, by magnitude; the paper's is 0.2."""
    scale: float = Field(default=1.0, gt=0.0)
    """Of the merged delta: the paper's lambda, 1 there without a validation set."""

    @model_validator(mode="after")
    def _check(self) -> MergeConfig:
        for dimension, weight in self.weights.items():
            if weight < 0.0:
                raise ValueError(
                    f"weights.{dimension}: expected 0 or more, got {weight:g}; 0 leaves the "
                    "adapter out"
                )
        return self


class SftConfig(Section):
    """Flow matching on clips."""

    num_steps: int = Field(default=3000, ge=1)
    batch_size: int = Field(default=32, ge=1)
    """Clips per optimiser step, over all ranks."""
    clips: str = "tiny_world"
    """"tiny_world"; a folder of .mp4 clips and a captions.jsonl ({"file": ..., "text": ...}); or a
    data set of the phase data_engine, by its folder or as `artifact:<data_engine.name>`. A model
    that needs a first frame, or a last one, is told the clip's own; a data set has none of them."""
    num_clips: int = Field(default=8192, ge=1)
    """Clips rendered from the tiny world; a folder gives what it holds."""
    clip_seed: int = 0
    weighting: WeightingConfig = WeightingConfig()
    """Of a data set; other clips have no reward and take `uniform`."""
    anchor: AnchorConfig = AnchorConfig()
    """Needs a data set with real clips."""
    balance: Literal["none", "sampling", "projection", "adapters"] = "none"
    """Against the interference of dimensions trained together. sampling: every batch holds equally
    many clips of each. projection: the gradient of a dimension loses what goes against another's
    (PCGrad, arXiv:2001.06782); needs learner.zero_stage 0 and batches of `sampling`. adapters: a
    LoRA for each dimension, trained one after the other from the same base, merged into the base's
    weights at the end; needs learner.mode lora. `num_steps` are shared out among them, so that this
    costs what the others cost; warm-up and decay are each adapter's own. Clips made for no
    dimension are left out."""
    merge: MergeConfig = MergeConfig()
    """Of `balance: adapters`."""
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

    @model_validator(mode="after")
    def _check(self) -> SftConfig:
        weighting = self.weighting
        if weighting.kind == "raw" and weighting.standardise:
            raise ValueError(
                "weighting.standardise: kind 'raw' needs rewards in [0, 1]; take exponential or "
                "group_softmax, or leave standardise off"
            )
        if self.balance == "projection" and self.learner.zero_stage != 0:
            raise ValueError(
                f"balance: 'projection' needs learner.zero_stage 0, got {self.learner.zero_stage}: "
                "stages 1 to 3 keep no whole gradient of a dimension"
            )
        self._check_adapters()
        if self.initialise and self.learner.mode == "lora":
            raise ValueError(
                "initialise: starts from random weights, which an adapter is exported without: "
                "expected learner.mode full, got 'lora'"
            )
        check_phase_learner(self.learner, "sft")
        return self

    def _check_adapters(self) -> None:
        if self.balance != "adapters":
            if self.merge != MergeConfig():
                raise ValueError(
                    f"merge: is of balance 'adapters', got balance {self.balance!r}: there is "
                    "nothing to merge; set balance, or leave merge out"
                )
            return
        if self.learner.mode != "lora":
            raise ValueError(
                f"balance: 'adapters' needs learner.mode lora, got {self.learner.mode!r}: it "
                "trains an adapter for each dimension"
            )
        if self.initialise:
            raise ValueError(
                "balance: 'adapters' needs initialise false, got true: the adapters must share a "
                "base; train it in a run of its own and give it as model.path"
            )
