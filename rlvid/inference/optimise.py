"""A video model with an `InferenceConfig` applied to it, and back.

    optimised = optimise(model, config)
    with optimised.clip() as clip:                       # once per clip, or per batch of clips
        condition = clip.encode_prompts(["a red ball falls"])
        velocity = clip.guided_velocity(latents, sigma, condition, negative, guidance_scale)
    videos = optimised.decode(latents)
    optimised.undo()

The model is changed in place and stays usable by itself only after `undo` or within `plain`. With
the default config nothing is changed and every call goes straight to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config.inference import InferenceConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.inference.attention import AttentionSwitch
from rlvid.inference.compile import CompileSwitch
from rlvid.inference.guidance_skip import guidance_scale_at
from rlvid.inference.prompt_cache import PromptCache
from rlvid.inference.quantise import QuantiseSwitch
from rlvid.inference.slim_decoder import SlimStream
from rlvid.inference.slim_folder import SlimDecoderSwitch
from rlvid.inference.step_cache import StepCache
from rlvid.inference.switch import Switch, switch_off, switch_on
from rlvid.inference.vae import VaeSwitch

if TYPE_CHECKING:
    from rlvid.models.base import VideoModel

EncodePrompts = Callable[[Sequence[str]], Condition]


@runtime_checkable
class StreamingDecoder(Protocol):
    """A video model whose VAE decodes a clip that is not finished; `WanModel` is one."""

    def open_stream(self) -> Callable[[Tensor], Tensor]:
        """Return a function from the next latents [B, C, F, H, W] to the next frames."""
        ...


class Clip:
    """One clip, or one batch of clips, on its way through the denoising steps."""

    def __init__(
        self,
        model: VideoModel,
        encode_prompts: EncodePrompts,
        *,
        step_cache: StepCache | None = None,
        guidance_interval: tuple[float, float] | None = None,
    ) -> None:
        self.encode_prompts = encode_prompts
        """As `VideoModel.encode_prompts`."""
        self._model = model
        self._step_cache = step_cache
        self._guidance_interval = guidance_interval

    def guided_velocity(
        self,
        latents: Tensor,
        sigma: Tensor,
        condition: Condition,
        negative: Condition | None,
        guidance_scale: float,
    ) -> Tensor:
        """Return [B, C, F, H, W] as `flow.guidance.guided_velocity`; once per denoising step.

        Raises:
            ValueError: the rows are at several sigmas, where a setting goes by sigma.
        """
        if self._step_cache is None and self._guidance_interval is None:
            return guided_velocity(self._model, latents, sigma, condition, negative, guidance_scale)
        at = _single_sigma(sigma)
        scale = guidance_scale_at(at, guidance_scale, self._guidance_interval)
        batch = (latents.shape[0], scale != 1.0)
        with self._step_cache.step(batch, at) if self._step_cache else nullcontext():
            return guided_velocity(self._model, latents, sigma, condition, negative, scale)


class OptimisedModel:
    """A model and the optimisations that are on; not for two clips at once."""

    def __init__(self, model: VideoModel, config: InferenceConfig) -> None:
        self.model = model
        self.config = config
        self._step_cache: StepCache | None = None
        self._slim: SlimDecoderSwitch | None = None
        self._switches: list[Switch] = []
        self._encode_prompts: EncodePrompts = model.encode_prompts
        self._is_in_clip = False

    def switch_on(self) -> None:
        """Change the model; see `optimise`."""
        self._switches = self._make_switches()
        switch_on(self._switches)
        if self.config.prompt_cache is not None:
            cache = PromptCache(self.model, Path(self.config.prompt_cache))
            self._encode_prompts = cache.encode_prompts

    @contextmanager
    def clip(self, *, is_plain: bool = False) -> Iterator[Clip]:
        """Begin a clip; nothing of the one before is left in any cache.

        Args:
            is_plain: sample with the model as it was given.

        Raises:
            RuntimeError: the clip before has not ended.
        """
        if self._is_in_clip:
            raise RuntimeError(
                "inference: a clip began before the last one ended: expected one at a time, since "
                "step caches hold one. Open the model once more for a second thread"
            )
        self._is_in_clip = True
        try:
            if is_plain:
                with self.plain():
                    yield Clip(self.model, self.model.encode_prompts)
                return
            if self._step_cache is not None:
                self._step_cache.begin_clip()
            yield Clip(
                self.model,
                self._encode_prompts,
                step_cache=self._step_cache,
                guidance_interval=self.config.guidance_interval,
            )
        finally:
            self._is_in_clip = False

    def decode(self, latents: Tensor) -> Tensor:
        """As `VideoModel.decode`, in tiles or slices or by a slim decoder if so set."""
        slim = None if self._slim is None else self._slim.decoder
        return self.model.decode(latents) if slim is None else slim.decode(latents)

    def open_stream(self) -> Callable[[Tensor], Tensor]:
        """Return `decode` for one batch of clips that comes in parts: next latents to next frames.

        Raises:
            ValueError: no slim decoder is set, and the model's VAE cannot decode a part of a clip.
        """
        if self._slim is not None and self._slim.decoder is not None:
            return SlimStream(self._slim.decoder).decode
        if not isinstance(self.model, StreamingDecoder):
            raise ValueError(
                f"{type(self.model).__name__} has no open_stream(): its VAE cannot decode a part "
                "of a clip: expected a model of Wan, or a slim decoder (inference.slim_decoder)"
            )
        return self.model.open_stream()

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Within the block the model is as it was given."""
        switch_off(self._switches)
        try:
            yield
        finally:
            switch_on(self._switches)

    def undo(self) -> None:
        """Leave the model as it was given; this object is done with."""
        switch_off(self._switches)
        self._switches = []
        self._step_cache = self._slim = None
        self._encode_prompts = self.model.encode_prompts

    def _make_switches(self) -> list[Switch]:
        """Return what is to be switched on, in order: what is compiled must be complete."""
        config, transformer = self.config, self.model.transformer
        switches: list[Switch] = []
        if config.attention is not None:
            switches.append(AttentionSwitch(transformer, config.attention))
        if config.quantise != "none":
            switches.append(QuantiseSwitch(transformer, config.quantise))
        if config.step_cache.kind != "none":
            self._step_cache = StepCache(transformer, config.step_cache)
            switches.append(self._step_cache)
        if config.compile != "none":
            switches.append(CompileSwitch(transformer, config.compile))
        if config.vae != "whole":
            switches.append(VaeSwitch(self.model, config))
        if config.slim_decoder is not None:
            self._slim = SlimDecoderSwitch(self.model, Path(config.slim_decoder))
            switches.append(self._slim)
        return switches


def optimise(model: VideoModel, config: InferenceConfig) -> OptimisedModel:
    """Apply a setting to a model, in place.

    Raises:
        ValueError: this machine or model cannot; the message says what is missing, and the model
            is as it was.
    """
    optimised = OptimisedModel(model, config)
    optimised.switch_on()
    return optimised


def _single_sigma(sigma: Tensor) -> float:
    low, high = torch.aminmax(sigma)
    if low != high:
        raise ValueError(
            "inference: guided_velocity: expected every row at one sigma, as the samplers have it, "
            f"got {float(low):g} to {float(high):g}: a step cache or guidance interval goes by "
            "sigma. Sample rows of one sigma together"
        )
    return float(low)
