"""Encoded prompts in a folder, so that a prompt is encoded once on a machine, not once a process.

A file's name has a digest of the text and one of the text encoder: of what it makes of a fixed
sentence, since another encoder, length or precision is another answer there as well. What is read
is bit for bit what was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlvid.condition import Condition, concatenate
from rlvid.durable import make_folder, write_file

if TYPE_CHECKING:
    from rlvid.models.base import VideoModel

PROBE = "A red ball rolls past three blue boxes while the camera pans to the left."


class PromptCache:
    """Answers `encode_prompts` from a folder, and from the model what is not there yet."""

    def __init__(self, model: VideoModel, folder: Path) -> None:
        """Encode the probe; the folder is made when it is not there."""
        make_folder(folder)
        self._model = model
        self._folder = folder
        self._encoder = _encoder_digest(model.encode_prompts([PROBE]))
        self.num_encoded = 0
        """Texts that were not in the folder."""

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """Return the condition of B texts, as the model's own method."""
        return concatenate([self._one(text) for text in texts])

    def _one(self, text: str) -> Condition:
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save

        path = self._folder / f"{self._encoder}-{_digest(text.encode())}.safetensors"
        if not path.is_file():
            encoded = self._model.encode_prompts([text])
            write_file(path, [save({n: t.cpu().contiguous() for n, t in encoded.tensors.items()})])
            self.num_encoded += 1
            return encoded
        try:
            condition = Condition(load_file(path))
        except (SafetensorError, ValueError) as error:
            raise ValueError(
                f"inference.prompt_cache: {path} is damaged ({error}); delete it, and it is made "
                "again"
            ) from error
        return condition.to(self._model.device)


def _encoder_digest(probed: Condition) -> str:
    parts = (probed[name].float().cpu().numpy().tobytes() for name in sorted(probed))
    return _digest(b"".join(parts))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
