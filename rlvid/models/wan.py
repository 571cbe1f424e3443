"""Wan text-to-video models (arXiv:2503.20314) and everything else in WanPipeline's folder layout.

The classes are diffusers' own; this adapter translates between their conventions (timesteps 0 to
1000, pixels in [-1, 1], latents of the VAE's own scale) and those of `rlvid.models.base`.

diffusers is imported where a pipeline is loaded, written or asked: it takes four seconds of a core,
and the driver, which checks the recipe's model by its folder, never needs it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlvid.models.wan_vae import WanVae

if TYPE_CHECKING:
    from diffusers import WanPipeline

NUM_TRAIN_TIMESTEPS = 1000
"""timestep = 1000 * sigma, the scale on which Wan's transformers were trained."""

MAX_SEQUENCE_LENGTH = 512
"""Text tokens, WanPipeline's default; a tokenizer with a shorter `model_max_length` lowers it."""

_CACHED_PROMPTS = 512
"""Embeddings kept; umt5-xxl takes 8 MB each in float32."""


class WanModel:
    """A WanPipeline as a `VideoModel`.

    Every prompt is encoded on its own, so its embedding does not depend on what it was batched
    with. `velocity` is one call of the transformer and adds no arithmetic that depends on autograd:
    on a CPU the same batch gives the same bits with and without gradient.
    """

    def __init__(
        self, pipeline: WanPipeline, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.device = device
        self.transformer: nn.Module = pipeline.transformer
        self._tokenizer: Any = pipeline.tokenizer
        self._text_encoder: Any = pipeline.text_encoder
        self._vae = WanVae(pipeline.vae, device=device)
        self._scheduler: Any = pipeline.scheduler
        self._dtype = dtype
        self._patch_size: tuple[int, int, int] = tuple(pipeline.transformer.config.patch_size)
        self.max_sequence_length = min(self._tokenizer.model_max_length, MAX_SEQUENCE_LENGTH)
        self._prompt_embeds: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        attention_backend: str | None = None,
    ) -> WanModel:
        """Read a pipeline folder from disk; nothing is fetched from anywhere.

        `dtype` is the transformer's; the VAE stays in float32 (in bfloat16 it bands) and the text
        encoder follows the transformer.
        """
        folder = Path(folder)
        check_folder(folder)
        from diffusers import WanPipeline
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        try:
            pipeline = WanPipeline.from_pretrained(
                folder,
                local_files_only=True,
                dtype={"vae": torch.float32, "default": dtype},
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"model.path: {folder} does not load as a WanPipeline: {reason}. "
                "Copy the folder again, complete."
            ) from error
        pipeline.text_encoder.requires_grad_(False).eval()
        pipeline.transformer.eval()
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device)
        if attention_backend is not None:
            set_attention_backend(pipeline.transformer, attention_backend)
        return cls(pipeline, device=device, dtype=dtype)

    @property
    def vae(self) -> Any:
        """diffusers' AutoencoderKLWan, whose way of decoding `rlvid.inference.vae` sets."""
        return self._vae.module

    @staticmethod
    def load_decoder(folder: str | Path, *, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Return `decode` without transformer and text encoder, which are many times as large."""
        check_folder(Path(folder))
        return WanVae.load(Path(folder), device=device).decode

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        """Return prompt_embeds [B, L, D] float32, zero behind the last token as WanPipeline has it.

        L is `max_sequence_length` for every text: the transformer attends to the zeros as well, so
        another L gives another velocity.
        """
        return torch.cat([self._encode_prompt(text) for text in texts])

    def velocity(self, latents: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""
        velocity: Tensor = self.transformer(
            hidden_states=latents.to(self._dtype),
            timestep=sigma.float() * NUM_TRAIN_TIMESTEPS,
            encoder_hidden_states=prompt_embeds.to(self._dtype),
            return_dict=False,
        )[0]
        return velocity.float()

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] -> videos [B, T, 3, height, width] float32 in [0, 1]."""
        return self._vae.decode(latents)

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        """Return the bits of `decode`, differentiable in the latents."""
        return self._vae.decode_with_gradient(latents)

    def open_stream(self) -> Callable[[Tensor], Tensor]:
        """Return `decode` for clips that come in parts: next latents to next frames."""
        return self._vae.open_stream()

    def encode(self, videos: Tensor) -> Tensor:
        """[B, T, 3, height, width] in [0, 1] -> latents [B, C, F, H, W] float32, the mode."""
        self.latent_shape(videos.shape[1], videos.shape[3], videos.shape[4])
        return self._vae.encode(videos)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) for a clip of that size; ValueError when it does not divide."""
        temporal = self._vae.scale_factor_temporal
        spatial = self._vae.scale_factor_spatial
        if (num_frames - 1) % temporal:
            raise ValueError(
                f"model.num_frames: expected a multiple of {temporal} plus 1, got {num_frames}. "
                f"Take {1 + (num_frames - 1) // temporal * temporal}."
            )
        for name, pixels, patch in (
            ("height", height, self._patch_size[1]),
            ("width", width, self._patch_size[2]),
        ):
            if pixels < 1 or pixels % (spatial * patch):
                raise ValueError(
                    f"model.{name}: expected a multiple of {spatial * patch}, got {pixels}."
                )
        frames = (num_frames - 1) // temporal + 1
        return self._vae.channels, frames, height // spatial, width // spatial

    def save(self, folder: str) -> None:
        """Write the whole pipeline in diffusers' folder layout, weights as safetensors.

        `transformer` must be the bare diffusers module: a wrapped one (LoRA, DeepSpeed) is not
        something that `from_pretrained` could read back.
        """
        from diffusers import WanPipeline

        pipeline = WanPipeline(
            tokenizer=self._tokenizer,
            text_encoder=self._text_encoder,
            vae=self._vae.module,
            scheduler=self._scheduler,
            transformer=self.transformer,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)

    def _encode_prompt(self, text: str) -> Tensor:
        """Return [1, L, D] from the cache, or from the text encoder."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        if text in self._prompt_embeds:
            self._prompt_embeds.move_to_end(text)
            return self._prompt_embeds[text]
        # Not inference tensors even when the caller is in inference mode: a cached one could not
        # take part in a later training forward.
        with torch.inference_mode(False), torch.no_grad():
            tokens = self._tokenizer(
                prompt_clean(text),
                padding="max_length",
                max_length=self.max_sequence_length,
                truncation=True,
                add_special_tokens=True,
                return_attention_mask=True,
                return_tensors="pt",
            ).to(self.device)
            mask = tokens.attention_mask
            states = self._text_encoder(tokens.input_ids, mask).last_hidden_state
            prompt_embeds: Tensor = states.float() * mask.unsqueeze(-1)
        self._prompt_embeds[text] = prompt_embeds
        if len(self._prompt_embeds) > _CACHED_PROMPTS:
            self._prompt_embeds.popitem(last=False)
        return prompt_embeds


def check_folder(folder: Path) -> None:
    """Raise ValueError unless `folder` has the layout of a single-transformer WanPipeline."""
    index_file = folder / "model_index.json"
    if not folder.is_dir():
        raise ValueError(
            f"model.path: no folder at {folder}. Give a local pipeline folder (rlvid fetches no "
            "weights), or 'tiny' for the model that ships with rlvid."
        )
    if not index_file.is_file():
        raise ValueError(
            f"model.path: {folder} has no model_index.json: expected diffusers' pipeline layout. "
            "Give the folder that holds transformer/, vae/, text_encoder/ and tokenizer/."
        )
    index = json.loads(index_file.read_text())
    if index.get("_class_name") != "WanPipeline":
        raise ValueError(
            f"model.path: {index_file} names {index.get('_class_name')!r}: expected 'WanPipeline'. "
            "Set model.use to the adapter of that family."
        )
    if index.get("transformer_2", [None, None])[0] is not None:
        raise ValueError(
            f"model.path: {folder} has two transformers (Wan 2.2 A14B): expected one. "
            "Use a single-transformer model, such as Wan 2.1 or Wan 2.2 5B."
        )
    missing = [
        name
        for name in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
        if not (folder / name).is_dir()
    ]
    if missing:
        raise ValueError(
            f"model.path: {folder} lacks {', '.join(missing)}: expected diffusers' pipeline "
            "layout. Copy the folder again, complete."
        )


def set_attention_backend(transformer: Any, name: str) -> None:
    """Choose the kernel of this transformer alone; ValueError when it is not available.

    diffusers also makes the name the default of the process, which every model without a name of
    its own would follow; the block puts the former default back.
    """
    from diffusers.models.attention_dispatch import attention_backend

    try:
        with attention_backend("native"):
            transformer.set_attention_backend(name)
    except (ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"model.attention_backend: {name!r} is not available here: {reason} "
            "Install its package, or leave the field null."
        ) from error
