"""Clips of several objects, and of things that happen one after the other.

Each object has the exact physics of `render_clip`, on a background and a camera they share. They do
not touch each other: they pass in front of one another, as at different distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world.draw import draw_all
from rlvid.data.tiny_world.scene import Scene, sample_scene
from rlvid.data.tiny_world.simulate import Track, in_view, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """One object of a clip."""

    facts: Mapping[str, str]
    """As for `render_clip`; `camera` is the same for all actors of a clip."""
    seed: int
    delay: int = 0
    """Frames before its motion begins: it waits where it starts, held in the air if need be."""
    later_colour: str = ""
    """Colour it takes on in mid clip; "" keeps the one of the facts."""
    change_frame: int = 0
    """First frame of the later colour."""
    enters: bool = False
    """Not seen while it waits: it appears, and moves from there."""

    @property
    def name(self) -> str:
        return f"{self.facts['colour']} {self.facts['object']}"


def actor_track(actor: Actor, *, num_frames: int = 17, fps: float = 8) -> tuple[Track, Scene]:
    """Return the exact motion of an actor, its delay included, and its scene."""
    scene = sample_scene(actor.facts, actor.seed)
    track = simulate(scene, num_frames, fps)
    if not actor.delay:
        return track, scene
    moment = np.maximum(np.arange(num_frames) - actor.delay, 0)
    positions, velocities = track.positions[moment], track.velocities[moment]
    velocities[: actor.delay] = 0.0
    visible = in_view(positions, track.camera_offset, scene)
    if actor.enters:
        visible &= np.arange(num_frames) >= actor.delay
    delayed = replace(
        track,
        positions=positions,
        velocities=velocities,
        angles=track.angles[moment],
        ground_contact=track.ground_contact[moment],
        wall_contact=track.wall_contact[moment],
        visible=visible,
    )
    return delayed, scene


def render_ensemble(
    actors: Sequence[Actor],
    *,
    num_frames: int = 17,
    height: int = 32,
    width: int = 32,
    fps: float = 8,
) -> Tensor:
    """Return a clip of the actors, [T, 3, H, W] float32 in [0, 1], later ones in front.

    One actor without delay or later colour gives the pixels of `render_clip`.
    """
    cameras = {actor.facts["camera"] for actor in actors}
    if len(cameras) != 1:
        raise ValueError(
            f"render_ensemble: expected actors with one camera, got {sorted(cameras)}. "
            "A clip has one camera: give every actor the same value."
        )
    drawn: list[tuple[Track, Scene]] = []
    for actor in actors:
        track, scene = actor_track(actor, num_frames=num_frames, fps=fps)
        drawn += _coats(actor, track, scene)
    frames = draw_all(drawn, height, width)
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255.0).contiguous()


def _coats(actor: Actor, track: Track, scene: Scene) -> list[tuple[Track, Scene]]:
    """Return the actor once for each colour it has, each seen in its own frames only."""
    if not actor.later_colour:
        return [(track, scene)]
    later = np.arange(track.num_frames) >= actor.change_frame
    repainted = replace(scene, facts={**scene.facts, "colour": actor.later_colour})
    return [
        (replace(track, visible=track.visible & ~later), scene),
        (replace(track, visible=track.visible & later), repainted),
    ]


def all_seen(actors: Sequence[Actor], *, num_frames: int = 17, fps: float = 8) -> bool:
    """Return whether each actor stands clear of every other in at least a third of the frames."""
    tracks = [actor_track(actor, num_frames=num_frames, fps=fps) for actor in actors]
    for i, (track, scene) in enumerate(tracks):
        clear = track.visible.copy()
        for j, (other, other_scene) in enumerate(tracks):
            if i != j:
                gap = np.abs(track.positions - other.positions)
                wide = gap[:, 0] > 0.8 * (scene.half_width + other_scene.half_width)
                high = gap[:, 1] > 0.8 * (scene.half_height + other_scene.half_height)
                clear &= wide | high
        if clear.sum() * 3 < num_frames:
            return False
    return True
