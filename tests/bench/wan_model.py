"""A Wan transformer of real size and random weights, and the group that benchmarks sample of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config import ModelConfig, RolloutConfig
from rlvid.flow.step_plans import make_step_plan
from rlvid.models.wan import PROMPT_EMBEDS, WanModel
from rlvid.records import GroupTask, Prompt
from rlvid.seeds import derive_seed
from tests.bench.wan_flops import RowFlops, WanSize, count_tokens, latent_shape, row_flops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FPS = 16
"""Of Wan 2.1."""
PROMPT = Prompt(prompt_id="bench", text="bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """One measurement."""

    size: WanSize
    num_frames: int
    height: int
    width: int
    dtype: str = "float32"
    device: str = "cpu"
    rollout: RolloutConfig = RolloutConfig(group_size=4, shift=3.0)
    repeats: int = 3
    """Timed runs of each stage, after one to warm up."""
    vae_tile: int | None = None
    """Pixels of a side, where a VAE decodes; None decodes whole clips."""

    @property
    def clip(self) -> ModelConfig:
        """The clip as a recipe asks for it."""
        dtype: Literal["float32", "bfloat16"] = "float32"
        if self.dtype == "bfloat16":
            dtype = "bfloat16"
        return ModelConfig(
            dtype=dtype,
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            fps=FPS,
            vae_tile=self.vae_tile,
        )

    @property
    def branches(self) -> int:
        """Transformer rows of one latent."""
        return 1 if self.rollout.guidance_scale == 1.0 else 2


class ShapeModel(WanModel):
    """WanModel with its own `velocity`, random weights, and neither text encoder nor VAE."""

    def __init__(self, settings: BenchSettings) -> None:
        # Not the parent's: that takes a whole pipeline, of which only the transformer is timed.
        self.device = torch.device(settings.device)
        self._dtype = DTYPES[settings.dtype]
        self._size = settings.size
        self._embeds: dict[str, Tensor] = {}
        self.transformer = build_transformer(settings.size, self.device, self._dtype)

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """Return noise [B, L, D] of the text encoder's shape; other texts, other noise."""
        shape = (self._size.text_tokens, self._size.text_dim)
        for text in set(texts) - set(self._embeds):
            seed = derive_seed(0, text)
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            self._embeds[text] = drawn.to(self.device)
        return Condition({PROMPT_EMBEDS: torch.stack([self._embeds[text] for text in texts])})

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return latent_shape(self._size, num_frames=num_frames, height=height, width=width)


def build_transformer(
    size: WanSize, device: torch.device, dtype: torch.dtype
) -> WanTransformer3DModel:
    """Return a seeded random transformer, built on `device`, in the dtypes of a loaded one.

    `from_pretrained` keeps some modules in float32 and `to(dtype)` does not, hence the loop.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), device:
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            patch_size=size.patch_size,
            num_attention_heads=size.num_heads,
            attention_head_dim=size.head_dim,
            in_channels=size.channels,
            out_channels=size.channels,
            text_dim=size.text_dim,
            freq_dim=size.freq_dim,
            ffn_dim=size.ffn_dim,
            num_layers=size.num_layers,
        )
    kept = set(transformer._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer.eval()


def group_task(rollout: RolloutConfig) -> GroupTask:
    """Return a group of the prompt as a driver hands it to an actor."""
    size = rollout.group_size
    plan = make_step_plan(rollout, recipe_seed=0, prompt_id=PROMPT.prompt_id, step=0)
    return GroupTask(
        group_id="000000-00",
        lease_id="bench",
        prompt=PROMPT,
        plan=plan,
        noise_seeds=tuple(plan.noise_index(index, size) for index in range(size)),
        step_seeds=tuple(range(100, 100 + size)),
        guidance_scale=rollout.guidance_scale,
    )


def flops_of_row(settings: BenchSettings) -> RowFlops:
    """Return the FLOPs of one row of the clip."""
    shape = latent_shape(
        settings.size,
        num_frames=settings.num_frames,
        height=settings.height,
        width=settings.width,
    )
    return row_flops(settings.size, count_tokens(settings.size, shape))
