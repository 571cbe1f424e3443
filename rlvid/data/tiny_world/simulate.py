"""The motion of a scene under rigid-body physics; the one place that imports pymunk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pymunk

from rlvid.data.tiny_world.scene import (
    GROUND_Y,
    WALL_HALF_WIDTH,
    WALL_HEIGHT,
    WORLD_SIZE,
    Scene,
)

SUBSTEPS = 32
"""Physics steps a frame."""

_OBJECT, _GROUND, _WALL = 1, 2, 3
"""Collision types."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """What happened in a clip of T frames, in world pixels (see `scene`)."""

    positions: Floats
    """[T, 2] centre of the object's bounding box."""
    velocities: Floats
    """[T, 2] px / s."""
    angles: Floats
    """[T] radians, positive is clockwise on the screen."""
    camera_offset: Floats
    """[T] world x of the left edge of the view; screen x = world x - offset."""
    ground_contact: Flags
    """[T] touched the ground at this frame or since the one before."""
    wall_contact: Flags
    """[T] the same for the wall."""
    visible: Flags
    """[T] drawn, and at least partly inside the view."""

    @property
    def num_frames(self) -> int:
        return int(self.positions.shape[0])

    @property
    def screen_positions(self) -> Floats:
        """[T, 2] where the object is in the 32 px view."""
        shift = np.stack([self.camera_offset, np.zeros_like(self.camera_offset)], axis=1)
        return self.positions - shift


def object_outline(scene: Scene) -> list[tuple[float, float]]:
    """Return the corners of a box or triangle about its centre, clockwise on the screen."""
    wide, high = scene.half_width, scene.half_height
    if scene.facts["object"] == "triangle":
        return [(0.0, -high), (wide, high), (-wide, high)]
    return [(-wide, -high), (wide, -high), (wide, high), (-wide, high)]


def camera_path(scene: Scene, num_frames: int, fps: float) -> Floats:
    """Return the [T] camera offset: a steady pan whose middle is the still camera's view."""
    time = np.arange(num_frames, dtype=np.float64) / fps
    offset: Floats = scene.camera_speed * (time - time[-1] / 2)
    return offset


def in_view(positions: Floats, camera_offset: Floats, scene: Scene) -> Flags:
    """Return [T]: is any of the object's box inside the 32 px view?"""
    x, y = positions[:, 0] - camera_offset, positions[:, 1]
    inside_x = (x > -scene.half_width) & (x < WORLD_SIZE + scene.half_width)
    return np.asarray(inside_x & (y > -scene.half_height) & (y < WORLD_SIZE + scene.half_height))


class _Contacts:
    """Which surfaces the object touches, kept by pymunk's callbacks."""

    def __init__(self, space: pymunk.Space, surface: int) -> None:
        self.touching = 0
        self.touched = False
        space.on_collision(_OBJECT, surface, begin=self._begin, separate=self._separate)

    def _begin(self, arbiter: pymunk.Arbiter, space: pymunk.Space, data: object) -> None:
        self.touching += 1
        self.touched = True

    def _separate(self, arbiter: pymunk.Arbiter, space: pymunk.Space, data: object) -> None:
        self.touching -= 1

    def read(self) -> bool:
        """Return whether there was contact since the last read."""
        seen = self.touched or self.touching > 0
        self.touched = False
        return seen


def _add_object(space: pymunk.Space, scene: Scene) -> pymunk.Body:
    """Add the moving object, of mass 1. Boxes and triangles do not turn: one thing to learn."""
    if scene.facts["object"] == "ball":
        body = pymunk.Body(1.0, pymunk.moment_for_circle(1.0, 0.0, scene.half_height))
        shape: pymunk.Shape = pymunk.Circle(body, scene.half_height)
        if scene.facts["motion"] == "rolls":
            body.angular_velocity = scene.velocity[0] / scene.half_height
    else:
        body = pymunk.Body(1.0, math.inf)
        shape = pymunk.Poly(body, object_outline(scene))
    body.position = scene.position
    shape.elasticity = 1.0
    shape.friction = 1.0
    shape.collision_type = _OBJECT
    space.add(body, shape)
    return body


def _add_surfaces(space: pymunk.Space, scene: Scene) -> None:
    """Add ground and wall; pymunk multiplies restitution and friction of the two that touch."""
    depth = 40.0
    ground = pymunk.Segment(
        space.static_body, (-500.0, GROUND_Y + depth), (500.0, GROUND_Y + depth), depth
    )
    ground.elasticity = scene.ground_restitution
    ground.friction = scene.friction
    ground.collision_type = _GROUND
    space.add(ground)
    if scene.wall_x is not None:
        left, right = scene.wall_x - WALL_HALF_WIDTH, scene.wall_x + WALL_HALF_WIDTH
        top, bottom = GROUND_Y - WALL_HEIGHT, GROUND_Y + depth
        wall = pymunk.Poly(
            space.static_body, [(left, top), (right, top), (right, bottom), (left, bottom)]
        )
        wall.elasticity = scene.wall_restitution
        wall.friction = 0.0
        wall.collision_type = _WALL
        space.add(wall)


def simulate(scene: Scene, num_frames: int, fps: float) -> Track:
    """Return the track of `num_frames` frames, the first at time 0.

    pymunk moves by the velocity and then adds gravity to it. Started half a substep ahead, at
    v + g dt / 2, that is the leapfrog scheme: in free flight the positions are exactly
    x + v t + g t^2 / 2 at every frame, whatever dt.
    """
    if num_frames < 1 or fps <= 0:
        raise ValueError(
            f"simulate: num_frames and fps must be positive, got {num_frames} and {fps}. "
            "A clip has at least one frame."
        )
    space = pymunk.Space()
    space.gravity = (0.0, scene.gravity)
    space.collision_slop = 0.01
    body = _add_object(space, scene)
    _add_surfaces(space, scene)
    ground, wall = _Contacts(space, _GROUND), _Contacts(space, _WALL)
    dt = 1.0 / (fps * SUBSTEPS)
    half_kick = scene.gravity * dt / 2
    body.velocity = (scene.velocity[0], scene.velocity[1] + half_kick)
    positions = np.empty((num_frames, 2))
    velocities = np.empty((num_frames, 2))
    angles = np.empty(num_frames)
    touches = np.zeros((2, num_frames), dtype=np.bool_)
    positions[0], velocities[0], angles[0] = scene.position, scene.velocity, body.angle
    touches[0, 0] = scene.position[1] >= scene.rest_y - space.collision_slop
    for frame in range(1, num_frames):
        for _ in range(SUBSTEPS):
            space.step(dt)
        positions[frame], angles[frame] = body.position, body.angle
        # On the ground the solver has taken the half kick away already.
        kick = 0.0 if ground.touching else half_kick
        velocities[frame] = body.velocity.x, body.velocity.y - kick
        touches[:, frame] = ground.read(), wall.read()
    camera = camera_path(scene, num_frames, fps)
    return Track(
        positions=positions,
        velocities=velocities,
        angles=angles,
        camera_offset=camera,
        ground_contact=touches[0],
        wall_contact=touches[1],
        visible=in_view(positions, camera, scene),
    )
