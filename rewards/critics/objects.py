"""Follows every object of a clip from frame to frame, through touching, hiding and changing colour.

Lengths are in world px (the height of a clip is 32 of them). Letters: T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from rlvid.data.tiny_world.scene import GROUND_Y, WORLD_SIZE
from rlvid.rewards.critics.blobs import Blob, Segmentation, find_blobs
from rlvid.rewards.critics.global_motion import camera_offsets
from rlvid.rewards.critics.tracking import Floats, Frames, camera_pan, reduced, saturation

Flags = npt.NDArray[np.bool_]

MAX_STEP = 20.0
"""World px between two frames beyond which it is another object."""
RECOLOUR_REACH = 4.0
"""World px within which an object of another colour may be the same one."""
RECOLOUR_COST = 3.0
"""World px that a change of colour weighs when objects are matched."""
MAX_OBJECTS = 6
"""A frame; more blobs than that are noise, and the largest are kept."""
MIN_SHARE = 0.04
"""Area over all frames, in shares of the largest object's, below which an object is noise."""
BORDER = 0.35
"""World px from the edge of the view at which an object counts as cut off."""
DARK = 0.33
"""Luma below which a background pixel is an obstacle; the drawn ground has 0.40, a wall 0.26."""
MIN_OBSTACLE = 15.0
"""World px^2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """An obstacle that does not move, world px."""

    left: float
    right: float
    top: float
    bottom: float


@dataclass(slots=True)
class _Path:
    """An object while it is being followed."""

    blobs: list[Blob | None]
    last: Blob
    velocity: tuple[float, float] = (0.0, 0.0)
    recolours: list[int] = field(default_factory=list)

    def distance(self, blob: Blob) -> float:
        """Distance from where it was or from where it was going, whichever is less.

        At a bounce it is near neither, but nearer to where it was.
        """
        ahead = blob.frame - self.last.frame
        dx, dy = blob.x - self.last.x, blob.y - self.last.y
        along = np.hypot(dx - ahead * self.velocity[0], dy - ahead * self.velocity[1])
        return float(min(np.hypot(dx, dy), along))

    def take(self, blob: Blob) -> None:
        ahead = blob.frame - self.last.frame
        self.velocity = ((blob.x - self.last.x) / ahead, (blob.y - self.last.y) / ahead)
        if blob.hue_class != self.last.hue_class:
            self.recolours.append(blob.frame)
        self.blobs += [None] * (blob.frame - len(self.blobs)) + [blob]
        self.last = blob


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectTrack:
    """One object through a clip; NaN where it is not seen."""

    present: Flags
    """[T]."""
    x: Floats
    """[T] centre in the world (image plus pan); where an edge of the view cuts the object, from
    its other side and its usual width."""
    y: Floats
    """[T]."""
    top: Floats
    bottom: Floats
    """[T] edges as seen."""
    area: Floats
    """[T]."""
    colours: Floats
    """[T, 3]."""
    half_width: float
    half_height: float
    usual_area: float
    """Medians over the frames in which it is wholly in view; the area is its mass."""
    cut: Flags
    """[T] an edge of the view cuts it."""
    cut_above: Flags
    """[T] the upper or lower edge does, so that `y` is not its centre."""
    leaves: Flags
    """[T] absent, but by leaving the view or not having come into it yet."""
    recolours: tuple[int, ...]
    """Frames at which it took another colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectClip:
    """The objects of a clip, the largest first, and what they move in."""

    tracks: tuple[ObjectTrack, ...]
    obstacles: tuple[Box, ...]
    pan: Floats
    """[T] world px, see `tracking.camera_pan`."""
    num_frames: int


def follow_objects(frames: Frames, segmentation: Segmentation = "colour") -> ObjectClip:
    """Find and follow all objects of [T, H, W, 3]."""
    frames = reduced(frames)
    if segmentation == "colour":
        pan = camera_pan(frames, saturation(frames)[0])
    else:
        # What is an object is known only once the pan is.
        pan = camera_offsets(frames) * WORLD_SIZE
    width = WORLD_SIZE * frames.shape[2] / frames.shape[1]
    blobs = find_blobs(frames, segmentation, pan)
    paths = _follow([found[:MAX_OBJECTS] for found in blobs])
    sizes = [sum(blob.area for blob in path.blobs if blob is not None) for path in paths]
    # A speck, or a blob of one frame, is noise and says nothing of motion.
    least = MIN_SHARE * max(sizes, default=0.0)
    kept = [
        path
        for path, size in zip(paths, sizes, strict=True)
        if size >= least and sum(blob is not None for blob in path.blobs) >= 2
    ]
    tracks = [_finished(path, pan, width, len(frames)) for path in kept]
    return ObjectClip(
        tracks=tuple(sorted(tracks, key=lambda t: -t.usual_area * float(t.present.sum()))),
        obstacles=_obstacles(frames, pan),
        pan=pan,
        num_frames=len(frames),
    )


def _follow(blobs: list[list[Blob]]) -> list[_Path]:
    paths: list[_Path] = []
    for frame, found in enumerate(blobs):
        costs = np.array([[_cost(path, blob) for blob in found] for path in paths])
        taken = _assign(costs.reshape(len(paths), len(found)))
        for path, chosen in zip(paths, taken, strict=True):
            if chosen is not None:
                path.take(found[chosen])
        for index in set(range(len(found))) - set(taken):
            start: list[Blob | None] = [None] * frame
            paths.append(_Path(blobs=[*start, found[index]], last=found[index]))
    return paths


def _cost(path: _Path, blob: Blob) -> float:
    """Of taking the blob for the next place of the object; infinite when it cannot be."""
    distance = path.distance(blob)
    if blob.hue_class == path.last.hue_class:
        # After a gap it may be anywhere: same colour is then reason enough.
        return distance if distance <= MAX_STEP * (blob.frame - path.last.frame) else np.inf
    is_next = blob.frame - path.last.frame == 1
    return distance + RECOLOUR_COST if is_next and distance <= RECOLOUR_REACH else np.inf


def _assign(costs: Floats) -> list[int | None]:
    """The cheapest matching of rows to columns; a row left out costs MAX_STEP."""
    rows, columns = costs.shape

    @cache
    def best(row: int, used: int) -> tuple[float, tuple[int | None, ...]]:
        if row == rows:
            return 0.0, ()
        rest, tail = best(row + 1, used)
        winner: tuple[float, tuple[int | None, ...]] = (rest + MAX_STEP, (None, *tail))
        for column in range(columns):
            if used & (1 << column) or not np.isfinite(costs[row, column]):
                continue
            rest, tail = best(row + 1, used | (1 << column))
            total = rest + float(costs[row, column])
            if total < winner[0]:
                winner = (total, (column, *tail))
        return winner

    return list(best(0, 0)[1])


def _finished(path: _Path, pan: Floats, width: float, num_frames: int) -> ObjectTrack:
    blobs = path.blobs + [None] * (num_frames - len(path.blobs))
    empty = np.full(10, np.nan)
    table = np.array([_numbers(b) if b is not None else empty for b in blobs])
    x, y, left, right, top, bottom, area = table[:, :7].T
    present = np.isfinite(x)
    with np.errstate(invalid="ignore"):
        cut_left, cut_right = left <= BORDER, right >= width - BORDER
        cut_above = (top <= BORDER) | (bottom >= WORLD_SIZE - BORDER)
    cut = cut_left | cut_right | cut_above
    whole = present & ~cut if (present & ~cut).any() else present
    half_width = float(np.median((right - left)[whole])) / 2
    half_height = float(np.median((bottom - top)[whole])) / 2
    x = np.where(cut_left, right - half_width, np.where(cut_right, left + half_width, x))
    return ObjectTrack(
        present=present,
        x=x + pan,
        y=y,
        top=top,
        bottom=bottom,
        area=area,
        colours=table[:, 7:],
        half_width=half_width,
        half_height=half_height,
        usual_area=float(np.median(area[whole])),
        cut=cut,
        cut_above=cut_above,
        leaves=_leaves(present, x, y, (half_width, half_height), width),
        recolours=tuple(path.recolours),
    )


def _numbers(blob: Blob) -> Floats:
    box = (blob.left, blob.right, blob.top, blob.bottom)
    return np.array([blob.x, blob.y, *box, blob.area, *blob.colour])


def _leaves(present: Flags, x: Floats, y: Floats, half: tuple[float, float], width: float) -> Flags:
    """[T] absences at the start or end that motion across the edge of the view explains."""
    seen = np.flatnonzero(present)
    first, last = int(seen[0]), int(seen[-1])
    result = np.zeros_like(present)
    for at, before in ((last, seen[seen < last]), (first, seen[seen > first])):
        near = int(before[np.abs(before - at).argmin()])
        steps = abs(at - near)
        ahead_x = x[at] + 1.3 * (x[at] - x[near]) / steps
        ahead_y = y[at] + 1.3 * (y[at] - y[near]) / steps
        crosses_x = min(ahead_x, x[at]) < half[0] * 0.5 or max(ahead_x, x[at]) > width - half[0] / 2
        crosses_y = ahead_y < half[1] * 0.5 or ahead_y > WORLD_SIZE - half[1] * 0.5
        if crosses_x or crosses_y:
            result[np.s_[at + 1 :] if at == last else np.s_[:at]] = True
    return result


def _obstacles(frames: Frames, pan: Floats) -> tuple[Box, ...]:
    """Dark blocks of the background that stand on the ground, world px."""
    scale = WORLD_SIZE / frames.shape[1]
    luma = np.asarray(frames @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32))
    grey = frames.max(axis=3) - frames.min(axis=3) < 0.15
    dark = (luma < DARK) & grey
    dark[:, round(GROUND_Y / scale) :] = False
    if dark.sum() * scale**2 < MIN_OBSTACLE * len(frames) / 4:
        return ()
    boxes = []
    # The frame with most of it in view tells its size best.
    best = int(dark.sum(axis=(1, 2)).argmax())
    count, _, stats, _ = cv2.connectedComponentsWithStats(dark[best].astype(np.uint8))
    for left, top, wide, high, area in stats[1:count]:
        if area * scale**2 >= MIN_OBSTACLE:
            boxes.append(
                Box(
                    left=float(left * scale + pan[best]),
                    right=float((left + wide) * scale + pan[best]),
                    top=float(top * scale),
                    bottom=float((top + high) * scale),
                )
            )
    return tuple(boxes)
