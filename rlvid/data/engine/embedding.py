"""Texts as unit vectors, for what is near to what: duplicates, leaks, clusters."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

NUM_BUCKETS = 2048
WORD_WEIGHT = 2.0
"""Of a whole word against one of its three-letter pieces."""


class Embedder(Protocol):
    """Maps texts to vectors of length 1."""

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Return [N, D]."""
        ...


def embed_words(texts: Sequence[str]) -> Vectors:
    """Hash words and their three-letter pieces into counts, [N, NUM_BUCKETS], length 1.

    No model and no vocabulary: equal texts have distance 0, texts without a common piece 1. It
    knows spelling and not meaning.
    """
    vectors = np.zeros((len(texts), NUM_BUCKETS), dtype=np.float32)
    for row, text in enumerate(texts):
        for piece, count in _pieces(text).items():
            digest = hashlib.blake2b(piece.encode(), digest_size=4).digest()
            vectors[row, int.from_bytes(digest, "big") % NUM_BUCKETS] += count
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


class VectorRows:
    """Vectors that are added one by one and read as one array.

    The room doubles when it is full: N vectors are copied fewer than 2 N times in all.
    """

    def __init__(self) -> None:
        self._room: Vectors | None = None
        self._num = 0

    def __len__(self) -> int:
        return self._num

    @property
    def rows(self) -> Vectors:
        """[N, D], a view; N must be at least 1."""
        assert self._room is not None
        return self._room[: self._num]

    def add(self, vector: Vectors) -> None:
        """Add one vector, [1, D]."""
        if self._room is None:
            self._room = np.empty((8, vector.shape[1]), dtype=np.float32)
        if self._num == len(self._room):
            self._room = np.concatenate([self._room, np.empty_like(self._room)])
        self._room[self._num] = vector[0]
        self._num += 1


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a text."""
    return re.findall(r"[^\W_]+", text.lower())


def cosine_distance(first: Vectors, second: Vectors) -> Vectors:
    """[N, D], [M, D] of length 1 -> [N, M] in [0, 2]."""
    return np.asarray(1.0 - first @ second.T, dtype=np.float32)


def _pieces(text: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for word in words_of(text):
        counts[f"word {word}"] += WORD_WEIGHT  # type: ignore[assignment]
        padded = f" {word} "
        counts.update(padded[start : start + 3] for start in range(len(padded) - 2))
    return counts
