"""Weak dimensions are found by their interval and named by what their low scorers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from rlvid.config.data_engine import WeaknessConfig
from rlvid.data.engine.embedding import embed_words
from rlvid.data.engine.records import Weakness
from rlvid.data.tiny_world.grammar import all_facts, caption, parse
from rlvid.evaluation.weakness import (
    ClipScores,
    dimension_scores,
    find_weaknesses,
    k_means,
    name_clusters,
    telling_words,
)
from rlvid.records import Prompt
from rlvid.seeds import prompt_id

PROMPTS = tuple(
    Prompt(prompt_id=prompt_id(text), text=text) for text in map(caption, all_facts()[::4])
)


def _scores(low: str, *, level: float) -> dict[tuple[str, int], float]:
    """Captions with the word score `level`, the others 0.95; two clips each."""
    return {
        (p.prompt_id, seed): (level if low in p.text else 0.95) for p in PROMPTS for seed in (0, 1)
    }


def _find(scores: Mapping[str, ClipScores], config: WeaknessConfig) -> tuple[Weakness, ...]:
    rows = dimension_scores(scores)
    return find_weaknesses(rows, scores, PROMPTS, config, embedder=embed_words, seed=0)


def test_the_weak_dimension_is_found_and_its_words_are_named() -> None:
    scores = {"motion": _scores("hits a wall", level=0.2), "camera": _scores("pans", level=0.94)}
    config = WeaknessConfig(below=0.9, low_frac=0.2)
    found = _find(scores, config)
    assert [weakness.dimension for weakness in found] == ["motion"]
    facts = [parse(text) for text in found[0].seed_prompts]
    assert {f["motion"] for f in facts if f} == {"collides"}
    assert found[0].seed_scores == pytest.approx([0.2] * len(found[0].seed_prompts))
    words = {word for cluster in found[0].clusters for word in cluster.words}
    assert {"hits", "wall"} & words
    assert sum(cluster.num_prompts for cluster in found[0].clusters) == 27


def test_weakest_first_and_at_most_so_many() -> None:
    scores = {name: _scores("ball", level=v) for name, v in (("a", 0.5), ("b", 0.1), ("c", 0.3))}
    config = WeaknessConfig(max_dimensions=2)
    found = _find(scores, config)
    assert [weakness.dimension for weakness in found] == ["b", "c"]


def test_low_by_chance_is_not_weak() -> None:
    """Mean .88 below .9, but two of four prompts are low: the interval reaches above."""
    values = {("a", 0): 0.8, ("b", 0): 0.8, ("c", 0): 0.96, ("d", 0): 0.96}
    (row,) = dimension_scores({"x": values})
    assert row.mean == pytest.approx(0.88)
    assert row.high > 0.9
    with pytest.raises(ValueError, match="no dimension lies below 0.9"):
        _find({"x": values}, WeaknessConfig())


def test_a_dimension_without_scores_is_no_zero() -> None:
    with pytest.raises(ValueError, match="a missing score is never 0"):
        dimension_scores({"x": {}})


def test_telling_words_by_hand() -> None:
    """`wall` is in every low text and no other; `a` is everywhere and tells nothing."""
    own = Counter({"a": 10, "wall": 10, "rare": 1})
    others = Counter({"a": 30, "floor": 30})
    assert telling_words(own, others)[0] == "wall"
    assert "a" not in telling_words(own, others)


def test_k_means_separates_what_is_apart_and_repeats() -> None:
    vectors = embed_words(["red ball"] * 4 + ["green grass"] * 4)
    labels = k_means(vectors, 2, seed=1)
    assert len(set(labels[:4].tolist())) == len(set(labels[4:].tolist())) == 1
    assert labels[0] != labels[4]
    assert np.array_equal(labels, k_means(vectors, 2, seed=1))


def test_more_clusters_than_texts_are_none() -> None:
    clusters = name_clusters(
        ["a ball", "a ball"], [0.1, 0.3], others=[], num_clusters=5, embedder=embed_words, seed=0
    )
    assert [(cluster.num_prompts, cluster.mean) for cluster in clusters] == [(2, 0.2)]
