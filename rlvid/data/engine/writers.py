"""Who writes prompts: the protocol, and the tiny world's grammar behind it.

GigaVideo-1 has a language model do three steps (arXiv:2506.10639, pipeline figure): analogy, new
base prompts of the same kind; augmentation, from base prompts to long ones; and yes/no questions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from rlvid.data.engine.records import Weakness
from rlvid.data.tiny_world.grammar import ATTRIBUTES, all_facts, caption, parse, split_of
from rlvid.seeds import derive_seed


class PromptWriter(Protocol):
    """Writes for one weak dimension at a time.

    What it returns comes from a language model and may be anything; the caller filters it and
    counts what it drops. The same round writes the same again, as far as the writer can help it.
    """

    def analogies(self, weakness: Weakness, num: int, *, round_: int) -> Sequence[object]:
        """Return about `num` new base prompts of the kind of the weakness's examples."""
        ...

    def augment(self, weakness: Weakness, prompts: Sequence[str]) -> Sequence[object]:
        """Return a long, detailed prompt for each base prompt."""
        ...

    def questions(self, weakness: Weakness, prompts: Sequence[str]) -> Sequence[Sequence[object]]:
        """Return yes/no questions about a clip of each prompt; () leaves the scorer its own."""
        ...


SMOOTHING = 0.5
"""Added to the count of every value, so that what no example shows is still written at times."""


class GrammarWriter:
    """Captions of the tiny world, without a language model.

    A caption is drawn with the odds of its values among the examples: where clips of collisions
    score low, most of what it writes collides. Captions of the held-out split are never written.
    Augmentation returns the caption as it is, since the tiny model knows no other sentence, and
    questions are those of the judge's own prompt file.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._facts = tuple(facts for facts in all_facts() if split_of(facts) == "train")

    def analogies(self, weakness: Weakness, num: int, *, round_: int) -> Sequence[str]:
        """Return `num` captions, each once, unlikely ones behind likely ones.

        Drawing without replacement by weight: the smallest of log(u) / w, u uniform (Efraimidis
        and Spirakis, 2006).

        Raises:
            ValueError: no example is a caption of the tiny world.
        """
        odds = value_odds(weakness)
        seeded = [derive_seed(self._seed, weakness.dimension, round_, n) for n in range(len(self))]
        keys = [
            _exponential(seed) / _weight(facts, odds)
            for seed, facts in zip(seeded, self._facts, strict=True)
        ]
        order = sorted(range(len(self)), key=keys.__getitem__)
        return [caption(self._facts[place]) for place in order[:num]]

    def augment(self, weakness: Weakness, prompts: Sequence[str]) -> Sequence[str]:
        return list(prompts)

    def questions(self, weakness: Weakness, prompts: Sequence[str]) -> Sequence[Sequence[str]]:
        return [() for _ in prompts]

    def __len__(self) -> int:
        return len(self._facts)


def value_odds(weakness: Weakness) -> Mapping[str, Mapping[str, float]]:
    """Return how often the examples show each value, over how often all captions do.

    Raises:
        ValueError: no example is a caption of the tiny world.
    """
    shown = [facts for text in weakness.seed_prompts if (facts := parse(text)) is not None]
    if not shown:
        raise ValueError(
            f"data_engine: {weakness.dimension!r}: the grammar writes for captions of the tiny "
            f"world, got {list(weakness.seed_prompts[:2])}. Give such seed_prompts, or set "
            "data_engine.prompts.writer to llm."
        )
    odds = {}
    for key, values in ATTRIBUTES.items():
        counts = Counter(facts[key] for facts in shown)
        total = len(shown) + SMOOTHING * len(values)
        odds[key] = {v: len(values) * (counts[v] + SMOOTHING) / total for v in values}
    return odds


def _weight(facts: Mapping[str, str], odds: Mapping[str, Mapping[str, float]]) -> float:
    weight = 1.0
    for key, value in facts.items():
        weight *= odds[key][value]
    return weight


def _exponential(seed: int) -> float:
    """Return -log of a uniform number in (0, 1) that the seed stands for."""
    return -math.log((seed + 0.5) / 2**63)
