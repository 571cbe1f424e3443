"""The model families as tiny models, one row each, and what tests of all of them ask.

A family has one row in `FAMILIES`, more if its folders differ (with and without a first frame), and
one in `FOLDERS` for each further kind of folder that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config import LoraConfig, ModelConfig
from rlvid.media import CLIPS
from rlvid.models.lora import add_lora, trainable_parameters

CPU = torch.device("cpu")
SIGMAS = (1.0, 0.9, 0.3)
"""Of the rows of `batch`; either expert of `wan_experts` has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One tiny model."""

    use: str
    """Short name in MODELS."""
    build: str
    """"module:function" that takes a seed and returns the adapter, with the same random weights on
    every call."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further arguments of it."""
    clip: tuple[int, int, int] = (9, 16, 16)
    """(num_frames, height, width) that it takes."""
    units: tuple[int, int] = (4, 16)
    """Frames behind the first, and pixels each way, that its clips are multiples of."""
    caption: str = "a red ball falls to the left"
    """A prompt that every part of it reads."""
    num_steps: int = 4
    """As many as show every kind of noise level that it has."""
    guidance_scale: float = 3.0
    """One at which it is compared with its pipeline, beside 1."""
    is_shown_frames: bool = False
    """It is told frames beside the prompt, all that it takes."""
    pipeline_loads_lora: bool = True
    """False where diffusers' pipeline has no `load_lora_weights`, only its transformer."""
    has_experts: bool = False
    """Two transformers, a LoRA file for each."""
    lora_targets: tuple[str, ...] = LoraConfig().target_modules
    """Other than the recipe's default where that would bind to what never learns."""
    loaded_atol: float = 0.0
    """Of the velocity of a loaded model, where the way a weight lies in memory picks the kernel."""
    exact_in_bfloat16: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Attributes of the class, at values that bfloat16 has: a rounded one is another model."""
    encoder_gain: float = 1.0
    """How many times as far as its transformer's own the roundings of its text encoders lead."""

    @property
    def lora(self) -> LoraConfig:
        """alpha is not the rank."""
        return LoraConfig(rank=2, alpha=8.0, target_modules=self.lora_targets)


_TINY = "rlvid.models.tiny_families"
_QUOTED = 'a red box with "to go"'
"""HunyuanVideo-1.5 reads what stands in quotation marks letter by letter."""

FAMILIES = {
    "cogvideox": Family(
        use="cogvideox",
        build=f"{_TINY}.cogvideox:build_model",
        clip=(9, 16, 32),
        guidance_scale=6.0,
    ),
    "cogvideox_i2v": Family(
        use="cogvideox_i2v",
        build=f"{_TINY}.cogvideox:build_image_model",
        clip=(9, 32, 32),
        guidance_scale=6.0,
        is_shown_frames=True,
        loaded_atol=1e-5,
    ),
    "cosmos": Family(
        use="cosmos", build=f"{_TINY}.cosmos:build_model", clip=(9, 16, 32), guidance_scale=4.0
    ),
    "cosmos_first_frame": Family(
        use="cosmos",
        build=f"{_TINY}.cosmos:build_model",
        clip=(9, 32, 32),
        guidance_scale=4.0,
        is_shown_frames=True,
        loaded_atol=1e-5,
    ),
    "ltx": Family(use="ltx", build=f"{_TINY}.ltx:build_model", clip=(9, 32, 64), units=(4, 32)),
    "ltx2": Family(
        use="ltx2",
        build=f"{_TINY}.ltx2:build_model",
        clip=(9, 32, 64),
        units=(4, 32),
        lora_targets=tuple(
            f"{attention}.{layer}"
            for attention in ("attn1", "attn2")
            for layer in LoraConfig().target_modules
        ),
    ),
    "mochi": Family(
        use="mochi",
        build=f"{_TINY}.mochi:build_model",
        clip=(13, 16, 32),
        units=(6, 16),
        num_steps=5,
    ),
    "wan": Family(use="wan", build="rlvid.testing:tiny_model", units=(4, 8)),
    "wan_experts": Family(
        use="wan_experts",
        build=f"{_TINY}.wan:tiny_experts",
        clip=(9, 32, 32),
        num_steps=6,
        has_experts=True,
        loaded_atol=1e-5,
    ),
    "wan_i2v": Family(
        use="wan_i2v",
        build=f"{_TINY}.wan:tiny_i2v",
        clip=(9, 32, 32),
        is_shown_frames=True,
        loaded_atol=1e-5,
    ),
    "wan_flf2v": Family(
        use="wan_i2v",
        build=f"{_TINY}.wan:tiny_flf2v",
        clip=(9, 32, 32),
        is_shown_frames=True,
        lora_targets=("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"),
        loaded_atol=1e-5,
    ),
    "wan_ti2v": Family(
        use="wan_ti2v",
        build=f"{_TINY}.wan:tiny_ti2v",
        clip=(9, 32, 32),
        is_shown_frames=True,
        loaded_atol=1e-5,
    ),
    "wan_vace": Family(
        use="wan_vace",
        build=f"{_TINY}.wan:tiny_vace",
        clip=(9, 32, 32),
        is_shown_frames=True,
        loaded_atol=1e-5,
    ),
    "sd3": Family(
        use="sd3",
        build=f"{_TINY}.sd3:build_model",
        clip=(1, 16, 32),
        units=(1, 8),
        # Measured: 0.04. Its two tiny CLIPs are drawn wide, so their pooled vector has 0.03.
        encoder_gain=3.0,
    ),
    "hunyuan_video15": Family(
        use="hunyuan_video15",
        build=f"{_TINY}.hunyuan_video15:build_model",
        clip=(9, 16, 32),
        units=(4, 8),
        caption=_QUOTED,
        pipeline_loads_lora=False,
    ),
    "hunyuan_video15_i2v": Family(
        use="hunyuan_video15_i2v",
        build=f"{_TINY}.hunyuan_video15:build_image_model",
        units=(4, 8),
        caption=_QUOTED,
        is_shown_frames=True,
        pipeline_loads_lora=False,
    ),
    "hunyuan_video": Family(
        use="hunyuan_video",
        build=f"{_TINY}.hunyuan_video:build_model",
        clip=(9, 16, 32),
        units=(4, 8),
        exact_in_bfloat16={"EMBEDDED_GUIDANCE": 8.0},
    ),
}

FOLDERS = {
    **FAMILIES,
    "cogvideox_2b": Family(
        use="cogvideox",
        build=f"{_TINY}.cogvideox:build_model",
        options={"has_rotary": False},
        clip=(9, 32, 32),
        guidance_scale=6.0,
    ),
    "cogvideox15": Family(
        use="cogvideox",
        build=f"{_TINY}.cogvideox:build_model",
        options={"patch_size_t": 2},
        clip=(9, 32, 32),
        guidance_scale=6.0,
    ),
    "cogvideox15_i2v": Family(
        use="cogvideox_i2v",
        build=f"{_TINY}.cogvideox:build_image_model",
        options={"patch_size_t": 2},
        clip=(9, 32, 32),
        guidance_scale=6.0,
        is_shown_frames=True,
        loaded_atol=1e-5,
    ),
    "ltx2_interleaved": Family(
        use="ltx2",
        build=f"{_TINY}.ltx2:build_model",
        options={"rope_type": "interleaved"},
        clip=(9, 32, 64),
        units=(4, 32),
        lora_targets=FAMILIES["ltx2"].lora_targets,
    ),
    "wan_i2v_without_clip": Family(
        use="wan_i2v",
        build=f"{_TINY}.wan:tiny_i2v",
        options={"sees_images": False},
        clip=(9, 32, 32),
        is_shown_frames=True,
        loaded_atol=1e-5,
    ),
    "wan_ti2v_text": Family(
        use="wan_ti2v", build=f"{_TINY}.wan:tiny_ti2v", clip=(9, 32, 32), loaded_atol=1e-5
    ),
    "wan_vace_text": Family(
        use="wan_vace", build=f"{_TINY}.wan:tiny_vace", clip=(9, 32, 32), loaded_atol=1e-5
    ),
}


def build(family: Family, seed: int = 0) -> Any:
    """Return a model of its own, that a test may change."""
    module, _, function = family.build.partition(":")
    return getattr(import_module(module), function)(seed, **family.options)


def config_of(family: Family, folder: Any, **fields: Any) -> ModelConfig:
    """Return the recipe's section for a saved model."""
    num_frames, height, width = family.clip
    return ModelConfig(
        use=family.use,
        path=str(folder),
        device="cpu",
        num_frames=num_frames,
        height=height,
        width=width,
        **fields,
    )


def noise(family: Family, model: Any, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(*family.clip), generator=generator)


def frames(family: Family, model: Any, rows: int = 1) -> dict[str, Tensor]:
    """Return `media` of the family's clip."""
    return media(model, family.clip, rows)


def media(model: Any, clip: tuple[int, int, int], rows: int) -> dict[str, Tensor]:
    """Return random pictures and clips of 256 levels, of all kinds that the model takes."""
    generator = torch.Generator().manual_seed(5)
    num_frames, *size = clip
    shapes = {
        name: (rows, num_frames, 3, *size) if name in CLIPS else (rows, 3, *size)
        for name in sorted(model.media)
    }
    return {
        name: torch.randint(0, 256, shape, generator=generator) / 255.0
        for name, shape in shapes.items()
    }


def condition_of(family: Family, model: Any, texts: Sequence[str]) -> Condition:
    """Return what `model` makes of texts, each with pictures of its own if it is shown any."""
    condition: Condition = model.encode_prompts(texts)
    if not family.is_shown_frames:
        return condition
    media: Condition = model.encode_media(frames(family, model, len(texts)), family.clip[0])
    return condition | media


def batch(family: Family, model: Any) -> tuple[Tensor, Tensor, Condition]:
    """Return latents at the noise levels `SIGMAS`, told two texts."""
    rows = len(SIGMAS)
    texts = [(family.caption, "")[row % 2] for row in range(rows)]
    return noise(family, model, rows), torch.tensor(SIGMAS), condition_of(family, model, texts)


@cache
def inputs(family: Family) -> tuple[Tensor, Tensor, Condition]:
    """Return the batch of a new model."""
    return batch(family, build(family))


def velocity(family: Family, model: Any) -> Tensor:
    """Return that of the same inputs for every model of the family."""
    with torch.no_grad():
        result: Tensor = model.velocity(*inputs(family))
    return result


def with_adapter(family: Family) -> Any:
    """Return a model whose adapter does something."""
    model = build(family)
    add_lora(model.transformer, family.lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model.transformer, "lora").values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


BFLOAT16_DEVIATION = 24 * 2.0**-9
"""0.047: no velocity of a bfloat16 transformer is as far as that from the float32 one's.

A bfloat16 number has 8 significant bits, so an operation rounds by up to 2^-9 of its result, and n
of them in a row, each to either side, by some sqrt(n) times that. The tiny transformers, a few
dozen deep, come to between 1 and 5 times 2^-9; 24 leaves kernels that round elsewhere, as other
CPUs have them, a factor of 5. What computes something else is far beyond: other weights deviate by
0.47 and more, a small adapter by 0.15.
"""


def deviation(velocity: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference, relative to that of `expected`."""
    return float((velocity - expected).norm() / expected.norm())
