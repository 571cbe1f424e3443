"""What the user names must survive the rewriting."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvid.config.enhancement import IntentConfig
from rlvid.data.tiny_world.grammar import ATTRIBUTES, all_facts, caption
from rlvid.enhancement.intent import Drift, intent_drift
from rlvid.enhancement.lexicon import load_lexicon
from rlvid.enhancement.mentions import mentions
from rlvid.records import Prompt

ENGLISH = load_lexicon("english")
KINDS = IntentConfig().kinds
FACTS = st.sampled_from(all_facts())
COLOURS = st.sampled_from(["red", "orange", "yellow", "green", "blue", "purple", "black", "white"])
THINGS = st.sampled_from(["dog", "cat", "horse", "robot", "woman", "wolf", "car", "bicycle", "box"])
NUMBERS = st.sampled_from(["two", "three", "four", "7"])
FILLER = st.sampled_from(
    [
        " in soft evening light",
        ", cinematic and highly detailed",
        " with gentle film grain, warm mood",
        ". Dust hangs in the air.",
    ]
)

JUMBLE = (
    *("a", "two", "three", "one", "pair", "of", "the", "and", "no", "while", "in", ",", "."),
    *("red", "blue", "ball", "balls", "box", "dogs", "men", "falls", "left", "right"),
    *("camera", "pans", "zoom", "static", "still", "shot", "wide", "close-up"),
)


def drift_of(text: str, rewrite: str) -> Drift:
    return intent_drift(Prompt(prompt_id="1", text=text), rewrite, ENGLISH, KINDS)


def named(drift: Drift) -> tuple[list[str], list[str]]:
    return [str(item) for item in drift.dropped], [str(c.wanted) for c in drift.contradicted]


@pytest.mark.parametrize(
    ("text", "rewrite"),
    [
        ("a red ball", "A glossy crimson sphere rests on oak."),
        ("a red ball", "A ball, glossy and deep red, rests on oak."),
        ("two black dogs run", "Two playful, glossy black dogs run; the dogs pant."),
        ("a couple of cats", "Two cats curl up."),
        ("three women and a child", "Three elderly women walk with one child."),
        ("a red and white truck", "A red and white lorry drives."),
        ("the camera pans left over a lake", "A lake at dawn; the camera slowly pans to the left."),
        ("a fox, static shot", "A fox in snow, the camera remains fixed."),
        ("close-up of a rose", "A close up shot of a dewy rose."),
        ("the camera pans across a city", "A city; the camera pans right past towers."),
        ("a dog, no cats", "A lone dog in a field."),
        ("dogs in a park", "Two dogs in a leafy park."),
        ("an alpaca grazes", "a llama grazes"),
        ("", "anything at all"),
    ],
)
def test_the_same_in_other_words_is_no_drift(text: str, rewrite: str) -> None:
    drift = drift_of(text, rewrite)
    assert named(drift) == ([], [])
    assert drift.reward == 1.0


@pytest.mark.parametrize(
    ("text", "rewrite", "dropped", "contradicted"),
    [
        ("a red ball and a box", "a red ball", ["object box"], []),
        ("a red ball", "a shiny ball", ["colour red of ball"], []),
        ("a red ball", "a blue ball", [], ["colour red of ball"]),
        (
            "a red ball and a blue box",
            "a blue ball and a red box",
            [],
            ["colour red of ball", "colour blue of box"],
        ),
        ("two dogs run", "three dogs run", [], ["count 2 of dog"]),
        ("two dogs run", "a dog runs", [], ["count 2 of dog"]),
        ("two dogs run", "dogs run", ["count 2 of dog"], []),
        ("a dog runs", "five dogs run", [], ["count 1 of dog"]),
        ("dogs run", "one dog runs", [], ["count many of dog"]),
        ("a dog runs", "there is no dog here", ["object dog"], []),
        ("a cat, the camera pans left", "a cat", ["camera pan left"], []),
        ("a cat, the camera pans left", "a cat, the camera pans right", [], ["camera pan left"]),
        ("a cat, static camera", "a cat, the camera zooms in", [], ["camera still"]),
        ("a cat, the camera zooms in", "a cat, static shot", [], ["camera zoom in"]),
        ("close-up of a cat", "a wide shot of a cat", [], ["camera close-up"]),
    ],
)
def test_what_is_gone_and_what_is_said_otherwise(
    text: str, rewrite: str, dropped: list[str], contradicted: list[str]
) -> None:
    drift = drift_of(text, rewrite)
    assert named(drift) == (dropped, contradicted)
    assert drift.reward < 1.0


def test_reward_is_the_share_that_is_kept_and_nothing_for_a_contradiction() -> None:
    """Red, ball, box: one of three is gone. "A" ball is implied, so it is no fourth."""
    assert drift_of("a red ball and a box", "a red ball").reward == pytest.approx(2 / 3)
    contradicted = drift_of("a red ball and a box", "a blue ball and a box")
    assert contradicted.kept_frac == pytest.approx(2 / 3)
    assert contradicted.reward == 0.0


def test_words_that_may_mean_something_else_are_not_the_camera() -> None:
    text = "a chef with a frying pan on the right follows a still pond with two tracks"
    assert not [item for item in mentions(text, ENGLISH) if item.kind == "camera"]


@settings(max_examples=300, deadline=None, database=None)
@given(text=st.text(max_size=60))
def test_any_text_keeps_itself(text: str) -> None:
    assert drift_of(text, text).reward == 1.0


@settings(max_examples=300, deadline=None, database=None)
@given(
    words=st.lists(
        st.sampled_from(JUMBLE),
        max_size=14,
    )
)
def test_any_jumble_of_known_words_keeps_itself(words: list[str]) -> None:
    text = " ".join(words)
    assert drift_of(text, text).reward == 1.0


@settings(max_examples=200, deadline=None, database=None)
@given(number=NUMBERS, colour=COLOURS, thing=THINGS, other=THINGS, filler=FILLER)
def test_additions_that_name_nothing_change_nothing(
    number: str, colour: str, thing: str, other: str, filler: str
) -> None:
    text = f"a {colour} {thing} beside {number} tiny {other} toys"
    assert drift_of(text, text + filler) == drift_of(text, text)


@settings(max_examples=200, deadline=None, database=None)
@given(colour=COLOURS, new=COLOURS, thing=THINGS, filler=FILLER)
def test_another_colour_is_always_contradicted(
    colour: str, new: str, thing: str, filler: str
) -> None:
    drift = drift_of(f"the {colour} {thing}{filler}", f"a large {new} {thing}{filler}")
    assert bool(drift.contradicted) == (colour != new)


@settings(max_examples=200, deadline=None, database=None)
@given(facts=FACTS, key=st.sampled_from(sorted(ATTRIBUTES)), data=st.data())
def test_a_tiny_world_rewrite_is_held_to_every_fact(
    facts: dict[str, str], key: str, data: st.DataObject
) -> None:
    """One fact changed: exactly that is found, whether the rewrite is a caption or longer."""
    prompt = Prompt(prompt_id="1", text=caption(facts), facts=facts)
    new = data.draw(st.sampled_from(ATTRIBUTES[key]))
    changed = caption({**facts, key: new})
    for rewrite in (changed, f"In soft light {changed}, cinematic."):
        drift = intent_drift(prompt, rewrite, ENGLISH, KINDS)
        wrong = {item.kind for item in drift.dropped}
        wrong |= {item.wanted.kind for item in drift.contradicted}
        if new == facts[key]:
            assert not wrong
        elif key == "object":
            assert wrong == {"object"} or wrong == {"object", "colour"}
        else:
            assert wrong == {key}


def test_every_caption_of_the_tiny_world_is_read_word_by_word_as_its_facts_say() -> None:
    """The exact comparison of captions and the reading of free text agree on all 540."""
    for facts in all_facts():
        prompt = Prompt(prompt_id="1", text=caption(facts), facts=facts)
        drift = intent_drift(prompt, f"{caption(facts)} in soft light", ENGLISH, KINDS)
        assert drift.reward == 1.0, (caption(facts), named(drift))


def test_synonyms_of_ones_own_and_a_lexicon_of_ones_own(tmp_path: Path) -> None:
    mine = load_lexicon("english", {"ball": ["globe"], "red": ["rosso"]})
    prompt = Prompt(prompt_id="1", text="two red balls")
    assert intent_drift(prompt, "two rosso globes", mine, KINDS).reward == 1.0
    assert intent_drift(prompt, "two rosso globes", ENGLISH, KINDS).reward < 1.0
    with pytest.raises(ValueError, match="'sphinx' is no key"):
        load_lexicon("english", {"sphinx": ["statue"]})
    with pytest.raises(ValueError, match="'box' stands for both"):
        load_lexicon("english", {"ball": ["box"]})
    with pytest.raises(ValueError, match="one of english"):
        load_lexicon("klingon")
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nversion: 1\nobject: {}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.yaml"):
        load_lexicon(str(path))
