"""Scores already known: kept by what was scored and by what scored it, never by when.

A key holds the clip's bytes, everything of the prompt that a scorer may read, and the scorer's
version, so a change of any of them is another key. Missing scores are never kept.
"""

from __future__ import annotations

import inspect
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

from rlvid.config.rewards import ScorerConfig
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint, version_of


class ScoreCache:
    """The most recently used scores; one thread uses it."""

    def __init__(self, max_entries: int) -> None:
        """`max_entries` 0 keeps nothing."""
        self._max_entries = max_entries
        self._values: OrderedDict[str, float] = OrderedDict()

    def get(self, key: str) -> float | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: str, value: float) -> None:
        if not self._max_entries:
            return
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._max_entries:
            self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)


def score_key(version: str, prompt: Prompt, digests: Sequence[str], row: int = 0) -> str:
    """Return the key of one score.

    Args:
        digests: of the clip; of all clips of the group in order for a group-wise scorer.
        row: which of them the score belongs to.
    """
    return _digest([version, prompt_digest(prompt), *digests, str(row)])


def prompt_digest(prompt: Prompt) -> str:
    """Return a digest of all that a scorer may read of a prompt."""
    facts = [f"{name}={value}" for name, value in sorted(prompt.facts.items())]
    # With media the id covers what their files hold; without, the text says all.
    media = [prompt.prompt_id] if prompt.media else []
    return _digest([prompt.text, prompt.enhanced_text or "", *facts, *prompt.questions, *media])


def scorer_version(config: ScorerConfig, scorer: object) -> str:
    """Return a digest of class, settings, source file and what the scorer says of itself."""
    kind = type(scorer)
    path = inspect.getsourcefile(kind)
    source = xxhash.xxh3_128_hexdigest(Path(path).read_bytes()) if path else ""
    settings = json.dumps(config.config, sort_keys=True, default=str)
    name = f"{kind.__module__}:{kind.__qualname__}"
    return _digest([config.use, name, settings, source, version_of(scorer)])


def served_version(version: str, endpoints: Iterable[Endpoint]) -> str:
    """Return the version of a scorer that asks these endpoints."""
    return _digest([version, *sorted({e.model + "\0" + e.model_digest for e in endpoints})])


def _digest(parts: Sequence[str]) -> str:
    # Lengths keep parts apart: without them a character could move between the two.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return str(xxhash.xxh3_128_hexdigest(text.encode()))
