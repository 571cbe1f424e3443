"""The tiny world's wishes in a user's words."""

from __future__ import annotations

import pytest

from rlvid.config import PromptsConfig
from rlvid.data.prompts import load_prompts
from rlvid.data.tiny_world.grammar import all_facts, caption, parse, split_of
from rlvid.data.tiny_world.vague import vague_text
from rlvid.enhancement.intent import intent_drift
from rlvid.enhancement.lexicon import load_lexicon
from rlvid.records import Prompt


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_texts_differ_where_facts_do_and_none_is_a_caption(variant: int) -> None:
    texts = [vague_text(facts, variant) for facts in all_facts()]
    assert len(set(texts)) == len(texts)
    assert not any(parse(text) for text in texts)


def test_a_variant_always_says_it_in_the_same_words() -> None:
    facts = all_facts()[7]
    assert vague_text(facts, 3) == vague_text(facts, 3)
    assert len({vague_text(facts, variant) for variant in range(12)}) > 3


def test_a_still_camera_is_left_out() -> None:
    for facts in all_facts():
        assert ("pan" in vague_text(facts)) == (facts["camera"] != "still")


def test_the_guard_knows_every_word() -> None:
    """What a user says for red or for a ball must count as red, and as a ball."""
    lexicon = load_lexicon("english")
    kinds = ("object", "colour", "camera", "motion")
    for facts in all_facts():
        wish = Prompt(prompt_id="p", text=vague_text(facts))
        drift = intent_drift(wish, caption(facts), lexicon, kinds)
        assert not drift.dropped, wish.text
        assert not drift.contradicted, wish.text
        named = {mention.kind for mention in drift.required}
        assert {"object", "colour", "motion"} <= named, wish.text


def test_the_prompt_set_has_the_facts_of_its_split() -> None:
    prompts = load_prompts(PromptsConfig(source="tiny_world_vague", split="heldout"))
    assert prompts
    assert all(split_of(prompt.facts) == "heldout" for prompt in prompts)
    assert all(prompt.text == vague_text(prompt.facts) for prompt in prompts)
