"""From a track to pixels; the one place of the tiny world that imports cv2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from rlvid.data.tiny_world.scene import (
    GROUND_Y,
    WALL_HALF_WIDTH,
    WALL_HEIGHT,
    WORLD_SIZE,
    Scene,
)
from rlvid.data.tiny_world.simulate import Track, object_outline

Image = npt.NDArray[np.uint8]
Rgb = tuple[int, int, int]

COLOURS: Mapping[str, Rgb] = {
    "red": (220, 30, 40),
    "orange": (250, 130, 10),
    "yellow": (245, 225, 30),
    "green": (30, 160, 60),
    "blue": (35, 80, 220),
    "purple": (150, 40, 190),
}
"""The only saturated colours of the world; a checker may find the object by saturation."""
SKY: Rgb = (226, 232, 238)
GROUND: tuple[Rgb, Rgb] = (144, 140, 136), (104, 100, 96)
MARK: Rgb = (186, 192, 198)
WALL: Rgb = (66, 68, 72)

STRIPE_WIDTH = 5.0
"""px; two stripes are longer than a pan, so its length cannot be mistaken for a whole period."""
MARKS: tuple[tuple[float, float, float], ...] = (
    (-9.0, 13.0, 2.5),
    (-1.0, 18.0, 2.0),
    (5.0, 9.0, 3.0),
    (12.0, 20.0, 2.0),
    (17.5, 12.0, 2.5),
    (25.0, 17.0, 3.0),
    (31.0, 8.0, 2.0),
    (38.0, 15.0, 2.5),
)
"""Background posts: (left edge, top, width), world px; uneven, so that a pan can be measured."""

SUPERSAMPLE = 4
_SHIFT = 6
"""Fractional bits of cv2 coordinates."""


def _fixed(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Return world-scaled points in cv2's fixed-point numbers; cv2 counts pixel centres."""
    return np.rint((points - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _box(image: Image, scale: float, box: tuple[float, float, float, float], colour: Rgb) -> None:
    """Fill (left, top, right, bottom), in world px from the left edge of the strip."""
    left, top, right, bottom = (round(value * scale) for value in box)
    image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = colour


@lru_cache(maxsize=8)
def _background(height: int, width: int, margin: int) -> tuple[Image, float]:
    """Return the supersampled strip that a camera slides over, and world x of its left edge.

    `margin` is how many world px it shows on both sides of the still camera's view.
    """
    scale = SUPERSAMPLE * height / WORLD_SIZE
    view = width * SUPERSAMPLE / scale
    left = WORLD_SIZE / 2 - view / 2 - margin
    span = view + 2 * margin
    strip = np.empty((height * SUPERSAMPLE, round(span * scale), 3), dtype=np.uint8)
    strip[:] = SKY
    for mark_left, top, mark_width in MARKS:
        x = mark_left - left
        _box(strip, scale, (x, top, x + mark_width, GROUND_Y), MARK)
    first = int(np.floor(left / STRIPE_WIDTH))
    for index in range(first, first + int(span / STRIPE_WIDTH) + 2):
        x = index * STRIPE_WIDTH - left
        _box(strip, scale, (x, GROUND_Y, x + STRIPE_WIDTH, WORLD_SIZE), GROUND[index % 2])
    strip.flags.writeable = False
    return strip, left


def _draw_object(image: Image, scale: float, centre: tuple[float, float], scene: Scene) -> None:
    colour = COLOURS[scene.facts["colour"]]
    if scene.facts["object"] == "ball":
        x, y = _fixed(np.array(centre) * scale)
        radius = round(scene.half_height * scale * (1 << _SHIFT))
        cv2.circle(image, (int(x), int(y)), radius, colour, -1, cv2.LINE_AA, _SHIFT)
    else:
        corners = (np.array(object_outline(scene)) + np.array(centre)) * scale
        cv2.fillPoly(image, [_fixed(corners)], colour, cv2.LINE_AA, _SHIFT)


def draw(track: Track, scene: Scene, height: int, width: int) -> Image:
    """Return the clip as uint8 [T, H, W, 3] RGB.

    The world is scaled so that 32 px fill the height; a wider clip shows more of it on both
    sides. Drawn four times as large and averaged down, so edges carry sub-pixel positions; the
    camera moves in steps of a quarter of a pixel.
    """
    return draw_all([(track, scene)], height, width)


def draw_all(actors: Sequence[tuple[Track, Scene]], height: int, width: int) -> Image:
    """Return a clip of several objects as uint8 [T, H, W, 3] RGB, later ones in front.

    The camera is that of the first track; walls are behind all objects.
    """
    if height < 1 or width < height:
        raise ValueError(
            f"tiny world clip size: width must be at least height, got {height}x{width}. "
            "The object's path needs a view as wide as it is high."
        )
    camera = actors[0][0].camera_offset
    margin = int(np.ceil(np.abs(camera).max())) + 1
    strip, strip_left = _background(height, width, margin)
    scale = SUPERSAMPLE * height / WORLD_SIZE
    view_left = WORLD_SIZE / 2 - width * SUPERSAMPLE / scale / 2
    frames = np.empty((len(camera), height, width, 3), dtype=np.uint8)
    for index, offset in enumerate(camera):
        column = round((view_left + float(offset) - strip_left) * scale)
        canvas = strip[:, column : column + width * SUPERSAMPLE].copy()
        left = column / scale + strip_left
        for _, scene in actors:
            _draw_wall(canvas, scale, left, scene)
        for track, scene in actors:
            if track.visible[index]:
                x, y = track.positions[index]
                _draw_object(canvas, scale, (float(x) - left, float(y)), scene)
        frames[index] = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return frames


def _draw_wall(canvas: Image, scale: float, left: float, scene: Scene) -> None:
    if scene.wall_x is not None:
        x = scene.wall_x - left
        top = GROUND_Y - WALL_HEIGHT
        _box(canvas, scale, (x - WALL_HALF_WIDTH, top, x + WALL_HALF_WIDTH, GROUND_Y), WALL)
