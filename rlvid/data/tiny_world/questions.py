"""Questions about tiny-world clips whose answers are known exactly.

Every yes/no question has a twin that negates it and has the other answer, so that a model which
says yes to everything, or does not read the "not", is found out. Open questions and captions have
a word or a sentence for an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from rlvid.data.tiny_world.breakages import BREAKAGES
from rlvid.data.tiny_world.grammar import ATTRIBUTES, all_facts, caption
from rlvid.data.tiny_world.situations import FLAWS, Situation

YES, NO = "Yes", "No"
FIRST, SECOND = "First", "Second"
TEMPLATES_VERSION = 2
"""Raise it with any change of the wordings: a judge is only as good on wordings it was taught."""

KINDS = (
    "object",
    "colour",
    "direction",
    "motion",
    "camera",
    "count",
    "order",
    "physics",
    "caption",
)
"""Kinds of yes/no questions; "caption" asks for all attributes at once."""

SOUND = "nothing"
"""The answer of a clip that is not broken to "What is wrong with the video?"."""
NUMBERS = ("one", "two", "three")

SUFFIXES = ("", " Answer Yes or No.", " Please answer yes or no.")
"""What may follow a yes/no question; without and with are taught alike."""

NATURAL_MOTION = "Does everything move as real objects do?"
_PHYSICS = (
    (NATURAL_MOTION, "Does anything move as no real object does?"),
    ("Does the video obey the laws of physics?", "Does the video break the laws of physics?"),
    ("Is the motion physically plausible?", "Is the motion not physically plausible?"),
)
_VERBS: Mapping[str, str] = {
    "falls": "fall",
    "bounces": "bounce",
    "rolls": "roll",
    "flies": "fly",
    "collides": "hit a wall",
}
_CAMERA = {
    "still": ("Does the camera stay still?", "Does the camera not stay still?"),
    "pans left": ("Does the camera pan left?", "Does the camera not pan left?"),
    "pans right": ("Does the camera pan right?", "Does the camera not pan right?"),
}
_CAPTION = (
    ('Does the video show "{}"?', 'Does the video not show "{}"?'),
    ('Does this video show "{}"?', 'Does this video not show "{}"?'),
    ("Does the video show {}?", "Does the video not show {}?"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about one clip, and its answer."""

    kind: str
    """One of `KINDS`, "open" or "grade" for one clip; "pair" for two."""
    text: str
    answer: str
    negated: bool = False
    """Of a yes/no question: the twin with "not"."""


Statement = tuple[str, str, bool]
"""(question, its negation, is it true?)."""
Rng = np.random.Generator


def negation(kind: str, statement: Statement) -> tuple[Question, Question]:
    """Return the question of a statement and its twin."""
    plain, negated, truth = statement
    return (
        Question(kind=kind, text=plain, answer=YES if truth else NO),
        Question(kind=kind, text=negated, answer=NO if truth else YES, negated=True),
    )


def _choose(rng: Rng, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _value(rng: Rng, key: str, true: Sequence[str]) -> tuple[str, bool]:
    """Return a value of the attribute that is true half of the time, and whether it is."""
    if rng.random() < 0.5:
        return _choose(rng, true), True
    return _choose(rng, [value for value in ATTRIBUTES[key] if value not in true]), False


def _reference(rng: Rng, situation: Situation, index: int) -> str:
    """Return words that mean this actor and no other."""
    actor = situation.actors[index]
    if len(situation.actors) > 1:
        return f"the {actor.name}"
    return _choose(rng, ("the object", f"the {actor.facts['object']}", f"the {actor.name}"))


def _an(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _object(rng: Rng, situation: Situation) -> Statement:
    index = int(rng.integers(len(situation.actors)))
    actor = situation.actors[index]
    value, truth = _value(rng, "object", [actor.facts["object"]])
    if len(situation.actors) > 1 or rng.random() < 0.6:
        many = len(situation.actors) > 1
        name = f"{actor.facts['colour']} object" if many else "object"
        return f"Is the {name} {_an(value)}?", f"Is the {name} not {_an(value)}?", truth
    return f"Is there {_an(value)}?", f"Is there no {value}?", truth


def _colour(rng: Rng, situation: Situation) -> Statement:
    value, truth = _value(rng, "colour", [a.facts["colour"] for a in situation.actors])
    if len(situation.actors) == 1 and rng.random() < 0.7:
        name = _choose(rng, ("object", situation.facts["object"]))
        return f"Is the {name} {value}?", f"Is the {name} not {value}?", truth
    return f"Is there {_an(value)} object?", f"Is there no {value} object?", truth


def _direction(rng: Rng, situation: Situation) -> Statement:
    index = int(rng.integers(len(situation.actors)))
    name = _reference(rng, situation, index)
    value, truth = _value(rng, "direction", [situation.actors[index].facts["direction"]])
    if rng.random() < 0.7:
        return (
            f"Does {name} move to the {value}?",
            f"Does {name} not move to the {value}?",
            truth,
        )
    return f"Is {name} moving to the {value}?", f"Is {name} not moving to the {value}?", truth


def _motion(rng: Rng, situation: Situation) -> Statement:
    name = _reference(rng, situation, 0)
    value, truth = _value(rng, "motion", [situation.facts["motion"]])
    verb = "slide" if value == "rolls" and situation.facts["object"] != "ball" else _VERBS[value]
    return f"Does {name} {verb}?", f"Does {name} not {verb}?", truth


def _camera(rng: Rng, situation: Situation) -> Statement:
    if rng.random() < 0.3:
        moves = rng.random() < 0.5
        still = situation.facts["camera"] == "still"
        if moves:
            return "Does the camera move?", "Does the camera not move?", not still
    value, truth = _value(rng, "camera", [situation.facts["camera"]])
    return (*_CAMERA[value], truth)


def _count(rng: Rng, situation: Situation) -> Statement:
    count = len(situation.actors)
    others = [number for number in (1, 2, 3) if number != count]
    asked = count if rng.random() < 0.5 else int(rng.choice(others))
    noun = "object" if asked == 1 else "objects"
    if rng.random() < 0.6:
        verb = "Is" if asked == 1 else "Are"
        words = f"{NUMBERS[asked - 1]} {noun}"
        return f"{verb} there {words}?", f"{verb} there not {words}?", asked == count
    words = f"exactly {NUMBERS[asked - 1]} {noun}"
    return f"Does the video show {words}?", f"Does the video not show {words}?", asked == count


def _order(rng: Rng, situation: Situation) -> Statement:
    forward = rng.random() < 0.5
    if len(situation.actors) == 1:
        actor = situation.actors[0]
        colours = (actor.facts["colour"], actor.later_colour)
        one, two = colours if forward else colours[::-1]
        name = _choose(rng, ("object", actor.facts["object"]))
        return (
            f"Is the {name} {one} before it is {two}?",
            f"Is the {name} not {one} before it is {two}?",
            forward,
        )
    early = situation.first_seen
    late = next(actor for actor in situation.actors if actor is not early)
    asked, other = (early, late) if forward else (late, early)
    form = rng.random()
    if form < 0.5:
        words = f"appear before the {other.name}"
    elif form < 0.75:
        words = "appear first"
    else:
        words = f"appear after the {other.name}"
        forward = not forward
    return f"Does the {asked.name} {words}?", f"Does the {asked.name} not {words}?", forward


def _physics(rng: Rng, situation: Situation) -> Statement:
    plain, negated = _PHYSICS[int(rng.integers(len(_PHYSICS)))]
    return plain, negated, not situation.breakage


def _caption(rng: Rng, situation: Situation) -> Statement:
    facts, truth = dict(situation.facts), rng.random() < 0.5
    if not truth:
        facts = _altered(rng, facts, 1 if rng.random() < 0.7 else 2)
    plain, negated = _CAPTION[int(rng.integers(len(_CAPTION)))]
    return plain.format(caption(facts)), negated.format(caption(facts)), truth


def _altered(rng: Rng, facts: Mapping[str, str], count: int) -> dict[str, str]:
    """Return the facts with other values of `count` attributes."""
    changed = dict(facts)
    for key in rng.permutation(list(ATTRIBUTES))[:count]:
        changed[key] = _choose(rng, [v for v in ATTRIBUTES[key] if v != facts[key]])
    return changed


_STATEMENTS: Mapping[str, Callable[[Rng, Situation], Statement]] = {
    "object": _object,
    "colour": _colour,
    "direction": _direction,
    "motion": _motion,
    "camera": _camera,
    "count": _count,
    "order": _order,
    "physics": _physics,
    "caption": _caption,
}


def kinds_of(situation: Situation) -> tuple[str, ...]:
    """Return the kinds of questions whose answer is beyond doubt for this clip.

    A broken clip is asked about its physics only: what moves where is what it breaks. An object
    that appears in mid clip, or changes its colour, is not asked whether it is natural.
    """
    if situation.breakage:
        whole = BREAKAGES[situation.breakage].kind != "object"
        return ("object", "physics") if whole else ("physics",)
    if situation.family == "order":
        if len(situation.actors) == 1:
            return ("object", "direction", "motion", "camera", "order")
        return ("object", "colour", "direction", "camera", "count", "order")
    if len(situation.actors) == 1:
        single = ("object", "colour", "direction", "motion", "camera", "count", "caption")
        return (*single, "physics") if situation.family == "single" else single
    return ("object", "colour", "direction", "camera", "count")


def ask(
    situation: Situation, kind: str, rng: Rng, *, suffix: str | None = None
) -> tuple[Question, Question]:
    """Return a question of the kind and its negation; yes and no are equally likely.

    The answer to `physics` is a matter of the clip: balance it by the share of broken clips.
    `suffix` None draws one of `SUFFIXES`, the same for both.
    """
    if kind not in kinds_of(situation):
        raise ValueError(
            f"ask: kind {kind!r} has no sure answer for this clip: expected one of "
            f"{', '.join(kinds_of(situation))}. Ask one of those, or draw another situation."
        )
    plain, negated, truth = _STATEMENTS[kind](rng, situation)
    end = _choose(rng, SUFFIXES) if suffix is None else suffix
    return negation(kind, (plain + end, negated + end, truth))


def open_questions(situation: Situation) -> list[Question]:
    """Return the questions with a word or a sentence for an answer."""
    pairs: list[tuple[str, str]] = []
    if situation.family == "single":
        flaw = FLAWS[situation.breakage] if situation.breakage else SOUND
        pairs.append(("What is wrong with the video?", flaw))
    if situation.breakage:
        return _open(pairs)
    facts, many = situation.facts, len(situation.actors) > 1
    pairs.append(("What does the camera do?", facts["camera"]))
    if many or situation.family != "order":
        pairs.append(("How many objects are there?", NUMBERS[len(situation.actors) - 1]))
    if many and situation.family == "order":
        first, last = sorted(situation.actors, key=lambda actor: actor.delay)
        pairs.append(("Which object appears first?", f"the {first.name}"))
        pairs.append(("Which objects appear?", f"the {first.name} and then the {last.name}"))
    if situation.actors[0].later_colour:
        change = f"{facts['colour']} and then {situation.actors[0].later_colour}"
        pairs.append(("What colour is the object?", change))
    for actor in situation.actors:
        if many:
            pairs.append((f"What is {actor.facts['colour']}?", f"the {actor.facts['object']}"))
            pairs.append((f"Which way does the {actor.name} move?", actor.facts["direction"]))
    if not many:
        pairs.append(("What is the object?", facts["object"]))
        pairs.append(("Which way does the object move?", facts["direction"]))
        pairs.append(("How does the object move?", facts["motion"]))
        if not situation.actors[0].later_colour:
            pairs.append(("What colour is the object?", facts["colour"]))
            pairs.append(("Describe the video.", caption(facts)))
    return _open(pairs)


def _open(pairs: Sequence[tuple[str, str]]) -> list[Question]:
    return [Question(kind="open", text=text, answer=answer) for text, answer in pairs]


GRADE = 'Grade how well the video shows "{}" from 1 to 5.'
BETTER = 'Which video shows "{}" better, the first or the second?'
NATURAL = "Which video moves more as real objects do, the first or the second?"


def grade(situation: Situation, rng: Rng) -> Question:
    """Return the question for a grade: 5 less one for each attribute that is wrong, at least 1."""
    wrong = int(rng.integers(0, 5))
    text = GRADE.format(caption(_altered(rng, situation.facts, wrong)))
    return Question(kind="grade", text=text, answer=str(5 - wrong))


def compare(one: Situation, two: Situation, rng: Rng) -> list[Question]:
    """Return questions about two clips, of those that have a sure answer.

    The clips are true ones of one object, or one of the two is broken.
    """
    questions = []
    if bool(one.breakage) != bool(two.breakage):
        answer = SECOND if one.breakage else FIRST
        questions.append(Question(kind="pair", text=NATURAL, answer=answer))
    elif not one.breakage and one.facts != two.facts:
        for facts, answer in ((one.facts, FIRST), (two.facts, SECOND)):
            text = BETTER.format(caption(facts))
            questions.append(Question(kind="pair", text=text, answer=answer))
    return questions


def vocabulary_texts() -> list[str]:
    """Return texts that hold every word of every question and answer, for the tokenizer."""
    names = [" ".join(pair) for pair in product(ATTRIBUTES["colour"], ATTRIBUTES["object"])]
    texts = [caption(facts) for facts in all_facts()]
    texts += [*FLAWS.values(), SOUND, *SUFFIXES, *(t for pair in _PHYSICS for t in pair)]
    texts += [t for pair in _CAMERA.values() for t in pair]
    texts += [t.format(name) for pair in _CAPTION for t in pair for name in names]
    texts += [f"Does the {name} not {verb}?" for name in names for verb in _VERBS.values()]
    texts += [f"Is the {name} not moving to the left before it is red?" for name in names]
    texts += [f"Does {name} appear first? Is there no {name}?" for name in names]
    texts += [f"What is red? the {name} and then slide move after" for name in names]
    texts += [f"Are there not exactly {n} objects? Is there an object?" for n in NUMBERS]
    texts += ["Which object appears first? Which way does the object move?"]
    texts += ["What is the object? What is wrong with the video? How many objects are there?"]
    texts += ["What colour is the object? What does the camera do? How does the object move?"]
    texts += ["Describe the video.", "Does the camera not move?", GRADE, BETTER, NATURAL]
    texts += [*NUMBERS, *(v for values in ATTRIBUTES.values() for v in values), "the", "a", "an"]
    return [*texts, YES, NO, FIRST, SECOND, *"12345"]
