"""The `reward_model` section: a reward model trained on preference pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section, refuse_of_other_kinds, refuse_unread
from rlvid.config.checkpoint import CheckpointConfig
from rlvid.config.learner import LoraConfig, OptimizerConfig

Part = Literal["VQ", "MQ", "TA"]
"""Visual quality, motion quality, text alignment (VideoAlign, arXiv:2501.13918)."""


class RungConfig(Section):
    """One rung of the ladder of models: clips made by it are taken as worse than those above."""

    source: Literal["true", "decoded", "policy"] = "policy"
    """true: clips of the data; decoded: the same through the VAE; policy: sampled."""
    path: str = ""
    """Pipeline folder of an early checkpoint; "" is the newest policy of the run."""
    num_denoising_steps: int = Field(default=20, ge=1)
    """Of a policy: fewer steps make a weaker model."""
    worse_in: tuple[Part, ...] = ("VQ", "MQ", "TA")
    """Parts in which it is worse than the rungs above; in the others the pair is a tie."""


class WeakPairsConfig(Section):
    """Pairs of the tiny world labelled by who made the clip; no scorer has a say in them."""

    num_prompts: int = Field(default=432, ge=8)
    """Items, each one caption and one seed; captions of the training split only, in turn."""
    ladder: tuple[RungConfig, ...] = (
        RungConfig(source="true"),
        RungConfig(source="decoded", worse_in=("VQ",)),
        RungConfig(num_denoising_steps=20),
        RungConfig(num_denoising_steps=2),
    )
    """Best first."""
    ladder_pairs: int = Field(default=2, ge=0)
    """Pairs of two rungs an item gives."""
    degradations: tuple[str, ...] = (
        "posterise", "halo", "channel_shift", "vignette", "dust",
        "cut", "ghosting", "backwards", "patch", "uneven_time",
    )  # fmt: skip
    """Ways to spoil a true clip (`rlvid.reward_models.degradations`); none is a breakage."""
    degradation_pairs: int = Field(default=3, ge=0)
    """Pairs of a true clip and a spoilt one an item gives, and as many kinds."""
    mismatch_pairs: int = Field(default=2, ge=0)
    """Pairs of the prompt's clip and one of another caption that differs in several attributes."""
    tie_pairs: int = Field(default=1, ge=0)
    """Pairs of two true clips of one caption."""


class PairsConfig(Section):
    """Where preference pairs come from."""

    source: str = "weak"
    """"weak", or a folder with preferences.jsonl (`rlvid.reward_models.records`)."""
    weak: WeakPairsConfig = WeakPairsConfig()

    @model_validator(mode="after")
    def _check(self) -> PairsConfig:
        if self.source != "weak":
            refuse_unread(self, ("weak",), f"by source {self.source!r}, but by 'weak'")
        return self


class BackboneConfig(Section):
    """What looks at the clip."""

    use: Literal["video_encoder", "vlm"] = "video_encoder"
    """video_encoder: a small 3D convolutional network; vlm: Qwen2-VL or Qwen2.5-VL."""
    path: str = ""
    """Of a vlm: its folder, or "tiny_judge", the judge that ships with rlvid."""
    width: int = Field(default=16, ge=4, multiple_of=4)
    """Of the video encoder: channels of its first layer."""
    train: Literal["head", "lora", "full"] = "full"
    """head: the backbone stays frozen; lora: adapters, of a vlm only."""
    lora: LoraConfig = LoraConfig(
        rank=64, alpha=128.0, target_modules=("q_proj", "k_proj", "v_proj", "o_proj")
    )
    """VideoAlign: rank 64, alpha 128."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of a vlm; reward tokens and head are float32."""
    sample_fps: float | None = Field(default=None, gt=0.0)
    """Of a vlm: frames of a second that it sees (VideoAlign: 2); None: all of them."""

    @model_validator(mode="after")
    def _check(self) -> BackboneConfig:
        refuse_of_other_kinds(self, self.use, BACKBONE_READERS)
        if self.train != "lora":
            refuse_unread(self, ("lora",), f"where train is {self.train}, but where it is lora")
        return self


BACKBONE_READERS = {
    "path": ("vlm",),
    "width": ("video_encoder",),
    "dtype": ("vlm",),
    "sample_fps": ("vlm",),
}
"""Setting of a backbone to the kinds that read it."""


class RewardModelConfig(Section):
    """A reward model of one's own."""

    name: str = Field(default="own", pattern=r"^[a-z][a-z0-9_]*$")
    """Later phases read it as `artifact:<name>`."""
    backbone: BackboneConfig = BackboneConfig()
    head: Literal["ties", "spread"] = "ties"
    """ties: one number a part, Bradley-Terry with ties; spread: a mean and a spread a part."""
    tie_k: float = Field(default=5.0, gt=1.0)
    """VideoAlign's k: how far scores may lie apart and still be a tie; 1 knows no ties."""
    pairs: PairsConfig = PairsConfig()
    start_from: str = ""
    """Folder of a trained reward model to go on from; its backbone, head and k must be these."""
    old_pairs: PairsConfig | None = None
    """Pairs whose judgement must not be lost: gradients that would raise their loss are projected.
    """
    heldout_frac: float = Field(default=0.15, gt=0.0, lt=1.0)
    """Share of the prompts whose pairs are measured and not trained on."""
    num_steps: int = Field(default=800, ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Pairs of one optimiser step."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-3, weight_decay=0.01, warmup_steps=50, decay="cosine"
    )
    """VideoAlign tunes its VLM at 2e-6."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    device: str = "cpu"
    checkpoint: CheckpointConfig = CheckpointConfig(every=200)
    num_bootstrap: int = Field(default=2000, ge=100)

    @model_validator(mode="after")
    def _check(self) -> RewardModelConfig:
        if self.backbone.use == "vlm" and not self.backbone.path:
            raise ValueError("backbone.path: a vlm needs its folder, or 'tiny_judge'")
        if self.backbone.use == "video_encoder" and self.backbone.train == "lora":
            raise ValueError("backbone.train: 'lora' is for a vlm; train 'full' or 'head'")
        if self.head == "spread":
            refuse_unread(self, ("tie_k",), "by head spread, which knows no ties, but by ties")
        return self
