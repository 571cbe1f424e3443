"""Adherence to a caption of the tiny world, measured rather than judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world import track_of
from rlvid.data.tiny_world.draw import COLOURS
from rlvid.data.tiny_world.grammar import ATTRIBUTES, check_facts, parse
from rlvid.data.tiny_world.scene import (
    GROUND_Y,
    PAN_SPEED,
    WORLD_SIZE,
    sample_scene,
)
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics.tracking import Floats, Frames, TrackedClip, to_frames, track

PANS: Mapping[str, float] = {"still": 0.0, "pans left": -PAN_SPEED, "pans right": PAN_SPEED}
EXAMPLES_PER_MOTION = 16
"""Simulated examples that stand for one motion; their seeds are far from any training clip's."""
EXAMPLE_SEED = 7_000_000
CANVAS = 48
"""Side of the picture in which outlines are averaged, in quarters of a world pixel."""
HARMONICS: Mapping[str, tuple[float, float]] = {
    "ball": (0.0, 0.0),
    "box": (0.0, 0.377),
    "triangle": (0.6, 0.0),
}
"""Three- and fourfold harmonic of each drawn shape, see `outline_harmonics`."""


class AdherenceCritic:
    """How well a clip shows what its caption says, in [0, 1].

    The mean of five parts: `colour` (hue of the object), `object` (how three-cornered and how
    square its outline is), `motion` (the path against simulated examples of every motion),
    `direction` (the same, left against right) and `camera` (pan of the background). Each part is
    half nearness to what was asked and half preference over the other values, so it is
    informative both far from the goal and near it.

    Sees: wrong colour, object, direction, motion and camera.
    Blind to: physics beyond the kind of motion, a second object, the background, flicker.
    Weak where a model's decoder rounds off corners: a blurred box measures as a ball.
    Gamed by: a picture that is saturated only where it helps; any texture that pans will do for
    the camera.
    """

    CLAIMS = ("wrong_colour", "wrong_object", "wrong_direction", "wrong_motion", "wrong_camera")
    """Breakages of the tiny world that it must tell from true clips."""
    BLIND_TO = (
        "physics beyond the kind of motion",
        "a second object, the background, flicker",
        "corners that a decoder rounds off: a blurred box measures as a ball",
    )

    WORKING_BYTES = 113.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        fps: int = 8
        """Frames a second of the clips; speeds depend on it."""

    def __init__(self, config: Config) -> None:
        self._fps = config.fps
        self.clip_spec = ClipSpec(fps=config.fps, min_frames=5)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] and B captions of the tiny world -> [B] float32.

        Raises:
            ValueError: a prompt outside the tiny world.
        """
        pairs = zip(videos, prompts, strict=True)
        return torch.tensor(
            [self.parts(track(to_frames(v)), facts_of(p))["adherence"] for v, p in pairs]
        )

    def parts(self, clip: TrackedClip, facts: Mapping[str, str]) -> Mapping[str, float]:
        """Return the score "adherence" and its five parts, named as the facts."""
        parts = {"camera": camera_score(clip, facts["camera"], self._fps)}
        if clip.is_seen:
            motion, direction = path_scores(clip, facts, self._fps)
            sight = float(clip.confidence.mean())
            parts |= {
                "colour": sight * colour_score(clip, facts["colour"]),
                "object": sight * object_score(clip, facts["object"]),
                "motion": sight * motion,
                "direction": sight * direction,
            }
        named = {name: parts.get(name, 0.0) for name in ATTRIBUTES}
        return {"adherence": float(np.mean(list(named.values()))), **named}


def facts_of(prompt: Prompt) -> Mapping[str, str]:
    """Return the facts of a prompt, from its record or its text."""
    facts = prompt.facts or parse(prompt.text)
    if not facts:
        raise ValueError(
            f"adherence: {prompt.text!r} is not a caption of the tiny world. Use prompts of the "
            "tiny world, give `facts` with the prompt, or use another scorer."
        )
    check_facts(facts)
    return facts


def _graded(distance: Mapping[str, float], wanted: str, *, near: float, width: float) -> float:
    """Half exp(-distance / near), half the wanted value's softmax over -distance / width."""
    least = min(distance.values())
    weight = {name: float(np.exp(-(d - least) / width)) for name, d in distance.items()}
    preference = weight[wanted] / sum(weight.values())
    return 0.5 * float(np.exp(-distance[wanted] / near)) + 0.5 * preference


def colour_score(clip: TrackedClip, wanted: str) -> float:
    """Compare hues, in degrees on the colour circle, frame by frame.

    The hue of the mean colour would not do: an object that turns from green to red averages to a
    brown of no certain hue.
    """
    scores = []
    for colour in clip.colours:
        hue = _hue(colour)
        distance = {}
        for name, rgb in COLOURS.items():
            apart = abs(hue - _hue(np.array(rgb) / 255.0)) % 360.0
            distance[name] = min(apart, 360.0 - apart)
        scores.append(_graded(distance, wanted, near=40.0, width=6.0))
    return float(np.average(scores, weights=clip.confidence))


def _hue(rgb: Floats) -> float:
    """Angle of the colour in the plane across the grey axis, degrees."""
    red, green, blue = (float(value) for value in rgb)
    return float(np.degrees(np.arctan2(np.sqrt(3.0) * (green - blue), 2 * red - green - blue)))


def object_score(clip: TrackedClip, wanted: str) -> float:
    """Compare harmonics of the outline, each in units of the shape that has it.

    Blur shrinks both towards the ball's (0, 0) and leaves their ratio, so a blurred triangle still
    scores above a blurred box; templates of sharp shapes told them apart less well.
    """
    three, four = outline_harmonics(mean_outline(clip))
    size_three, size_four = HARMONICS["triangle"][0], HARMONICS["box"][1]
    distance = {
        name: float(np.hypot((three - to_three) / size_three, (four - to_four) / size_four))
        for name, (to_three, to_four) in HARMONICS.items()
    }
    return _graded(distance, wanted, near=0.8, width=0.3)


def outline_harmonics(outline: Frames) -> tuple[float, float]:
    """Return how three-cornered (a corner on top) and how square a picture [CANVAS, CANVAS] is.

    With x to the right and y up from the centroid, r^2 = x^2 + y^2 and angle a from the x axis:
    -<r^3 sin 3a> / <r^3> and -<r^4 cos 4a> / <r^4>, both 0 for a disc; they do not depend on size.
    """
    rows, columns = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float64)
    mass = outline / max(float(outline.sum()), 1e-6)
    x, y = columns - float((mass * columns).sum()), float((mass * rows).sum()) - rows
    square = x**2 + y**2
    three = (mass * (y**3 - 3 * x**2 * y)).sum() / max((mass * square**1.5).sum(), 1e-6)
    four = -(mass * (x**4 + y**4 - 6 * x**2 * y**2)).sum() / max((mass * square**2).sum(), 1e-6)
    return float(three), float(four)


def mean_outline(clip: TrackedClip) -> Frames:
    """Average the coverage of all frames, centroids together, on the CANVAS."""
    pixels = clip.coverage.shape[1] / WORLD_SIZE
    zoom = 4.0 / pixels
    total = np.zeros((CANVAS, CANVAS), dtype=np.float64)
    for coverage, (x, y), sight in zip(clip.coverage, clip.centre, clip.confidence, strict=True):
        # cv2 counts from pixel centres, the centroid from pixel edges: half a pixel apart.
        move_x = CANVAS / 2 - 0.5 - zoom * (x * pixels - 0.5)
        move_y = CANVAS / 2 - 0.5 - zoom * (y * pixels - 0.5)
        matrix = np.array([[zoom, 0.0, move_x], [0.0, zoom, move_y]])
        total += sight * cv2.warpAffine(coverage, matrix, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR)
    return np.asarray(total / max(float(clip.confidence.sum()), 1e-6), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Examples:
    """Simulated paths to the right: [N, T] heights above rest and centred x, and their motions."""

    heights: Floats
    paths: Floats
    motions: tuple[str, ...]


@lru_cache(maxsize=8)
def _examples(num_frames: int, fps: int) -> _Examples:
    heights, paths, motions = [], [], []
    for motion in ATTRIBUTES["motion"]:
        facts = {"object": "ball", "colour": "red", "camera": "still"}
        facts |= {"motion": motion, "direction": "right"}
        for seed in range(EXAMPLE_SEED, EXAMPLE_SEED + EXAMPLES_PER_MOTION):
            true = track_of(facts, seed, num_frames=num_frames, fps=fps)
            heights.append(sample_scene(facts, seed).rest_y - true.positions[:, 1])
            paths.append(true.positions[:, 0] - true.positions[:, 0].mean())
            motions.append(motion)
    return _Examples(heights=np.array(heights), paths=np.array(paths), motions=tuple(motions))


def path_scores(clip: TrackedClip, facts: Mapping[str, str], fps: int) -> tuple[float, float]:
    """Return the scores of motion and direction: distances to the nearest simulated examples."""
    examples = _examples(len(clip.area), fps)
    heights = GROUND_Y - clip.base - clip.world[:, 1]
    path = clip.world[:, 0] - clip.world[:, 0].mean()
    high = np.abs(examples.heights - heights).mean(axis=1)
    apart = {
        "right": np.hypot(high, np.abs(examples.paths - path).mean(axis=1)),
        "left": np.hypot(high, np.abs(examples.paths + path).mean(axis=1)),
    }
    either = np.minimum(apart["left"], apart["right"])
    names = np.array(examples.motions)
    by_motion = {name: float(either[names == name].min()) for name in ATTRIBUTES["motion"]}
    by_direction = {name: float(distance.min()) for name, distance in apart.items()}
    motion = _graded(by_motion, facts["motion"], near=4.0, width=0.7)
    return motion, _graded(by_direction, facts["direction"], near=4.0, width=0.7)


def camera_score(clip: TrackedClip, wanted: str, fps: int) -> float:
    """Compare the speed of the pan, world px / s, with that of each camera."""
    times = np.arange(len(clip.pan)) / fps
    speed = float(np.polyfit(times, clip.pan, 1)[0])
    distance = {name: abs(speed - pan) for name, pan in PANS.items()}
    return _graded(distance, wanted, near=4.0, width=0.7)
