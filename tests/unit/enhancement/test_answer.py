"""Answers of the rewriter are read strictly, whatever they are."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvid.enhancement.answer import (
    MAX_CHARACTERS,
    TAGS,
    Answer,
    Enhanced,
    Failure,
    Malformed,
    parse_answer,
    to_render,
    with_enhancement,
)
from rlvid.records import Prompt

GOOD = "<reason>It needs light.</reason>\n<prompt>A red ball\n falls in soft light.</prompt>\n"

PIECES = st.lists(
    st.one_of(
        st.sampled_from([*TAGS, "<reason", "prompt>", "< prompt>", "<PROMPT>", "<|im_end|>"]),
        st.sampled_from(
            [" ", "\n", "\t", "\x00", "\ufffd", "\ud800", "a red ball", "...", "<", ">"]
        ),
        st.text(max_size=8),
    ),
    max_size=9,
).map("".join)


def test_a_good_answer_gives_both_parts_on_one_line() -> None:
    assert parse_answer(GOOD, original="a red ball falls") == Enhanced(
        reason="It needs light.", prompt="A red ball falls in soft light."
    )


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (" \n", Failure.EMPTY),
        ("x" * (MAX_CHARACTERS + 1), Failure.TOO_LONG),
        (GOOD.replace("light.", "li\x07ght."), Failure.UNREADABLE),
        (GOOD.replace("light.", "li\ufffdght."), Failure.UNREADABLE),
        ("a red ball falls", Failure.MISSING_TAG),
        (GOOD.replace("</prompt>", ""), Failure.MISSING_TAG),
        (GOOD.replace("<prompt>", "<Prompt>"), Failure.MISSING_TAG),
        (GOOD + "<prompt>", Failure.REPEATED_TAG),
        ("<prompt>p</prompt><reason>r</reason>", Failure.WRONG_ORDER),
        ("<reason>r<prompt>p</prompt></reason>", Failure.WRONG_ORDER),
        ("Sure! " + GOOD, Failure.TEXT_OUTSIDE),
        (GOOD.replace("\n<prompt>", " so <prompt>"), Failure.TEXT_OUTSIDE),
        (GOOD + "Enjoy.", Failure.TEXT_OUTSIDE),
        ("<reason> \n</reason><prompt>p</prompt>", Failure.EMPTY_REASON),
        ("<reason>r</reason><prompt> ... </prompt>", Failure.EMPTY_PROMPT),
        ("<reason>r</reason><prompt>a ball<|im_start|></prompt>", Failure.MARKUP),
        ("<reason>r</reason><prompt> A RED ball, falls!</prompt>", Failure.UNCHANGED),
    ],
)
def test_every_failure_has_its_name(text: str, failure: Failure) -> None:
    assert parse_answer(text, original="a red ball falls") == Malformed(failure=failure)


def test_an_answer_that_was_cut_off_is_malformed_even_where_it_reads_well() -> None:
    """Nobody knows what would have followed, and a model that never stops costs every token."""
    assert parse_answer(GOOD, is_finished=False) == Malformed(failure=Failure.UNFINISHED)


def test_the_users_own_words_pass_only_where_they_are_allowed() -> None:
    text = "<reason>r</reason><prompt>a red ball falls</prompt>"
    assert parse_answer(text) == Enhanced(reason="r", prompt="a red ball falls")
    assert parse_answer(text, original="a red ball falls") == Malformed(failure=Failure.UNCHANGED)


def test_enhancing_keeps_what_the_judges_are_asked() -> None:
    prompt = Prompt(prompt_id="1", text="a ball", facts={"object": "ball"}, questions=("Is it?",))
    enhanced = with_enhancement(prompt, Enhanced(reason="r", prompt="a shiny ball"))
    assert enhanced.model_text == "a shiny ball"
    assert (enhanced.prompt_id, enhanced.text) == (prompt.prompt_id, prompt.text)
    assert (enhanced.facts, enhanced.questions) == (prompt.facts, prompt.questions)


def test_only_well_formed_answers_are_rendered() -> None:
    prompts = [Prompt(prompt_id=name, text=name) for name in "ab"]
    bad = Malformed(failure=Failure.EMPTY)
    answers: list[list[Answer]] = [
        [bad, Enhanced(reason="r", prompt="long a")],
        [Enhanced(reason="r", prompt="long b"), bad],
    ]
    found = [
        (place, prompt.text, prompt.model_text) for place, prompt in to_render(prompts, answers)
    ]
    assert found == [((0, 1), "a", "long a"), ((1, 0), "b", "long b")]


def check_answer(text: str) -> None:
    """What is enhanced stands in the answer between its tags, and is not the user's own."""
    original = "a red ball"
    answer = parse_answer(text, original=original)
    if isinstance(answer, Malformed):
        assert answer.failure in Failure
        return
    assert [text.count(tag) for tag in TAGS] == [1, 1, 1, 1]
    inside = text.split("<prompt>")[1].split("</prompt>")[0]
    assert answer.prompt == " ".join(inside.split())
    assert answer.reason
    assert answer.prompt
    assert answer.prompt.casefold() != original


@settings(max_examples=500, deadline=None, database=None)
@given(text=PIECES)
def test_any_text_is_one_of_the_two_and_no_prompt_comes_from_nowhere(text: str) -> None:
    check_answer(text)


@settings(max_examples=100, deadline=None, database=None)
@given(seed=st.integers(min_value=0, max_value=2**32))
def test_ten_thousand_broken_answers(seed: int) -> None:
    """Good answers with some characters changed, cut, doubled or moved: a hundred of each seed."""
    random = Random(seed)
    for _ in range(100):
        text = GOOD
        for _ in range(random.randint(1, 4)):
            first, second = sorted(random.randrange(len(text) + 1) for _ in range(2))
            piece = random.choice([text[first:second], chr(random.randrange(0x110000)), *TAGS, ""])
            text = text[:first] + piece + text[random.choice([first, second]) :]
        check_answer(text)


@settings(max_examples=200, deadline=None, database=None)
@given(
    reason=st.text("abc xyz.,\n", min_size=1).filter(str.strip),
    prompt=st.text("abc xyz.,\n", min_size=1).filter(lambda text: any(map(str.isalnum, text))),
    space=st.text(" \n\t", max_size=3),
)
def test_what_keeps_the_form_is_read_back(reason: str, prompt: str, space: str) -> None:
    text = f"{space}<reason>{reason}</reason>{space}<prompt>{prompt}</prompt>{space}"
    expected = Enhanced(reason=reason.strip(), prompt=" ".join(prompt.split()))
    assert parse_answer(text) == expected
