"""What all families share: reading and writing a diffusers pipeline folder, and its prompts.

A family is a subclass in a file of its own: which pipeline and parts it is made of, how its text
encoders are asked, and its conventions (timesteps, patches, what its transformer predicts) in terms
of `rlvid.models.base`. The classes are diffusers' own; nothing of theirs is copied.

diffusers is imported where a pipeline is loaded, written or asked: it takes four seconds of a core,
and the driver, which checks the recipe's model by its folder, never needs it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rlvid.condition import Condition, concatenate
from rlvid.models.input_shapes import InputShapes
from rlvid.models.video_vae import VideoVae, read_vae

_CACHED_BYTES = 4 * 2**30
"""Of conditions kept; one of umt5-xxl takes 8 MB in float32, one of Cosmos 103 MB in bfloat16."""


class PipelineModel(ABC):
    """A diffusers pipeline as a `VideoModel`.

    Every prompt is encoded on its own, so its condition does not depend on what it was batched
    with. `velocity` is one call of the transformer and adds no arithmetic that depends on autograd:
    on a CPU the same batch gives the same bits with and without gradient.
    """

    PIPELINE: ClassVar[str]
    """Class of diffusers, the `_class_name` of model_index.json."""
    PARTS: ClassVar[tuple[str, ...]] = (
        "transformer",
        "vae",
        "text_encoder",
        "tokenizer",
        "scheduler",
    )
    """Folders that the pipeline must have."""
    ENCODERS: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """Those of them that are frozen models beside transformer and VAE."""
    VAE: ClassVar[str]
    """Class of diffusers."""

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """`pipeline` is of the class `PIPELINE`, on `device`."""
        self.device = device
        texts = pipeline.text_encoder  # None of a pipeline without weights
        self.text_device = device if texts is None else next(texts.parameters()).device
        """Where prompts are encoded: `device`, or what `model.text_encoder_device` says."""
        self.transformer: nn.Module = pipeline.transformer
        self._pipeline = pipeline
        self._dtype = dtype
        self._vae = self.open_vae(pipeline.vae, device)
        self._conditions: OrderedDict[str, Condition] = OrderedDict()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        attention_backend: str | None = None,
        text_encoder_device: torch.device | None = None,
    ) -> Self:
        """Read a pipeline folder from disk; nothing is fetched from anywhere.

        `dtype` is the transformer's; the VAE stays in float32 (in bfloat16 it bands) and the text
        encoders follow the transformer.

        Args:
            text_encoder_device: None is `device`.
        """
        folder = Path(folder)
        cls.check_folder(folder)
        import diffusers
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        try:
            pipeline = getattr(diffusers, cls.PIPELINE).from_pretrained(
                folder,
                local_files_only=True,
                dtype={"vae": torch.float32, "default": dtype},
                **cls.parts_beside(),
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"model.path: {folder} does not load as a {cls.PIPELINE}: {reason}. "
                "Copy the folder again, complete."
            ) from error
        for name in cls.ENCODERS:
            getattr(pipeline, name).requires_grad_(False).eval()
        pipeline.transformer.eval()
        pipeline.set_progress_bar_config(disable=True)
        cls._place(pipeline, device, text_encoder_device or device)
        model = cls(pipeline, device=device, dtype=dtype)
        if attention_backend is not None:
            set_attention_backend(model.transformer, attention_backend)
        return model

    @classmethod
    def _place(cls, pipeline: Any, device: torch.device, text_device: torch.device) -> None:
        """Move the parts, what only encodes text to a device of its own."""
        texts = set(cls.ENCODERS) - {"image_encoder"}
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                part.to(text_device if name in texts else device)

    @classmethod
    def load_vae(cls, folder: str | Path, *, device: torch.device) -> VideoVae:
        """Read the VAE without transformer and text encoders, which are many times as large."""
        folder = Path(folder)
        cls.check_folder(folder)
        return cls.open_vae(read_vae(folder, cls.VAE, device=device), device)

    @classmethod
    def parts_beside(cls) -> dict[str, Any]:
        """Return parts that the pipeline must be given and no folder holds."""
        return {}

    @classmethod
    @abstractmethod
    def open_vae(cls, vae: Any, device: torch.device) -> VideoVae:
        """Return the VAE with the statistics and scale factors of its configuration."""

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Raise ValueError unless `folder` has the layout of the family's pipeline."""
        index = read_index(folder)
        if index.get("_class_name") != cls.PIPELINE:
            raise ValueError(
                f"model.path: {folder / 'model_index.json'} names {index.get('_class_name')!r}: "
                f"expected {cls.PIPELINE!r}. Set model.use to the adapter of that family."
            )
        missing = [name for name in cls.PARTS if not (folder / name).is_dir()]
        if missing:
            raise ValueError(
                f"model.path: {folder} lacks {', '.join(missing)}: expected diffusers' pipeline "
                "layout. Copy the folder again, complete."
            )

    @property
    def vae(self) -> Any:
        """diffusers' VAE, whose way of decoding `rlvid.inference.vae` sets."""
        return self._vae.module

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """Return the condition of B texts; the newest ones are kept."""
        return concatenate([self._kept_condition(text) for text in texts])

    @abstractmethod
    def encode_prompt(self, text: str) -> Condition:
        """Return the condition of one text, one row, of the same shapes for every text.

        Transformers attend to padding as well unless they are given a mask, so another length would
        give another velocity.
        """

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes | None:
        """Return what `velocity` is told of latents of that shape; None where nobody wrote it.

        Only configurations may be read: the planner asks a model without weights.
        """
        return None

    @abstractmethod
    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""

    @abstractmethod
    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) for a clip of that size; ValueError when it does not divide."""

    def clip_size(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        """Return (num_frames, height, width) that latents of shape (C, F, H, W) stand for."""
        return self._vae.clip_size(latent_shape)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] -> videos [B, T, 3, height, width] float32 in [0, 1]."""
        return self._vae.decode(latents)

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        """Return the bits of `decode`, differentiable in the latents."""
        return self._vae.decode_with_gradient(latents)

    def encode(self, videos: Tensor) -> Tensor:
        """[B, T, 3, height, width] in [0, 1] -> latents [B, C, F, H, W] float32, the mode."""
        self.latent_shape(videos.shape[1], videos.shape[3], videos.shape[4])
        return self._vae.encode(videos)

    def save(self, folder: str) -> None:
        """Write the whole pipeline in diffusers' folder layout, weights as safetensors.

        `transformer` must be the bare diffusers module: a wrapped one (LoRA, DeepSpeed) is not
        something that `from_pretrained` could read back.
        """
        pipeline = self._pipeline
        _, names = pipeline._get_signature_keys(type(pipeline))
        settings = {name: pipeline.config[name] for name in names if name in pipeline.config}
        parts = {**settings, **pipeline.components, **self.trained_parts()}
        type(pipeline)(**parts).save_pretrained(folder, safe_serialization=True)

    def trained_parts(self) -> dict[str, nn.Module]:
        """Return the policy by the pipeline's names of its parts."""
        return {"transformer": self.transformer}

    def _kept_condition(self, text: str) -> Condition:
        if text in self._conditions:
            self._conditions.move_to_end(text)
            return self._conditions[text]
        # Not inference tensors even when the caller is in inference mode: a kept one could not take
        # part in a later training forward.
        with torch.inference_mode(False), torch.no_grad():
            condition = self.encode_prompt(text).to(self.device)
        self._conditions[text] = condition
        while len(self._conditions) > 1 and self._kept_bytes() > _CACHED_BYTES:
            self._conditions.popitem(last=False)
        return condition

    def _kept_bytes(self) -> int:
        kept = self._conditions.values()
        return sum(t.nbytes for condition in kept for t in condition.tensors.values())


def read_index(folder: Path) -> dict[str, Any]:
    """Return model_index.json of a pipeline folder; ValueError when there is none."""
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
    index: dict[str, Any] = json.loads(index_file.read_text())
    return index


def set_attention_backend(transformer: Any, name: str) -> None:
    """Choose the kernel of this transformer alone; ValueError when it is not available.

    diffusers passes over attention that always calls torch's own (Mochi's, for one); here that is
    an error as well.

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
    processors = (getattr(module, "processor", None) for module in transformer.modules())
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise ValueError(
            f"model.attention_backend: {type(transformer).__name__} takes no kernel but torch's: "
            f"expected null, got {name!r}. Leave the field null."
        )
