"""The words of the tiny world: what a clip can show and the one sentence that says so.

A clip is named by its facts, a mapping with one value for each key of `ATTRIBUTES`. There are
540 combinations; a fifth of them is held out for good.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "object": ("ball", "box", "triangle"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple"),
    "motion": ("falls", "bounces", "rolls", "flies", "collides"),
    "direction": ("left", "right"),
    "camera": ("still", "pans left", "pans right"),
}
"""Every attribute and its values; `direction` is the horizontal sense of the first movement."""

HELDOUT_FRAC = 0.2
"""Share of the combinations that training never sees."""

_MOTION_WORDS: Mapping[str, str] = {
    "falls": "falls to the {direction}",
    "bounces": "bounces to the {direction}",
    "rolls": "rolls to the {direction}",
    "flies": "flies to the {direction}",
    "collides": "hits a wall on the {direction}",
}

_SLIDES = "slides to the {direction}"
"""How a box or a triangle moves along the ground; its fact is "rolls" as well."""

_CAMERA_WORDS: Mapping[str, str] = {
    "still": "the camera stays still",
    "pans left": "the camera pans left",
    "pans right": "the camera pans right",
}


def all_facts() -> tuple[Mapping[str, str], ...]:
    """Return every combination of attribute values, in a fixed order."""
    keys = tuple(ATTRIBUTES)
    return tuple(
        dict(zip(keys, values, strict=True)) for values in itertools.product(*ATTRIBUTES.values())
    )


def check_facts(facts: Mapping[str, str]) -> None:
    """Raise ValueError unless `facts` has exactly one known value for each attribute."""
    if set(facts) != set(ATTRIBUTES):
        raise ValueError(
            f"tiny world facts: wrong keys: expected {sorted(ATTRIBUTES)}, got {sorted(facts)}. "
            "Give one value for each."
        )
    for key, values in ATTRIBUTES.items():
        if facts[key] not in values:
            raise ValueError(
                f"tiny world facts: unknown {key}: expected one of {', '.join(values)}, "
                f"got {facts[key]!r}. Use a value of grammar.ATTRIBUTES."
            )


def caption(facts: Mapping[str, str]) -> str:
    """Return the sentence of the facts, e.g. "a red ball falls to the left while ..."."""
    check_facts(facts)
    article = "an" if facts["colour"][0] in "aeiou" else "a"
    slides = facts["motion"] == "rolls" and facts["object"] != "ball"
    words = _SLIDES if slides else _MOTION_WORDS[facts["motion"]]
    motion = words.format(direction=facts["direction"])
    camera = _CAMERA_WORDS[facts["camera"]]
    return f"{article} {facts['colour']} {facts['object']} {motion} while {camera}"


@lru_cache(maxsize=1)
def _facts_by_caption() -> Mapping[str, Mapping[str, str]]:
    return {caption(facts): facts for facts in all_facts()}


def parse(text: str) -> Mapping[str, str] | None:
    """Return the facts whose caption is `text` (case, spaces and a full stop aside), or None."""
    words = " ".join(text.lower().split()).removesuffix(".")
    facts = _facts_by_caption().get(words)
    return None if facts is None else dict(facts)


def split_of(facts: Mapping[str, str]) -> Literal["train", "heldout"]:
    """Return the fixed split of the facts, by the blake2b digest of their values.

    Python's own `hash` differs between processes and would leak held-out facts into training.
    """
    check_facts(facts)
    key = "/".join(facts[name] for name in ATTRIBUTES)
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") < HELDOUT_FRAC * 2**64 else "train"
