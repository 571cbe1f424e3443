"""CLIP score (arXiv:2104.08718) with CLIP or SigLIP, averaged over frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.specialists.needs import (
    MissingPartError,
    fingerprint,
    need_file,
    need_folder,
)

KINDS = ("clip", "siglip", "siglip2")


class ClipScore:
    """Mean over frames of the cosine between each frame and the prompt, by CLIP or SigLIP.

    Wants a folder as transformers saves it: config.json, model.safetensors, tokenizer and
    preprocessor_config.json. Licence: that of the weights you bring.

    Sees: whether the things the prompt names are in the frames.
    Blind to: time. It averages over frames, so shuffled and reversed clips score the same; use
    another scorer for motion. Weak on counts, relations and which thing has which colour.
    Gamed by: single frames that shout the prompt's nouns.
    """

    BLIND_TO = ("time and order of frames", "counts and relations", "binding of attributes")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str = ""
        num_frames: int = 4
        """Frames looked at, evenly over the clip."""

    def __init__(self, config: Config) -> None:
        folder = need_folder(config.folder, "clip_score", holds="a CLIP or SigLIP model")
        self._config = config
        self._model, self._tokenizer, self._images = _load(folder)
        self._kind = str(self._model.config.model_type)
        self.clip_spec = ClipSpec()
        self.version = fingerprint(folder / "model.safetensors")

    @torch.no_grad()
    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32 in [-1, 1]."""
        self._model.to(videos.device)
        pairs = zip(videos, prompts, strict=True)
        return torch.stack([self._one(video, prompt.text) for video, prompt in pairs])

    def _one(self, video: Tensor, text: str) -> Tensor:
        count = min(self._config.num_frames, len(video))
        chosen = [int((n + 0.5) * len(video) / count) for n in range(count)]
        pixels = (video[chosen] * 255.0).round().clamp(0, 255).to(torch.uint8)
        images = self._images(images=list(pixels), return_tensors="pt")
        # SigLIP was trained on sentences padded to a fixed length and reads others badly.
        padding = True if self._kind == "clip" else "max_length"
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            [text], padding=padding, truncation=True, max_length=length, return_tensors="pt"
        )
        inputs = {"input_ids": tokens["input_ids"], "pixel_values": images["pixel_values"]}
        if self._kind == "clip":
            inputs["attention_mask"] = tokens["attention_mask"]
        output = self._model(**{name: value.to(video.device) for name, value in inputs.items()})
        cosine: Tensor = (output.image_embeds @ output.text_embeds.T).mean()
        return cosine.float().cpu()


def _load(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        need_file(folder, name, scorer="clip_score", what="a CLIP or SigLIP model")
    kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if kind not in KINDS:
        raise MissingPartError(
            f"clip_score: {folder} holds a model of type {kind!r}: expected one of "
            f"{', '.join(KINDS)}. Change config.folder."
        )
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    images = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return cast(Any, model).requires_grad_(False).eval(), tokenizer, images
