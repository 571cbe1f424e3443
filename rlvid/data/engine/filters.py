"""What keeps a written prompt out: its length, repetition, leaks from the held-out set, nonsense.

Every prompt that is refused is counted under one reason, so kept + dropped = written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from rlvid.config.data_engine import EnginePromptsConfig
from rlvid.data.engine.embedding import (
    Embedder,
    VectorRows,
    Vectors,
    cosine_distance,
    words_of,
)
from rlvid.data.engine.plausibility import Plausible, take_all

DropReason = Literal[
    "empty",
    "not_text",
    "too_short",
    "too_long",
    "duplicate",
    "leaks_heldout",
    "implausible",
    "not_judged",
]
"""`not_judged`: whether it is plausible was asked, and no answer could be had."""
REASONS: tuple[DropReason, ...] = get_args(DropReason)


@dataclass(slots=True)
class PromptCounts:
    """How many prompts were kept, and how many dropped for which reason."""

    kept: int = 0
    dropped: Counter[DropReason] = field(default_factory=Counter)

    @property
    def seen(self) -> int:
        return self.kept + self.dropped.total()

    def to_json(self) -> dict[str, int]:
        """Return "kept" and every reason, those that never came up too."""
        return {"kept": self.kept, **{reason: self.dropped[reason] for reason in REASONS}}


class PromptFilter:
    """Takes prompts in batches and remembers those it kept."""

    def __init__(
        self,
        config: EnginePromptsConfig,
        *,
        heldout: Sequence[str],
        embedder: Embedder,
        plausible: Plausible = take_all,
    ) -> None:
        """`heldout`: texts that no prompt may repeat or come near to."""
        self.counts = PromptCounts()
        self._config = config
        self._embedder = embedder
        self._plausible = plausible
        self._heldout_texts = {_canonical(text) for text in heldout}
        self._heldout = embedder(heldout) if config.leak_distance and heldout else None
        self._kept_texts: set[str] = set()
        self._kept = VectorRows()

    def keep(self, texts: Iterable[object]) -> list[str]:
        """Return those that pass, in their order; what is no text counts as dropped too."""
        given = list(texts)
        asked = list(
            dict.fromkeys(t for t in given if isinstance(t, str) and self._refused(t) is None)
        )
        answers = dict(zip(asked, self._plausible(asked), strict=True)) if asked else {}
        kept = []
        for text in given:
            reason = self._reason(text, answers)
            if reason is None:
                assert isinstance(text, str)
                self.counts.kept += 1
                kept.append(text.strip())
            else:
                self.counts.dropped[reason] += 1
        return kept

    def _reason(self, text: object, answers: Mapping[str, bool | None]) -> DropReason | None:
        """Return why a prompt is dropped; one that is kept is remembered."""
        refused = self._refused(text)
        if refused is not None:
            return refused
        assert isinstance(text, str)
        answer = answers[text]
        if answer is None:
            return "not_judged"
        return self._near(text) if answer else "implausible"

    def _refused(self, text: object) -> DropReason | None:
        """Return what is wrong with a prompt at first sight."""
        if not isinstance(text, str):
            return "not_text"
        num_words = len(words_of(text))
        if num_words == 0:
            return "empty"
        if num_words < self._config.min_words:
            return "too_short"
        if num_words > self._config.max_words:
            return "too_long"
        canonical = _canonical(text)
        if canonical in self._kept_texts:
            return "duplicate"
        if canonical in self._heldout_texts:
            return "leaks_heldout"
        return None

    def _near(self, text: str) -> DropReason | None:
        """Compare with what was kept and what is held out, by distance, where that is asked for."""
        config = self._config
        if self._heldout is not None or config.min_distance:
            vector = self._embedder([text])
            if self._heldout is not None and _nearest(vector, self._heldout) < config.leak_distance:
                return "leaks_heldout"
            if config.min_distance:
                if len(self._kept) and _nearest(vector, self._kept.rows) < config.min_distance:
                    return "duplicate"
                self._kept.add(vector)
        self._kept_texts.add(_canonical(text))
        return None


def _nearest(vector: Vectors, others: Vectors) -> float:
    return float(cosine_distance(vector, others).min())


def _canonical(text: str) -> str:
    """Equal for texts that differ in case, spaces and punctuation only."""
    return " ".join(words_of(text))
