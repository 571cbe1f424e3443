"""Prompt embeddings in a folder, so that a prompt is encoded once on a machine, not once a process.

A file's name has a digest of the text and one of the text encoder: of what it makes of a fixed
sentence, since another encoder, length or precision is another answer there as well. What is read
is bit for bit what was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlvid.durable import make_folder, write_file

if TYPE_CHECKING:
    from rlvid.models.base import VideoModel

PROBE = "A red ball rolls past three blue boxes while the camera pans to the left."
_KEY = "prompt_embeds"


class PromptCache:
    """Answers `encode_prompts` from a folder, and from the model what is not there yet."""

    def __init__(self, model: VideoModel, folder: Path) -> None:
        """Encode the probe; the folder is made when it is not there."""
        make_folder(folder)
        self._model = model
        self._folder = folder
        self._encoder = _digest(model.encode_prompts([PROBE]).cpu().numpy().tobytes())
        self.num_encoded = 0
        """Texts that were not in the folder."""

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        """Return prompt_embeds [B, L, D], as the model's own method."""
        return torch.cat([self._one(text) for text in texts])

    def _one(self, text: str) -> Tensor:
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save

        path = self._folder / f"{self._encoder}-{_digest(text.encode())}.safetensors"
        if not path.is_file():
            encoded = self._model.encode_prompts([text])
            write_file(path, [save({_KEY: encoded.cpu().contiguous()})])
            self.num_encoded += 1
            return encoded
        try:
            embeds: Tensor = load_file(path)[_KEY]
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                f"inference.prompt_cache: {path} is damaged ({error}); delete it, and it is made "
                "again"
            ) from error
        return embeds.to(self._model.device)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
