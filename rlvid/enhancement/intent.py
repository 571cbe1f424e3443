"""Whether a rewrite still asks for what the user asked for.

Everything the user names must survive: what is gone is dropped, what is said otherwise is
contradicted. New things may be added; that is what a rewrite is for. It guards the reward (a
generator scores well on scenes that are easier than the ones that were wanted) and is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rlvid.data.tiny_world.grammar import ATTRIBUTES, parse
from rlvid.enhancement.lexicon import Lexicon
from rlvid.enhancement.mentions import MANY, Mention, mentions
from rlvid.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """Something the user named, and what the rewrite says instead."""

    wanted: Mention
    found: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What became of the user's wishes."""

    required: tuple[Mention, ...]
    dropped: tuple[Mention, ...]
    contradicted: tuple[Contradiction, ...]

    @property
    def kept_frac(self) -> float:
        """Share of what was asked for that is still there; 1 where nothing was."""
        lost = {*self.dropped, *(item.wanted for item in self.contradicted)}
        insisted = [mention for mention in self.required if mention.is_insisted]
        kept = sum(mention not in lost for mention in insisted)
        return kept / len(insisted) if insisted else 1.0

    @property
    def reward(self) -> float:
        """Return `kept_frac`, and 0 where anything is contradicted: it asks for another video."""
        return 0.0 if self.contradicted else self.kept_frac


def required_mentions(
    prompt: Prompt, lexicon: Lexicon, kinds: Collection[str]
) -> tuple[Mention, ...]:
    """Return what a rewrite must keep: all tiny-world facts, else `kinds` of the text."""
    if _is_tiny_world(prompt.facts):
        return _of_facts(prompt.facts, lexicon)
    return tuple(item for item in mentions(prompt.text, lexicon) if item.kind in kinds)


def intent_drift(prompt: Prompt, rewrite: str, lexicon: Lexicon, kinds: Collection[str]) -> Drift:
    """Compare a rewrite with what the user asked for.

    Args:
        kinds: what is looked for in a free text; see `IntentConfig.kinds`.
    """
    required = required_mentions(prompt, lexicon, kinds)
    facts = parse(rewrite) if _is_tiny_world(prompt.facts) else None
    found = _of_facts(facts, lexicon) if facts else mentions(rewrite, lexicon)
    values: dict[str, set[str]] = defaultdict(set)
    bound: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in found:
        values[item.kind].add(item.value)
        bound[item.kind, item.of].add(item.value)
    dropped: list[Mention] = []
    contradicted: list[Contradiction] = []
    for wanted in required:
        is_there, others = _verdict(wanted, values, bound, required, lexicon)
        if others:
            contradicted.append(Contradiction(wanted=wanted, found=tuple(sorted(others))))
        elif wanted.is_insisted and not is_there:
            dropped.append(wanted)
    return Drift(required=required, dropped=tuple(dropped), contradicted=tuple(contradicted))


def _verdict(
    wanted: Mention,
    values: Mapping[str, set[str]],
    bound: Mapping[tuple[str, str], set[str]],
    required: Sequence[Mention],
    lexicon: Lexicon,
) -> tuple[bool, set[str]]:
    """Return whether what is wanted is there, and what contradicts it.

    Args:
        values: kind to all values of it in the rewrite.
        bound: (kind, object) to those that belong to the object, "" for none.
    """
    named = values.get(wanted.kind, set())
    own = bound.get((wanted.kind, wanted.of), set()) if wanted.of else named
    if wanted.kind == "object":
        return wanted.value in named, set()
    if wanted.kind == "camera":
        return _camera_verdict(wanted.value, named, required, lexicon)
    if wanted.kind == "count":
        is_there = wanted.value in own
        rivals = own - {MANY} if wanted.value not in (MANY, "1") else own
        # "Dogs" are any number of them but one, "two dogs" may later be "the dogs".
        rivals = rivals & {"1"} if wanted.value == MANY else rivals
        return is_there, set() if is_there or not wanted.of else rivals
    if wanted.kind == "colour":
        is_there = wanted.value in own | bound.get((wanted.kind, ""), set())
        return is_there, set() if is_there or not wanted.of else own
    return wanted.value in named, set() if wanted.value in named else named


def _camera_verdict(
    value: str, named: set[str], required: Sequence[Mention], lexicon: Lexicon
) -> tuple[bool, set[str]]:
    """A move with any direction keeps the bare move; its rivals contradict unless the user named
    them as well."""
    wished = {item.value for item in required if item.kind == "camera"}
    is_there = value in named or any(name.startswith(f"{value} ") for name in named)
    moves = {name for name in named if name != lexicon.still and name not in lexicon.framings}
    if value == lexicon.still:
        return is_there, moves - wished
    lines = [line for line in lexicon.rivals if value in line]
    rivals = {name for line in lines for name in line & named if name != value}
    if not is_there and value not in lexicon.framings:
        rivals |= {lexicon.still} & named
    return is_there, rivals - wished


def _is_tiny_world(facts: Mapping[str, str]) -> bool:
    return set(facts) == set(ATTRIBUTES) and all(
        facts[key] in values for key, values in ATTRIBUTES.items()
    )


def _of_facts(facts: Mapping[str, str], lexicon: Lexicon) -> tuple[Mention, ...]:
    """Return all facts of a tiny-world caption, in the words of the lexicon."""
    thing = lexicon.objects.get(facts["object"], facts["object"])
    camera = facts["camera"].replace("pans ", "pan ")
    return (
        Mention(kind="object", value=thing),
        Mention(kind="count", value="1", of=thing, is_insisted=False),
        Mention(kind="colour", value=facts["colour"], of=thing),
        Mention(kind="motion", value=facts["motion"]),
        Mention(kind="direction", value=facts["direction"]),
        Mention(kind="camera", value=camera),
    )
