"""The rewriter's answer, `<reason>...</reason><prompt>...</prompt>`, read strictly.

A text is either an `Enhanced` or a `Malformed`, never something between the two: what cannot be
read is a failure with a name, which is rewarded as one, and the user's own prompt never takes the
place of a rewrite. The form is RePrompt's (arXiv:2505.17540).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from rlvid.records import Prompt

TAGS = ("<reason>", "</reason>", "<prompt>", "</prompt>")
"""In the order in which an answer has them, each once."""
MAX_CHARACTERS = 20_000
"""Of an answer; a longer one is not looked at. Some 5,000 tokens."""

_WHITESPACE = frozenset("\t\n\r")


class Failure(StrEnum):
    """What is wrong with an answer; the first of these that holds."""

    UNFINISHED = "unfinished"
    """The model did not end its answer within the tokens it had."""
    EMPTY = "empty"
    TOO_LONG = "too_long"
    UNREADABLE = "unreadable"
    """Control characters, or bytes that are no text."""
    MISSING_TAG = "missing_tag"
    REPEATED_TAG = "repeated_tag"
    WRONG_ORDER = "wrong_order"
    TEXT_OUTSIDE = "text_outside"
    """Words before, between or after the two parts."""
    EMPTY_REASON = "empty_reason"
    EMPTY_PROMPT = "empty_prompt"
    MARKUP = "markup"
    """`<` or `>` in the prompt: a tag misspelt, or a special token of the model."""
    UNCHANGED = "unchanged"
    """The prompt is the user's, up to case, spaces and punctuation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enhanced:
    """An answer that keeps the form."""

    reason: str
    prompt: str
    """On one line, without spaces around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """An answer that does not; there is no prompt in it that anybody may use."""

    failure: Failure


Answer = Enhanced | Malformed


def parse_answer(text: str, *, original: str | None = None, is_finished: bool = True) -> Answer:
    """Read an answer; never raises, whatever the text is.

    Args:
        original: the user's prompt, which is no enhancement of itself; None accepts it.
        is_finished: whether the model ended the answer itself.
    """
    failure = _failure_of(text, is_finished=is_finished)
    if failure is not None:
        return Malformed(failure=failure)
    reason_open, reason_close, prompt_open, prompt_close = (text.index(tag) for tag in TAGS)
    reason = text[reason_open + len(TAGS[0]) : reason_close].strip()
    prompt = " ".join(text[prompt_open + len(TAGS[2]) : prompt_close].split())
    if not reason:
        return Malformed(failure=Failure.EMPTY_REASON)
    if not any(character.isalnum() for character in prompt):
        return Malformed(failure=Failure.EMPTY_PROMPT)
    if "<" in prompt or ">" in prompt:
        return Malformed(failure=Failure.MARKUP)
    if original is not None and _skeleton(prompt) == _skeleton(original):
        return Malformed(failure=Failure.UNCHANGED)
    return Enhanced(reason=reason, prompt=prompt)


def with_enhancement(prompt: Prompt, answer: Enhanced) -> Prompt:
    """Return the prompt with its enhanced text; id, facts and questions stay the user's."""
    return replace(prompt, enhanced_text=answer.prompt)


def to_render(
    prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]
) -> list[tuple[tuple[int, int], Prompt]]:
    """Return (row, column) and prompt of every answer [P][G] of which a video can be made."""
    return [
        ((row, column), with_enhancement(prompt, answer))
        for row, (prompt, group) in enumerate(zip(prompts, answers, strict=True))
        for column, answer in enumerate(group)
        if isinstance(answer, Enhanced)
    ]


def _failure_of(text: str, *, is_finished: bool) -> Failure | None:
    """Return what is wrong with the form, before the parts are looked into."""
    if not is_finished:
        return Failure.UNFINISHED
    if not text.strip():
        return Failure.EMPTY
    if len(text) > MAX_CHARACTERS:
        return Failure.TOO_LONG
    if any(_is_unreadable(character) for character in text):
        return Failure.UNREADABLE
    counts = [text.count(tag) for tag in TAGS]
    if 0 in counts:
        return Failure.MISSING_TAG
    if max(counts) > 1:
        return Failure.REPEATED_TAG
    places = [text.index(tag) for tag in TAGS]
    if places != sorted(places):
        return Failure.WRONG_ORDER
    outside = (
        text[: places[0]],
        text[places[1] + len(TAGS[1]) : places[2]],
        text[places[3] + len(TAGS[3]) :],
    )
    return Failure.TEXT_OUTSIDE if any(part.strip() for part in outside) else None


def _is_unreadable(character: str) -> bool:
    """Whether it is a control character, half of a surrogate pair, or the mark of broken bytes."""
    if character in _WHITESPACE:
        return False
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cs")


def _skeleton(text: str) -> str:
    """Return letters and digits in lower case, words parted by single spaces."""
    kept = "".join(c if c.isalnum() else " " for c in text.casefold())
    return " ".join(kept.split())
