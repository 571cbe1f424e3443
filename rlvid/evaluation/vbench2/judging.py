"""What is asked about a video of each dimension, and what its rule makes of the answers.

Two judges: one that sees (yes or no, or a description) and one that reads (yes or no about texts).
The benchmark uses LLaVA-Video-7B and Qwen2.5-7B; here they are whatever speaks the protocol. The
order of the questions, the frames they are about and the rules are the benchmark's, the wording is
ours. Dimensions judged by a specialist take its measurement from the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rlvid.evaluation.vbench2 import rules
from rlvid.evaluation.vbench2.items import Item

Part = Literal["all", "first_half", "last"]
"""Which frames are shown: all of them, those before the middle, or the last one alone."""

YES_NO = "Answer Yes or No."
ONE_CREATURE = f"Is there only one creature in the video, throughout? {YES_NO}"
CLOTHES = (
    f"Is exactly one person in the video, throughout? {YES_NO}",
    f"Is it the same person throughout the video? {YES_NO}",
    f"Do the person's clothes keep their colour and texture throughout the video? {YES_NO}",
)
ANOMALY = (
    "Does anything in this video appear from nothing, vanish, merge with something else or split? "
    f"{YES_NO}"
)
IN_ORDER = "List what happens in this video, in order, as a numbered list of {} short sentences."
DESCRIBE = "Describe this video in detail."
INTERACTION = "Say in one sentence what one person does to another in this video."
SAME_ACTION = (
    'Description A: "{}"\nDescription B: "{}"\nDo both tell of the same action, whoever does it? '
    "An action must really happen in both. " + YES_NO
)
CONTAINS = (
    'Asked for: "{}"\nDescription of a video: "{}"\nDoes the description hold what was asked for? '
    "Names and further details do not matter. " + YES_NO
)
SEVERAL_PEOPLE = 'Description of a video: "{}"\nIs there more than one person in it? ' + YES_NO


class Seer(Protocol):
    """A judge that sees the video it was opened for."""

    def yes(self, question: str, part: Part = "all") -> bool: ...

    def describe(self, request: str) -> str: ...

    def yes_each_second(self, question: str) -> Sequence[bool]:
        """Ask about every stretch of one second on its own."""
        ...


class Reader(Protocol):
    """A judge that reads."""

    def yes(self, question: str) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The value of one video."""

    value: float | None
    """In [0, 1]; None excludes it."""
    answers: Mapping[str, bool]
    """Every question and its answer, for whoever doubts the value."""


class _Notes:
    """Asks and writes down."""

    def __init__(self, seer: Seer, reader: Reader) -> None:
        self.seer, self.reader = seer, reader
        self.answers: dict[str, bool] = {}

    def see(self, question: str, part: Part = "all") -> bool:
        return self._noted(question, self.seer.yes(question, part))

    def read(self, question: str) -> bool:
        return self._noted(question, self.reader.yes(question))

    def _noted(self, question: str, answer: bool) -> bool:
        self.answers[question] = answer
        return answer


def judge(item: Item, seer: Seer, reader: Reader) -> Judged:
    """Ask what the item's dimension asks, and apply its rule.

    Raises:
        ValueError: the dimension is judged by a specialist, see `rules`.
    """
    if item.dimension not in _ASKED:
        raise ValueError(
            f"vbench2: {item.dimension} is judged by a specialist; expected one of "
            f"{', '.join(_ASKED)}."
        )
    notes = _Notes(seer, reader)
    value = _ASKED[item.dimension](item, notes)
    return Judged(value=value, answers=notes.answers)


def _questions(item: Item, notes: _Notes) -> float:
    return rules.all_yes([notes.see(f"{question} {YES_NO}") for question in item.parts])


def _spatial(item: Item, notes: _Notes) -> float:
    """The first question is about the first half of the frames, the second about the last one."""
    parts: tuple[Part, Part] = ("first_half", "last")
    return rules.all_yes(
        [notes.see(f"{q} {YES_NO}", part) for q, part in zip(item.parts, parts, strict=True)]
    )


def _gated(item: Item, notes: _Notes) -> float | None:
    return rules.gated_outcome([notes.see(f"{question} {YES_NO}") for question in item.parts])


def _composition(item: Item, notes: _Notes) -> float:
    gate = notes.see(ONE_CREATURE) if item.has_gate else None
    # After a failed gate the items are not asked: they do not count any more.
    items = [
        gate is not False and notes.see(f"Does the video show this: {part}? {YES_NO}")
        for part in item.parts
    ]
    return rules.composition(items, one_creature=gate, needs_all=item.needs_all)


def _clothes(item: Item, notes: _Notes) -> float | None:
    if not notes.see(CLOTHES[0]):
        return rules.human_clothes(one_person=False, same_person=False, same_clothes=False)
    return rules.human_clothes(
        one_person=True, same_person=notes.see(CLOTHES[1]), same_clothes=notes.see(CLOTHES[2])
    )


def _instance(item: Item, notes: _Notes) -> float:
    return rules.instance_preservation(notes.seer.yes_each_second(ANOMALY))


def _motion_order(item: Item, notes: _Notes) -> float | None:
    described = numbered(notes.seer.describe(IN_ORDER.format(2)))
    if len(described) < 2:
        return rules.motion_order(described, [])
    pairs = zip(item.parts, described, strict=False)
    return rules.motion_order(
        described, [notes.read(SAME_ACTION.format(wanted, found)) for wanted, found in pairs]
    )


def _interaction(item: Item, notes: _Notes) -> float:
    did = notes.seer.describe(INTERACTION)
    told = notes.seer.describe(DESCRIBE)
    return rules.human_interaction(
        interaction_matches=notes.read(SAME_ACTION.format(item.text, did)),
        more_than_one_person=notes.read(SEVERAL_PEOPLE.format(told)),
    )


def _story(item: Item, notes: _Notes) -> float:
    """Compare part by part and stop at the first miss.

    Where the judge wrote no list, each part is looked for in the whole of what it wrote.
    """
    text = notes.seer.describe(IN_ORDER.format(len(item.parts)))
    found = numbered(text) or [text] * len(item.parts)
    matches = []
    for wanted, part in zip(item.parts, found, strict=False):
        matches.append(notes.read(CONTAINS.format(wanted, part)))
        if not matches[-1]:
            break
    return rules.matched_prefix(matches, len(item.parts))


_ASKED: Mapping[str, Callable[[Item, _Notes], float | None]] = {
    "Motion_Rationality": _questions,
    "Dynamic_Attribute": _questions,
    "Dynamic_Spatial_Relationship": _spatial,
    "Mechanics": _gated,
    "Thermotics": _gated,
    "Material": _gated,
    "Composition": _composition,
    "Human_Clothes": _clothes,
    "Instance_Preservation": _instance,
    "Motion_Order_Understanding": _motion_order,
    "Human_Interaction": _interaction,
    "Complex_Landscape": _story,
    "Complex_Plot": _story,
}
"""Dimensions that a model is asked about. The benchmark has a fine-tuned detector for instance
preservation; a general model is asked the same question here."""


def numbered(text: str) -> list[str]:
    """Return the entries of a numbered list, "1. ...; 2. ..."; none where there is no list."""
    pieces = re.split(r"(?:^|\s|;)\d+[.)]\s+", text)
    if len(pieces) < 2:
        return []
    return [entry for piece in pieces[1:] if (entry := piece.strip(" ;\n\t"))]
