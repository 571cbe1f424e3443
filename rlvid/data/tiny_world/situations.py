"""What a clip that is asked about shows: drawn at random, with every truth on record.

Three families: one object, true or broken; one to three objects at once, to be counted; and two
events in an order, two objects that appear or two colours of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from torch import Tensor

from rlvid.data.tiny_world import breakages_for, render_clip
from rlvid.data.tiny_world.ensemble import Actor, all_seen, render_ensemble
from rlvid.data.tiny_world.grammar import ATTRIBUTES, all_facts, split_of
from rlvid.seeds import derive_seed

Family = Literal["single", "count", "order"]

FAMILIES: Mapping[Family, float] = {"single": 0.6, "count": 0.2, "order": 0.2}
"""Share of each family."""
BROKEN_FRAC = 0.5
"""Of the single clips, so that yes and no are as frequent for physics."""
FLAWS: Mapping[str, str] = {
    "reversed_gravity": "it falls up",
    "teleport": "it jumps",
    "vanish": "it vanishes",
    "energy_gain": "it gains energy",
    "hover": "it hovers",
    "flicker": "the light flickers",
    "shake": "the picture shakes",
    "warp": "the picture warps",
    "shuffle": "the frames are shuffled",
    "freeze_and_jump": "the video freezes",
    "appear": "it appears",
    "through_wall": "it goes through the wall",
    "sink": "it sinks",
    "split": "it splits",
    "merge": "it merges",
    "colour_swap": "it changes colour",
}
"""Breakages that clips are drawn with, each with the words for it. Named one by one: a judge knows
those it was taught, whatever breakages are added later."""
SEVERAL_MOTIONS = ("falls", "bounces", "rolls", "flies")
"""Motions of clips with several objects: none needs a wall, which the others would run into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One clip and all that is true of it."""

    family: Family
    actors: tuple[Actor, ...]
    breakage: str = ""
    """A name of `FLAWS`; "" for a clip that is as it should be."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Facts of the first actor."""
        return self.actors[0].facts

    @property
    def first_seen(self) -> Actor:
        """The actor that appears first, of a clip of two events."""
        return min(self.actors, key=lambda actor: actor.delay)


def draw_situation(
    seed: int, split: Literal["train", "heldout"], *, family: Family | None = None
) -> Situation:
    """Return the situation of the seed; every object's facts are of the split."""
    rng = np.random.default_rng(derive_seed(seed, "situation", split, family or "any"))
    chosen = family or str(rng.choice(list(FAMILIES), p=list(FAMILIES.values())))
    if chosen == "single":
        return _single(rng, split)
    return _several(rng, split) if chosen == "count" else _ordered(rng, split)


def render_situation(
    situation: Situation,
    *,
    num_frames: int = 17,
    height: int = 32,
    width: int = 32,
    fps: float = 8,
) -> Tensor:
    """Return its clip, [T, 3, H, W] float32 in [0, 1]."""
    if situation.breakage:
        actor = situation.actors[0]
        return render_clip(
            actor.facts,
            actor.seed,
            num_frames=num_frames,
            height=height,
            width=width,
            fps=fps,
            breakage=situation.breakage,
        )
    return render_ensemble(
        situation.actors, num_frames=num_frames, height=height, width=width, fps=fps
    )


@lru_cache(maxsize=32)
def _facts_of(
    split: str, *, motions: tuple[str, ...] = ATTRIBUTES["motion"], camera: str = ""
) -> tuple[Mapping[str, str], ...]:
    return tuple(
        facts
        for facts in all_facts()
        if split_of(facts) == split
        and facts["motion"] in motions
        and camera in ("", facts["camera"])
    )


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**40))


def _pick(rng: np.random.Generator, choices: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    return choices[int(rng.integers(len(choices)))]


def _single(rng: np.random.Generator, split: str) -> Situation:
    facts = _pick(rng, _facts_of(split))
    actor = Actor(facts=facts, seed=_seed(rng))
    breakage = ""
    if rng.random() < BROKEN_FRAC:
        breakage = str(rng.choice([name for name in breakages_for(facts) if name in FLAWS]))
    return Situation(family="single", actors=(actor,), breakage=breakage)


def _several(rng: np.random.Generator, split: str) -> Situation:
    count = int(rng.integers(1, 4))
    return Situation(family="count", actors=_actors(rng, split, [0] * count))


def _ordered(rng: np.random.Generator, split: str) -> Situation:
    if rng.random() < 0.25:
        facts = _pick(rng, _facts_of(split))
        others = [colour for colour in ATTRIBUTES["colour"] if colour != facts["colour"]]
        later, frame = str(rng.choice(others)), int(rng.integers(5, 12))
        actor = Actor(facts=facts, seed=_seed(rng), later_colour=later, change_frame=frame)
        return Situation(family="order", actors=(actor,))
    # Which of two objects starts to move first was asked before: at 32 x 32 pixels one often covers
    # the other while it waits, a fall starts by less than a pixel, and the camera moves both.
    early = int(rng.integers(0, 3))
    delays = [early, early + int(rng.integers(5, 9))]
    rng.shuffle(delays)
    return Situation(family="order", actors=_actors(rng, split, delays, enter=True))


def _actors(
    rng: np.random.Generator, split: str, delays: Sequence[int], *, enter: bool = False
) -> tuple[Actor, ...]:
    """Draw actors of different colours, until all of them can be seen.

    Each is named by its colour and shape, so the name of one never means another.
    """
    cameras = ATTRIBUTES["camera"]
    camera = str(rng.choice(cameras, p=[0.6, 0.2, 0.2]))
    choices = _facts_of(split, motions=SEVERAL_MOTIONS, camera=camera)
    while True:
        actors = tuple(
            Actor(facts=_pick(rng, choices), seed=_seed(rng), delay=delay, enters=enter)
            for delay in delays
        )
        distinct = len({actor.facts["colour"] for actor in actors}) == len(actors)
        if distinct and (len(actors) == 1 or all_seen(actors)):
            return actors
