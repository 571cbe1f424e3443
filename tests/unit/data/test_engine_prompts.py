"""Writers and filters: what is written for a weakness, and what never gets through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from rlvid.config.data_engine import DataEngineConfig, EnginePromptsConfig
from rlvid.data.engine.embedding import VectorRows, cosine_distance, embed_words
from rlvid.data.engine.filters import REASONS, PromptFilter
from rlvid.data.engine.plausibility import in_tiny_world, take_all
from rlvid.data.engine.records import Weakness
from rlvid.data.engine.writers import GrammarWriter, value_odds
from rlvid.data.tiny_world.grammar import all_facts, caption, parse, split_of

COLLISIONS = Weakness(
    dimension="motion",
    description="",
    seed_prompts=tuple(caption(f) for f in all_facts() if f["motion"] == "collides")[::4][:24],
)


PLAUSIBLE: dict[str, bool | None] = {"unicorn": False, "sphinx": None}
"""Second word to the judgement."""


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
        plausible=lambda texts: [PLAUSIBLE.get(text.split()[1], True) for text in texts],
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
        "a sphinx asks riddles",
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
        "not_judged": 1,
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


def test_prompts_are_judged_together_and_only_those_that_could_be_kept() -> None:
    asked: list[list[str]] = []

    def judge(texts: Sequence[str]) -> list[bool]:
        asked.append(list(texts))
        return [True] * len(texts)

    keep = PromptFilter(EnginePromptsConfig(), heldout=[], embedder=embed_words, plausible=judge)
    given = ["a red ball falls", "a red ball falls", "short", "a dog runs home"]
    assert keep.keep(given) == ["a red ball falls", "a dog runs home"]
    assert keep.keep(["A red ball falls.", None]) == []
    assert asked == [["a red ball falls", "a dog runs home"]]


@pytest.mark.parametrize("size", [1, 3, 50])
def test_the_size_of_the_batches_changes_nothing(size: int) -> None:
    texts = [caption(f) for f in all_facts()][:50]
    texts = [text for pair in zip(texts, texts[::-1], strict=True) for text in pair]
    whole, parts = (_filter(texts[:4], min_distance=0.05) for _ in range(2))
    kept = [t for n in range(0, 100, size) for t in parts.keep(texts[n : n + size])]
    assert kept == whole.keep(texts)
    assert parts.counts == whole.counts
    assert whole.counts.dropped["duplicate"] > 50


def test_vectors_are_copied_a_bounded_number_of_times() -> None:
    """The room doubles: of 1000 additions only those at 8, 16, ... 512 move the rows."""
    vectors = embed_words([f"word {n}" for n in range(1000)])
    rows, places = VectorRows(), set()
    for vector in vectors:
        rows.add(vector[None])
        places.add(rows.rows.__array_interface__["data"][0])
    assert np.array_equal(rows.rows, vectors)
    assert len(rows) == 1000
    assert len(places) <= 8


def test_who_judges_without_a_model() -> None:
    texts = [caption(all_facts()[0]), "a cat plays chess", "A red ball falls to the moon"]
    assert list(in_tiny_world(texts)) == [True, False, False]
    assert list(take_all(texts)) == [True, True, True]


def test_settings_of_plausibility_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="plausibility 'llm' needs exactly one of url and"):
        DataEngineConfig.model_validate({"prompts": {"plausibility": "llm"}})
    broad = {"source": "mine.txt", "split": "all"}
    with pytest.raises(ValidationError, match="knows the captions of the tiny world only"):
        DataEngineConfig.model_validate({"broad": broad, "prompts": {"plausibility": "grammar"}})
    llm = {"url": "http://127.0.0.1:1"}
    config = DataEngineConfig.model_validate({"prompts": {"plausibility": "llm", "llm": llm}})
    assert config.prompts.asks_llm
    assert not DataEngineConfig().prompts.asks_llm
