"""How a policy is run faster: the settings of `rlvid.inference`, and the space that is searched.

Lossless settings (attention "native", prompt cache, VAE slices) leave a clip as it was; the others
trade a distance for time, which `rlvid optimise` measures.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section, refuse_of_other_kinds, refuse_unread

AttentionName = Literal["native", "flash", "flash-3", "xformers", "sage", "flex"]
QuantiseName = Literal["none", "int8_weight_only", "int8_dynamic", "fp8_weight_only", "fp8_dynamic"]


def _check_interval(name: str, interval: tuple[float, float]) -> None:
    low, high = interval
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"{name} must be two ascending sigmas in [0, 1], got {low:g}, {high:g}")


class StepCacheConfig(Section):
    """What of a denoising step is taken from the steps before it."""

    kind: Literal["none", "first_block", "taylorseer", "pyramid_attention"] = "none"
    """first_block: when the first block's residual hardly changed, that of all other blocks is
    used again (ParaAttention's FBCache); taylorseer: attention and feed-forward outputs are
    extrapolated between full steps (arXiv:2503.06923); pyramid_attention: attention outputs are
    used again (arXiv:2408.12588)."""
    threshold: float = Field(default=0.05, gt=0.0)
    """Of `first_block`: relative mean change of the residual up to which it counts as none. One
    decision for the whole batch."""
    interval: int = Field(default=3, ge=2)
    """Of `taylorseer`: a full step every so many; of `pyramid_attention`: self-attention is
    computed every so many steps."""
    cross_interval: int = Field(default=4, ge=2)
    """Of `pyramid_attention`: cross-attention is computed every so many steps; it changes less."""
    warmup_steps: int = Field(default=3, ge=1)
    """Of `taylorseer`: first steps of a clip that are computed in full."""
    max_order: int = Field(default=1, ge=0, le=4)
    """Of `taylorseer`: order of the extrapolation; each holds one more copy of every output."""
    sigma_range: tuple[float, float] = (0.1, 0.8)
    """Of `pyramid_attention`: outside it every step is computed; diffusers' default, as sigma."""

    @model_validator(mode="after")
    def _check(self) -> StepCacheConfig:
        _check_interval("sigma_range", self.sigma_range)
        refuse_of_other_kinds(self, self.kind, CACHE_READERS)
        return self


CACHE_READERS = {
    "threshold": ("first_block",),
    "interval": ("taylorseer", "pyramid_attention"),
    "cross_interval": ("pyramid_attention",),
    "warmup_steps": ("taylorseer",),
    "max_order": ("taylorseer",),
    "sigma_range": ("pyramid_attention",),
}
"""Setting of a step cache to the kinds that read it."""


class InferenceConfig(Section):
    """Optimisations of a policy's sampling; the default changes nothing."""

    attention: AttentionName | None = None
    """Kernel of every attention, by the name `rlvid.inference.attention` maps to diffusers'
    dispatcher; None leaves the model's own (`model.attention_backend`)."""
    step_cache: StepCacheConfig = StepCacheConfig()
    quantise: QuantiseName = "none"
    """Of the linear layers in the transformer's blocks, through torchao: *_weight_only stores the
    weights small, *_dynamic also rounds each activation and multiplies in the small type."""
    compile: Literal["none", "regional", "full"] = "none"
    """regional: each block through torch.compile, which compiles one of them; full: the whole
    transformer, which takes minutes for a large one. Not together with `step_cache`."""
    vae: Literal["whole", "tiled", "sliced"] = "whole"
    """tiled: decoded in overlapping tiles that are blended, for clips that do not fit; sliced: one
    clip at a time."""
    vae_tile: int = Field(default=256, ge=16)
    """Pixels of a tile's side; a clip no larger is decoded whole. diffusers' default."""
    vae_stride: int = Field(default=192, ge=8)
    """Pixels between two tiles; what is left of a tile is blended. diffusers' default."""
    slim_decoder: str | None = None
    """Folder of a small decoder that `rlvid slim-decoder` taught the frames of the model's VAE;
    None decodes with the VAE. Latents stay what they are."""
    guidance_interval: tuple[float, float] | None = None
    """Sigmas within which classifier-free guidance is applied (arXiv:2404.07724); outside them
    only the conditional half is computed. None: everywhere."""
    prompt_cache: str | None = None
    """Folder that keeps prompt embeddings between processes, by text encoder and text; None keeps
    them in memory only, as the model always does."""
    batch_prompts: int = Field(default=1, ge=1)
    """Prompts sampled in one batch; not for rollout actors, who sample one group at a time."""

    @model_validator(mode="after")
    def _check(self) -> InferenceConfig:
        if self.guidance_interval is not None:
            _check_interval("guidance_interval", self.guidance_interval)
        if self.vae_stride > self.vae_tile:
            raise ValueError(
                f"vae_stride must be at most vae_tile, or the picture has gaps, got "
                f"{self.vae_stride} and {self.vae_tile}"
            )
        if self.vae != "tiled":
            refuse_unread(self, ("vae_tile", "vae_stride"), f"by vae {self.vae}, but by tiled")
        if self.slim_decoder is not None and self.vae != "whole":
            raise ValueError(
                f"vae must be 'whole' where slim_decoder is given, got {self.vae!r}: the VAE "
                "decodes nothing then"
            )
        if self.compile != "none" and self.step_cache.kind != "none":
            raise ValueError(
                f"compile must be 'none' where step_cache is used, got {self.compile!r} and "
                f"{self.step_cache.kind!r}: the cache renews its hooks whenever a clip is sampled "
                "plainly in between, and each time torch would compile anew"
            )
        return self

    @property
    def samples_exactly(self) -> bool:
        """Whether latents are those of the plain model, bit for bit, on torch's own kernels."""
        return (
            self.attention in (None, "native")
            and self.step_cache.kind == "none"
            and self.guidance_interval is None
            and self.quantise == "none"
            and self.compile == "none"
            and self.batch_prompts == 1
        )

    def describe(self) -> str:
        """Return what differs from the default in one line; "plain" when nothing does."""
        parts = []
        if self.attention is not None:
            parts.append(f"attention {self.attention}")
        if self.step_cache.kind != "none":
            parts.append(_describe_cache(self.step_cache))
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            parts.append(f"guidance in [{low:g}, {high:g}]")
        parts += [self.quantise] if self.quantise != "none" else []
        parts += [f"compile {self.compile}"] if self.compile != "none" else []
        parts += [f"vae {self.vae}"] if self.vae != "whole" else []
        parts += ["slim decoder"] if self.slim_decoder is not None else []
        parts += [f"{self.batch_prompts} prompts at once"] if self.batch_prompts > 1 else []
        parts += ["prompt cache"] if self.prompt_cache is not None else []
        return ", ".join(parts) or "plain"


class SearchSpace(Section):
    """What `rlvid optimise` tries: one axis a field, the first value of each is the start."""

    attention: tuple[AttentionName | None, ...] = (None, "flash", "flash-3", "sage", "xformers")
    step_cache: tuple[StepCacheConfig, ...] = (
        StepCacheConfig(),
        StepCacheConfig(kind="first_block", threshold=0.05),
        StepCacheConfig(kind="first_block", threshold=0.1),
        StepCacheConfig(kind="taylorseer"),
        StepCacheConfig(kind="pyramid_attention"),
    )
    guidance_interval: tuple[tuple[float, float] | None, ...] = (None, (0.3, 1.0), (0.6, 1.0))
    quantise: tuple[QuantiseName, ...] = ("none", "int8_weight_only", "int8_dynamic", "fp8_dynamic")
    compile: tuple[Literal["none", "regional", "full"], ...] = ("none",)
    slim_decoder: tuple[str | None, ...] = (None,)
    batch_prompts: tuple[int, ...] = (1, 4)

    @model_validator(mode="after")
    def _check(self) -> SearchSpace:
        for name, values in self.axes().items():
            if not values:
                raise ValueError(f"{name} must have at least one value; the first is the start")
        return self

    def axes(self) -> dict[str, tuple[object, ...]]:
        """Return field to values, in the order in which a greedy search goes through them."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def start(self) -> InferenceConfig:
        """Return the first value of every axis."""
        return InferenceConfig().model_copy(update={k: v[0] for k, v in self.axes().items()})


def _describe_cache(cache: StepCacheConfig) -> str:
    if cache.kind == "first_block":
        return f"first-block cache {cache.threshold:g}"
    if cache.kind == "taylorseer":
        return f"TaylorSeer every {cache.interval}, order {cache.max_order}"
    return f"pyramid attention {cache.interval}/{cache.cross_interval}"
