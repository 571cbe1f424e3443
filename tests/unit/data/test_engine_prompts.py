"""Writers and filters: what is written for a weakness, and what never gets through."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rlvid.config.data_engine import EnginePromptsConfig
from rlvid.data.engine.embedding import cosine_distance, embed_words
from rlvid.data.engine.filters import REASONS, PromptFilter
from rlvid.data.engine.records import Weakness
from rlvid.data.engine.writers import GrammarWriter, value_odds
from rlvid.data.tiny_world.grammar import all_facts, caption, parse, split_of

COLLISIONS = Weakness(
    dimension="motion",
    description="",
    seed_prompts=tuple(caption(f) for f in all_facts() if f["motion"] == "collides")[::4][:24],
)


def _filter(heldout: list[str] | None = None, **settings: object) -> PromptFilter:
    config = EnginePromptsConfig.model_validate(settings)
    return PromptFilter(config, heldout=heldout or [], embedder=embed_words)


def test_the_grammar_writes_more_of_what_is_weak() -> None:
    written = GrammarWriter(0).analogies(COLLISIONS, 60, round_=0)
    motions = Counter(parse(text)["motion"] for text in written)  # type: ignore[index]
    assert motions["collides"] > 40, "a fifth of all captions collide"
    assert len(set(written)) == 60


def test_the_grammar_never_writes_a_held_out_caption() -> None:
    written = GrammarWriter(3).analogies(COLLISIONS, 10_000, round_=1)
    facts = [parse(text) for text in written]
    assert {split_of(f) for f in facts if f} == {"train"}
    assert len(written) == len(set(written)) == sum(split_of(f) == "train" for f in all_facts())


def test_the_grammar_is_a_function_of_seed_and_round() -> None:
    one = GrammarWriter(0).analogies(COLLISIONS, 20, round_=0)
    assert one == GrammarWriter(0).analogies(COLLISIONS, 20, round_=0)
    assert one != GrammarWriter(0).analogies(COLLISIONS, 20, round_=1)
    assert one != GrammarWriter(1).analogies(COLLISIONS, 20, round_=0)


def test_odds_by_hand() -> None:
    """24 examples all collide: (24 + 1/2) / (24 + 5/2) of them, times 5 values."""
    odds = value_odds(COLLISIONS)["motion"]
    assert odds["collides"] == pytest.approx(5 * 24.5 / 26.5)
    assert odds["falls"] == pytest.approx(5 * 0.5 / 26.5)


def test_foreign_examples_are_refused() -> None:
    weakness = Weakness(dimension="motion", description="", seed_prompts=("a cat plays chess",))
    with pytest.raises(ValueError, match="set data_engine.prompts.writer to llm"):
        GrammarWriter(0).analogies(weakness, 3, round_=0)


def test_every_reason_and_the_sum() -> None:
    keep = PromptFilter(
        EnginePromptsConfig(min_words=3, max_words=6, leak_distance=0.3, min_distance=0.3),
        heldout=["A dog runs home."],
        embedder=embed_words,
        plausible=lambda text: "unicorn" not in text,
    )
    given = [
        "a red ball falls down",
        "A red  ball, falls down!",
        "a red ball falls downs",
        "a dog runs home",
        "the dog runs home",
        None,
        b"bytes",
        {"text": "a ball"},
        "",
        "  \n",
        "two words",
        "one two three four five six seven",
        "a unicorn sings loudly",
        "six ships sail north",
    ]
    assert keep.keep(given) == ["a red ball falls down", "six ships sail north"]
    assert keep.counts.seen == len(given)
    assert keep.counts.to_json() == {
        "kept": 2,
        "empty": 2,
        "not_text": 3,
        "too_short": 1,
        "too_long": 1,
        "duplicate": 2,
        "leaks_heldout": 2,
        "implausible": 1,
    }
    assert set(keep.counts.to_json()) == {"kept", *REASONS}


def test_without_distances_only_equal_texts_repeat() -> None:
    keep = _filter(["a red ball falls to the left"])
    assert keep.keep(
        ["a red ball falls to the right", "a red ball falls to the left", "a blue ball falls"]
    ) == ["a red ball falls to the right", "a blue ball falls"]


def test_distance_of_words() -> None:
    vectors = embed_words(["a red ball", "a red ball", "A RED BALL!", "xyz qqq"])
    distance = cosine_distance(vectors, vectors)
    assert np.allclose(distance[0, :3], 0.0, atol=1e-6)
    assert distance[0, 3] > 0.9
