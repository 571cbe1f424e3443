"""diffusers' Wan transformer run block-causally: blocks of frames, each seen by later ones.

Two forwards that agree to rounding: `velocity` takes all blocks at once, for training;
`block_velocity` takes the next one with the keys and values of finished blocks, for streaming and
for self-rollouts (Self-Forcing, arXiv:2506.08009, algorithm 2). The transformer itself is not
changed: its weights, names and its own bidirectional forward stay what they were.

Letters: B batch, N blocks, C F H W latent, L text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlvid.condition import Condition
from rlvid.models.causal_attention import (
    AttentionPlan,
    KeysValues,
    StoredPrompt,
    bind_processors,
)
from rlvid.models.causal_cache import BlockCache
from rlvid.models.causal_layout import BlockLayout
from rlvid.models.causal_rotary import rotary_at
from rlvid.models.wan import NUM_TRAIN_TIMESTEPS, PROMPT_EMBEDS


class CausalWan:
    """A WanTransformer3DModel as a block-causal model of velocity.

    Gradient flows through the sequence of a forward, never through a cache. With gradient the
    prompt is projected anew in every forward, so that cross-attention learns from all of them.
    """

    def __init__(
        self, transformer: nn.Module, layout: BlockLayout, *, dtype: torch.dtype = torch.float32
    ) -> None:
        self.transformer = transformer
        """The learner replaces it by its wrapped self, as in `WanModel`."""
        self.layout = layout
        self._dtype = dtype
        self._wan = bind_processors(transformer)
        patch_frames = self._wan.config.patch_size[0]
        if layout.frames_per_block % patch_frames:
            raise ValueError(
                f"causal.frames_per_block: expected a multiple of the transformer's temporal patch "
                f"{patch_frames}, got {layout.frames_per_block}."
            )

    def velocity(
        self,
        latents: Tensor,
        sigma: Tensor,
        condition: Condition,
        *,
        clean: Tensor | None = None,
        context_sigma: float = 0.0,
    ) -> Tensor:
        """Return the velocity of all blocks at once; differentiable.

        Args:
            latents: [B, C, F, H, W].
            sigma: [B, N], one for each block, or [B] for all blocks of a clip.
            condition: of B rows, as `WanModel.encode_prompts` has it.
            clean: [B, C, F, H, W]. When given, block i attends to the blocks of `clean` before it
                and to itself (teacher forcing, Causal Forcing, arXiv:2602.02214), which is what
                `block_velocity` sees of a clip with that past; else to the noisy blocks before it
                (diffusion forcing, arXiv:2407.01392).
            context_sigma: sigma at which `clean` is shown, as in `append_block`.

        Returns:
            [B, C, F, H, W] float32.
        """
        num_blocks = self._check_clip(latents, condition)
        batch = latents.shape[0]
        if sigma.shape not in ((batch,), (batch, num_blocks)):
            raise ValueError(
                f"causal.velocity: sigma has shape {tuple(sigma.shape)}: expected ({batch},) or "
                f"({batch}, {num_blocks}), one for each clip or for each of its blocks."
            )
        blocks = [self.layout.visible(block) for block in range(num_blocks)]
        places = list(range(num_blocks))
        past = num_blocks - 1  # nothing attends to the last clean block
        if clean is not None:
            if clean.shape != latents.shape:
                raise ValueError(
                    f"causal.velocity: clean has shape {tuple(clean.shape)}: expected that of "
                    f"latents, {tuple(latents.shape)}."
                )
            latents = torch.cat([clean[:, :, : past * self.layout.frames_per_block], latents], 2)
            shown = sigma.new_full((batch, past), context_sigma)
            sigma = torch.cat([shown, sigma.reshape(batch, -1).expand(-1, num_blocks)], dim=1)
            noisy = [(*seen[:-1], past + block) for block, seen in enumerate(blocks)]
            blocks, places = [*blocks[:past], *noisy], [*places[:past], *places]
        plan = self._plan(latents, visible=blocks, places=places)
        velocity = self._run(latents, sigma, condition, plan)
        return velocity if clean is None else velocity[:, :, past * self.layout.frames_per_block :]

    def open_cache(self, condition: Condition) -> BlockCache:
        """Return an empty cache for the B clips of a condition."""
        return BlockCache(self.layout, condition)

    def block_velocity(self, latents: Tensor, sigma: Tensor, cache: BlockCache) -> Tensor:
        """Return the velocity of the next block; differentiable, and the cache keeps its blocks.

        Args:
            latents: [B, C, frames_per_block, H, W].
            sigma: [B].

        Returns:
            [B, C, frames_per_block, H, W] float32.
        """
        self._check_block(latents, cache)
        if sigma.shape != latents.shape[:1]:
            raise ValueError(
                f"causal.block_velocity: sigma has shape {tuple(sigma.shape)}: expected "
                f"({latents.shape[0]},), one for each clip of the block."
            )
        return self._run_block(latents, sigma, cache, None)

    def append_block(self, clean: Tensor, cache: BlockCache, *, context_sigma: float = 0.0) -> None:
        """Put a finished block into the cache: one more forward, without gradient.

        Its keys and values are those at `context_sigma`, not those of the last denoising step.
        Self-Forcing has 0; a small sigma hides the student's own errors from it. The block is taken
        as it is: to train with context noise, add noise of that sigma before.

        Args:
            clean: [B, C, frames_per_block, H, W].
        """
        self._check_block(clean, cache)
        record: dict[int, KeysValues] = {}
        with torch.no_grad():
            sigma = torch.full((clean.shape[0],), context_sigma, device=clean.device)
            self._run_block(clean, sigma, cache, record)
        if len(record) != len(self._wan.blocks):
            raise ValueError(
                f"causal.append_block: {len(record)} of {len(self._wan.blocks)} layers ran: "
                "expected all. Switch the transformer's step cache off."
            )
        cache.add(record, tuple(clean.shape))

    def _run_block(
        self,
        latents: Tensor,
        sigma: Tensor,
        cache: BlockCache,
        record: dict[int, KeysValues] | None,
    ) -> Tensor:
        seen = tuple(range(len(cache.kept_blocks) + 1))
        plan = self._plan(
            latents, visible=[seen], places=[cache.num_blocks], cache=cache, record=record
        )
        return self._run(latents, sigma, cache.condition, plan, cache)

    def _plan(
        self,
        latents: Tensor,
        *,
        visible: Sequence[tuple[int, ...]],
        places: Sequence[int],
        cache: BlockCache | None = None,
        record: dict[int, KeysValues] | None = None,
    ) -> AttentionPlan:
        """Return the plan of a sequence whose blocks stand at `places` of the clip."""
        patch_frames, patch_height, patch_width = self._wan.config.patch_size
        height, width = latents.shape[3] // patch_height, latents.shape[4] // patch_width
        frames = self.layout.frames_per_block // patch_frames
        if self.layout.positions == "window":
            places = range(max(len(seen) for seen in visible))
        return AttentionPlan(
            tokens_per_block=frames * height * width,
            visible=tuple(visible),
            positions=self.layout.positions,
            rotary=rotary_at(self._wan.rope, places, frames, height, width),
            stored=() if cache is None else cache.layers(),
            record=record,
        )

    def _run(
        self,
        latents: Tensor,
        sigma: Tensor,
        condition: Condition,
        plan: AttentionPlan,
        cache: BlockCache | None = None,
    ) -> Tensor:
        if sigma.ndim == 2 and sigma.shape[1] == 1:
            sigma = sigma[:, 0]
        with self._planned(plan, cache):
            velocity: Tensor = self.transformer(
                hidden_states=latents.to(self._dtype),
                timestep=sigma.float() * NUM_TRAIN_TIMESTEPS,
                encoder_hidden_states=condition[PROMPT_EMBEDS].to(self._dtype),
                return_dict=False,
            )[0]
        return velocity.float()

    @contextmanager
    def _planned(self, plan: AttentionPlan, cache: BlockCache | None) -> Iterator[None]:
        """Within the block the transformer hands `plan` to its layers instead of rotary tables."""

        def give_plan(_module: nn.Module, _inputs: Any, _output: Any) -> AttentionPlan:
            return plan

        def give_conditions(_module: nn.Module, _inputs: Any, output: Any) -> tuple[Any, ...]:
            time, modulation, text, image = output
            if time.ndim == 3:
                # The transformer takes a timestep per token (Wan 2.2 5B); embedding one per block
                # and spreading it gives the same numbers for a fraction of the work.
                time = time.repeat_interleave(plan.tokens_per_block, dim=1)
                modulation = modulation.repeat_interleave(plan.tokens_per_block, dim=1)
            if cache is not None and not torch.is_grad_enabled():
                text = StoredPrompt(text, cache.prompt_layers)
            return time, modulation, text, image

        handles = (
            self._wan.rope.register_forward_hook(give_plan),
            self._wan.condition_embedder.register_forward_hook(give_conditions),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_clip(self, latents: Tensor, condition: Condition) -> int:
        """Return the number of blocks; ValueError when latents and prompts do not fit."""
        channels, (_, patch_height, patch_width) = (
            self._wan.config.in_channels,
            self._wan.config.patch_size,
        )
        if latents.ndim != 5 or latents.shape[1] != channels:
            raise ValueError(
                f"causal: latents have shape {tuple(latents.shape)}: expected "
                f"[B, {channels}, F, H, W]."
            )
        if latents.shape[3] % patch_height or latents.shape[4] % patch_width:
            raise ValueError(
                f"causal: latents are {latents.shape[3]} x {latents.shape[4]}: expected multiples "
                f"of the transformer's patch, {patch_height} x {patch_width}."
            )
        prompt_embeds = condition[PROMPT_EMBEDS]
        if prompt_embeds.ndim != 3 or prompt_embeds.shape[0] != latents.shape[0]:
            raise ValueError(
                f"causal: prompt_embeds have shape {tuple(prompt_embeds.shape)} for "
                f"{latents.shape[0]} clips: expected [{latents.shape[0]}, L, text size]. Repeat a "
                "prompt for each of its clips."
            )
        return self.layout.num_blocks(latents.shape[2])

    def _check_block(self, latents: Tensor, cache: BlockCache) -> None:
        if cache.layout != self.layout:
            raise ValueError(
                f"causal: the cache has {cache.layout}: expected {self.layout}. Open it with the "
                "model that reads it."
            )
        if self._check_clip(latents, cache.condition) != 1:
            raise ValueError(
                f"causal: a block has {latents.shape[2]} latent frames: expected "
                f"{self.layout.frames_per_block}. Pass one block at a time."
            )
        if cache.block_shape not in (None, tuple(latents.shape)):
            raise ValueError(
                f"causal: a block has shape {tuple(latents.shape)}: expected {cache.block_shape}, "
                "that of the blocks in the cache. Open a cache for each size."
            )
