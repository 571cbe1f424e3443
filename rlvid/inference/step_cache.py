"""Step caches: work of a denoising step that is taken from the steps before it.

The hooks are diffusers'. They hold state between the forwards of a clip, which is what goes wrong:
a state that outlives its clip, or that meets another batch, gives a plausible wrong video. So the
state is dropped when a clip begins and whenever the batch changes within it: `sample_group` grows
from one row per noise to one per rollout, and a guidance interval leaves out the unconditional
half. Both halves of guidance lie in one batch here (`flow.guidance`), so one context holds both;
diffusers' pipelines, which call twice, need two.

FasterCache is left out: it takes the second half of a batch for the conditional one, ours is the
first, and diffusers lists no Wan pipeline for it. MagCache is left out: its ratios are measured per
checkpoint and step count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rlvid.config.inference import StepCacheConfig

TAYLOR_MODULES = (r"blocks\.\d+\.attn[12]", r"blocks\.\d+\.ffn")
"""What TaylorSeer extrapolates, as in its paper: the outputs of attention and feed-forward.
diffusers' default patterns end in "attn" and match nothing of Wan."""
NUM_TRAIN_TIMESTEPS = 1000
"""diffusers gives ranges as timesteps: 1000 sigma."""
_CONTEXT = "clip"

Batch = tuple[int, bool]
"""(latents, whether the unconditional half is there too)."""


class StepCache:
    """A cache on a transformer and the state it has of the present clip."""

    def __init__(self, transformer: nn.Module, config: StepCacheConfig) -> None:
        self._transformer: Any = transformer
        self._config = config
        self._sigma = 1.0
        self._batch: Batch | None = None

    def on(self) -> None:
        """Hook the transformer; ValueError when it is not one that diffusers can cache."""
        name = type(self._transformer).__name__
        if not hasattr(self._transformer, "enable_cache"):
            raise ValueError(
                f"inference.step_cache: {name} has no enable_cache: expected a diffusers "
                "transformer with CacheMixin, such as Wan's. Set step_cache.kind to none"
            )
        try:
            self._transformer.enable_cache(self._diffusers_config())
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"inference.step_cache: {self._config.kind} does not go with {name}: {error}. "
                "Set step_cache.kind to none"
            ) from error
        if not any(_is_hooked(module) for module in self._transformer.modules()):
            self._transformer.disable_cache()
            raise ValueError(
                f"inference.step_cache: {self._config.kind} finds nothing to cache in {name}: "
                "expected modules named as Wan's. Set step_cache.kind to none"
            )
        self._batch = None

    def off(self) -> None:
        self._transformer.disable_cache()

    def begin_clip(self) -> None:
        """Forget the clip before."""
        from diffusers.hooks import HookRegistry

        HookRegistry.check_if_exists_or_initialize(self._transformer).reset_stateful_hooks()
        self._batch = None

    @contextmanager
    def step(self, batch: Batch, sigma: float) -> Iterator[None]:
        """Within the block the transformer is called once, for a step of the present clip.

        Raises:
            RuntimeError: gradients are wanted; what a cache gives back has none.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                "inference.step_cache: expected sampling under torch.no_grad(): a cached step has "
                "no gradient"
            )
        if batch != self._batch:
            self.begin_clip()
            self._batch = batch
        self._sigma = sigma
        with self._transformer.cache_context(_CONTEXT):
            yield

    def _diffusers_config(self) -> Any:
        from diffusers import (
            FirstBlockCacheConfig,
            PyramidAttentionBroadcastConfig,
            TaylorSeerCacheConfig,
        )

        config = self._config
        if config.kind == "first_block":
            return FirstBlockCacheConfig(threshold=config.threshold)
        if config.kind == "taylorseer":
            return TaylorSeerCacheConfig(
                cache_interval=config.interval,
                disable_cache_before_step=config.warmup_steps,
                max_order=config.max_order,
                taylor_factors_dtype=next(self._transformer.parameters()).dtype,
                cache_identifiers=list(TAYLOR_MODULES),
            )
        low, high = (int(NUM_TRAIN_TIMESTEPS * sigma) for sigma in config.sigma_range)
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=config.interval,
            cross_attention_block_skip_range=config.cross_interval,
            spatial_attention_timestep_skip_range=(low, high),
            cross_attention_timestep_skip_range=(low, high),
            current_timestep_callback=lambda: NUM_TRAIN_TIMESTEPS * self._sigma,
        )


def _is_hooked(module: nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and bool(registry.hooks)
