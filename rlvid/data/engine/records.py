"""What the data engine keeps of a weak dimension, a written prompt and a clip."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ClipKind = Literal["synthetic", "recaption", "real"]
"""synthetic: P_s V_s, a written prompt rendered by the policy. recaption: P_r V_s, a real caption
rendered by it. real: P_r V_r, a real clip with its caption (GigaVideo-1, arXiv:2506.10639)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Low scorers of a dimension that have something in common."""

    words: tuple[str, ...]
    """What sets their texts apart from all others, most telling first."""
    num_prompts: int
    mean: float
    """Of their scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weakness:
    """A dimension that prompts are written for."""

    dimension: str
    """Label of the scorer that judges it."""
    description: str
    seed_prompts: tuple[str, ...]
    """Examples; found ones are the lowest scorers, lowest first."""
    seed_scores: tuple[float, ...] = ()
    """Mean score of each of them; () when the user named the dimension."""
    mean: float | None = None
    """Score of the broad prompts; None when the user named the dimension."""
    low: float | None = None
    high: float | None = None
    clusters: tuple[Cluster, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPrompt:
    """A prompt of P_s."""

    text: str
    dimension: str
    questions: tuple[str, ...] = ()
    """Yes/no questions about a clip of it, "yes" being good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRecord:
    """One row of the manifest."""

    clip_id: str
    """Content address: what made the clip (policy, sampler, prompt, noise seed), or its pixels."""
    kind: ClipKind
    text: str
    prompt_id: str
    dimension: str
    """Weak dimension that the prompt was written for; "" where for none."""
    facts: Mapping[str, str] = field(default_factory=dict)
    origin: str
    """"policy:<digest>", "tiny_world" or the source and name of a real clip."""
    seed: int
    """Of the initial noise, or of the tiny world's clip."""
    file: str
    """In the data set's folder, or "" for a clip that is drawn when it is needed."""
    row: int
    """Place in `file`."""
    content: str
    """Digest of the latents or of the pixels."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Scorer to score; one that failed is not there."""
    reward: float | None = None
    """Weighted mean of the scores; None where one of them is missing."""

    def to_json(self) -> dict[str, Any]:
        """Return a tree of plain values with sorted keys, the same for equal records."""
        tree = {name: getattr(self, name) for name in self.__slots__}
        return {
            **tree,
            "facts": dict(sorted(self.facts.items())),
            "scores": dict(sorted(self.scores.items())),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> ClipRecord:
        return cls(**tree)


def content_id(*parts: str | int | float) -> str:
    """Return 32 hex digits that stand for the parts."""
    text = json.dumps(parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
