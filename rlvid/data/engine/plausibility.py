"""Whether a written prompt describes what could be filmed: who judges it, behind one type.

A language model's judgement is in `rlvid.launch.data_engine.llm_plausibility`, which knows servers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlvid.data.tiny_world.grammar import parse

Plausible = Callable[[Sequence[str]], Sequence[bool | None]]
"""Judges prompts, many at once; None for one on which no answer could be had."""


def take_all(texts: Sequence[str]) -> Sequence[bool]:
    """Judge nothing: every prompt passes."""
    return [True] * len(texts)


def in_tiny_world(texts: Sequence[str]) -> Sequence[bool]:
    """Take the captions of the tiny world; its model has seen no other sentence."""
    return [parse(text) is not None for text in texts]
