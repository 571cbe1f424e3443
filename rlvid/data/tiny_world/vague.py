"""The wishes of the tiny world as a user may write them: other words, another order, no sentence.

A video model that was trained on captions knows few of these words. They say all that is wanted
but for a camera that stays still, so what a clip of them should show is as well known as that of a
caption. No such text is a caption.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlvid.data.tiny_world.grammar import ATTRIBUTES, check_facts
from rlvid.seeds import derive_seed

WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "object": {
        "ball": ("ball", "sphere", "orb"),
        "box": ("box", "cube", "crate"),
        "triangle": ("triangle", "pyramid"),
    },
    "colour": {
        "red": ("red", "crimson", "scarlet"),
        "orange": ("orange",),
        "yellow": ("yellow",),
        "green": ("green", "emerald"),
        "blue": ("blue", "azure", "navy"),
        "purple": ("purple", "violet"),
    },
    "motion": {
        "falls": ("falling", "dropping"),
        "bounces": ("bouncing", "rebounding"),
        "rolls": ("rolling", "sliding", "gliding"),
        "flies": ("flying", "soaring"),
        "collides": ("hitting a wall", "crashing into a wall"),
    },
    "direction": {"left": ("left", "leftwards"), "right": ("right", "rightwards")},
    "camera": {
        "still": ("",),
        "pans left": (", camera panning left", ", pan left"),
        "pans right": (", camera panning right", ", pan right"),
    },
}
"""Attribute to value to ways of saying it; all are in the lexicon `english` as well."""
FORMS = (
    "{colour} {object}, {motion}, {direction}{camera}",
    "{object} in {colour}, {motion} {direction}{camera}",
    "{motion} {direction}: {colour} {object}{camera}",
    "something {colour}: {object} {motion} {direction}{camera}",
)


def vague_text(facts: Mapping[str, str], variant: int = 0) -> str:
    """Return the facts in a user's words, the same ones for the same variant, e.g. "crimson orb,
    falling, left". Different facts have different texts.

    Raises:
        ValueError: as `check_facts`.
    """
    check_facts(facts)
    key = "/".join(facts[name] for name in ATTRIBUTES)

    def choose(options: tuple[str, ...], what: str) -> str:
        return options[derive_seed(variant, "vague", key, what) % len(options)]

    said = {name: choose(words[facts[name]], name) for name, words in WORDS.items()}
    return choose(FORMS, "form").format(**said)
