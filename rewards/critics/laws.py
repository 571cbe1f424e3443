"""Six laws of motion, each measured on followed objects by itself, 1 kept and towards 0 broken.

Lengths in world px, y down, times in seconds, masses are areas. Letters: T frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rlvid.rewards.critics.objects import Box, Flags, ObjectClip, ObjectTrack
from rlvid.rewards.critics.tracking import Floats

LIFT = 1.0
"""World px above the ground from which an object counts as flying."""
TOUCH = 1.2
"""World px between two objects that count as touching, besides what they move in a frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the laws need to know of where the clip plays."""

    fps: float
    gravity: float
    """World px / s^2."""
    ground_y: float | None
    """World px; None takes the lowest point that any object reaches."""


def ground_of(clip: ObjectClip, world: World) -> float:
    """World px of the ground's surface."""
    if world.ground_y is not None:
        return world.ground_y
    lows = [float(np.nanmax(track.bottom)) for track in clip.tracks]
    return max(lows)


def permanence(clip: ObjectClip, world: World) -> float:
    """Share of the frames in which each object is there or has left across an edge, squared.

    Weighted by area, so that a late speck costs less than a late object. Frames in which another
    object is in front count as there.
    """
    shares, weights = [], []
    for index, track in enumerate(clip.tracks):
        absent = ~track.present & ~track.leaves & ~_hidden(clip, index)
        size = np.where(track.present & ~track.cut, track.area / track.usual_area, 1.0)
        # A fifth less is turning, or an edge that lies between pixels.
        size = np.where(_near_others(clip, index), 1.0, np.clip(size / 0.8, 0.0, 1.0))
        shares.append(float(np.where(absent, 0.0, size).mean()))
        weights.append(track.usual_area)
    return float(np.average(shares, weights=weights)) ** 2


def _hidden(clip: ObjectClip, index: int) -> Flags:
    """[T] the object's own place, interpolated, is covered by another object."""
    track = clip.tracks[index]
    seen = np.flatnonzero(track.present)
    frames = np.arange(clip.num_frames)
    between = (frames > seen[0]) & (frames < seen[-1])
    x = np.interp(frames, seen, track.x[seen])
    hidden = np.zeros(clip.num_frames, dtype=np.bool_)
    for other in clip.tracks[:index] + clip.tracks[index + 1 :]:
        with np.errstate(invalid="ignore"):
            hidden |= np.abs(other.x - x) < other.half_width
    return np.asarray(hidden & between & ~track.present)


def _near_others(clip: ObjectClip, index: int) -> Flags:
    """[T] within TOUCH of another object, where its outline cannot be trusted."""
    near = np.zeros(clip.num_frames, dtype=np.bool_)
    for other in clip.tracks[:index] + clip.tracks[index + 1 :]:
        with np.errstate(invalid="ignore"):
            near |= _gap(clip.tracks[index], other) < TOUCH
    return near


def _gap(first: ObjectTrack, second: ObjectTrack) -> Floats:
    """[T] free space between the bounding boxes, negative where they overlap."""
    across = np.abs(first.x - second.x) - first.half_width - second.half_width
    along = np.abs(first.y - second.y) - first.half_height - second.half_height
    return np.maximum(across, along)


def unity(clip: ObjectClip, world: World) -> float:
    """0.3 for every object that comes out of another or goes into one."""
    events = 0
    for index, track in enumerate(clip.tracks):
        seen = np.flatnonzero(track.present)
        for at, gone in ((int(seen[0]), int(seen[0]) - 1), (int(seen[-1]), int(seen[-1]) + 1)):
            if 0 <= gone < clip.num_frames and not track.leaves[gone]:
                events += _touches_one_that_changes(clip, index, at, gone)
    return float(0.3**events)


def _touches_one_that_changes(clip: ObjectClip, index: int, at: int, gone: int) -> bool:
    """Whether the area of a neighbour changes by much of the object's own when it comes or goes.

    Medians of three frames on both sides: while two outlines join, one frame may show either.
    """
    track = clip.tracks[index]
    step = gone - at
    inner = [n for n in range(at, at - 4 * step, -step) if 0 <= n < clip.num_frames]
    outer = [n for n in range(gone, gone + 3 * step, step) if 0 <= n < clip.num_frames]
    own = _median(track.area[inner])
    for other in clip.tracks[:index] + clip.tracks[index + 1 :]:
        if other.cut[outer].any():
            continue
        reach = 1.3 * (track.half_width + other.half_width) + 2.0
        apart = np.abs(track.x[inner] - other.x[inner])
        growth = _median(other.area[outer]) - _median(other.area[inner])
        if (apart < reach).any() and growth > 0.35 * own:
            return True
    return False


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def identity(clip: ObjectClip, world: World) -> float:
    """exp(-spread of colour / 0.12), times 0.4 for every change to another colour."""
    values, weights = [], []
    for index, track in enumerate(clip.tracks):
        clean = track.present & ~track.cut & ~_near_others(clip, index)
        used = clean if clean.sum() >= 2 else track.present
        spread = float(track.colours[used].std(axis=0).mean())
        values.append(float(np.exp(-spread / 0.12)) * 0.4 ** len(track.recolours))
        weights.append(track.usual_area)
    return float(np.average(values, weights=weights))


def gravity(clip: ObjectClip, world: World) -> float:
    """exp(-|a - g| / 0.35 g), a by parabolas through every free flight; 1 without any."""
    total, weight = 0.0, 0.0
    for acceleration, num_frames in flights(clip, world):
        apart = abs(acceleration - world.gravity) / world.gravity
        total += num_frames * float(np.exp(-apart / 0.35))
        weight += num_frames
    return total / weight if weight else 1.0


def flights(clip: ObjectClip, world: World) -> Iterator[tuple[float, int]]:
    """Yield (downward acceleration, frames) of every stretch of free flight of four frames."""
    ground = ground_of(clip, world)
    impulse = 2.0 * world.gravity / world.fps**2
    for index, track in enumerate(clip.tracks):
        bend = np.full(clip.num_frames, np.nan)
        bend[1:-1] = track.y[:-2] - 2 * track.y[1:-1] + track.y[2:]
        with np.errstate(invalid="ignore"):
            flying = track.present & (ground - track.bottom > LIFT) & ~track.cut_above
            flying &= ~(bend < -impulse) & ~_near_others(clip, index)
        for start, stop in _stretches(flying):
            if stop - start >= 4:
                times = np.arange(stop - start) / world.fps
                bent = float(np.polyfit(times, track.y[start:stop], 2)[0])
                yield 2 * bent, stop - start


def _stretches(flags: Flags) -> list[tuple[int, int]]:
    """Return (start, stop) of every run of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def energy(clip: ObjectClip, world: World) -> float:
    """Falls with the largest rise of mechanical energy, m (v^2 / 2 + g h), after its least.

    Of each object that has not touched another, and of all together. Frames of a contact, where
    the speed is between two values, are left out.
    """
    series = [_energy_of(clip, index, world) for index in range(len(clip.tracks))]
    masses = np.array([track.usual_area for track in clip.tracks])
    rises = [_rise((masses[:, None] * np.stack(series)).sum(axis=0) / masses.sum())]
    touched = {n for pair in contacts(clip, world) for n in pair[:2]}
    rises += [_rise(values) for n, values in enumerate(series) if n not in touched]
    for one, two, frame in contacts(clip, world):
        rises.append(_gain_at_contact(clip.tracks[one], clip.tracks[two], frame, world))
    return float(np.exp(-max(0.0, max(rises) - 0.15) / 0.2))


def _energy_of(clip: ObjectClip, index: int, world: World) -> Floats:
    """[T] of unit mass, px^2 / s^2; NaN at contacts and where the object is not wholly seen."""
    track = clip.tracks[index]
    height = np.maximum(ground_of(clip, world) - track.y - track.half_height, 0.0)
    values = np.full(clip.num_frames, np.nan)
    across = (track.x[2:] - track.x[:-2]) * world.fps / 2
    along = (track.y[2:] - track.y[:-2]) * world.fps / 2
    values[1:-1] = (across**2 + along**2) / 2 + world.gravity * height[1:-1]
    steps_x, steps_y = np.diff(track.x), np.diff(track.y)
    fall = world.gravity / world.fps**2
    sharp = (np.abs(np.diff(steps_x)) > 0.6) | (np.abs(np.diff(steps_y)) > fall + 0.5)
    values[1:-1][sharp] = np.nan
    values[track.cut] = np.nan
    return values


def _rise(values: Floats) -> float:
    """Largest rise after the least so far, over the median and what 9 px / s are worth."""
    known = values[np.isfinite(values)]
    if len(known) < 4:
        return 0.0
    smooth = np.median(np.stack([known[:-2], known[1:-1], known[2:]]), axis=0)
    rise = float((smooth - np.minimum.accumulate(smooth)).max())
    return rise / (float(np.median(known)) + 40.0)


def _gain_at_contact(first: ObjectTrack, second: ObjectTrack, frame: int, world: World) -> float:
    """Rise of the sideways energy of both over what came in; 0 when either moves up or down."""
    before = after = mass = 0.0
    for track in (first, second):
        if float(np.ptp(track.y[max(0, frame - 2) : frame + 3])) > 0.5:
            return 0.0
        speed_in, speed_out = _speeds(track, frame, world)
        before += track.usual_area * speed_in**2 / 2
        after += track.usual_area * speed_out**2 / 2
        mass += track.usual_area
    gain = (after - before) / (before + 5.0 * mass)
    return gain if np.isfinite(gain) else 0.0


def contacts(clip: ObjectClip, world: World) -> Iterator[tuple[int, int, int]]:
    """Yield (first, second, frame) where two objects are nearest and touch."""
    for one, two in combinations(range(len(clip.tracks)), 2):
        first, second = clip.tracks[one], clip.tracks[two]
        gap = _gap(first, second)
        if not np.isfinite(gap).any():
            continue
        frame = int(np.nanargmin(gap))
        closing = abs(float(np.nanmax(np.abs(np.diff(gap)), initial=0.0)))
        if gap[frame] < TOUCH + min(closing, 2.0) / 2:
            yield one, two, frame


def momentum(clip: ObjectClip, world: World) -> float:
    """Sideways momentum: constant where nothing touches, and the sum constant where two meet.

    A jump, in whatever direction, is a speed from nowhere and back.
    """
    worst = [_unforced(clip, index, world) for index in range(len(clip.tracks))]
    worst += [_jump(track) for track in clip.tracks]
    for one, two, frame in contacts(clip, world):
        worst.append(_exchange(clip.tracks[one], clip.tracks[two], frame, world))
    return float(np.exp(-max(worst, default=0.0)))


def _unforced(clip: ObjectClip, index: int, world: World) -> float:
    """Largest change of sideways speed in a stretch without contact, in units of tolerance."""
    track = clip.tracks[index]
    free = track.present & ~_near_others(clip, index) & ~_near_obstacles(clip, track, world)
    worst = 0.0
    for start, stop in _stretches(free):
        if stop - start < 4:
            continue
        x = track.x[start:stop]
        times = np.arange(stop - start) / world.fps
        change = abs(2 * float(np.polyfit(times, x, 2)[0])) * float(times[-1])
        jump = float(np.abs(np.diff(x, n=2)).max())
        speed = abs(float(np.polyfit(times, x, 1)[0]))
        worst = max(worst, max(0.0, change - 2.0) / (3.0 + 0.5 * speed), max(0.0, jump - 1.0) / 1.5)
    return worst


def _jump(track: ObjectTrack) -> float:
    """Longest step beyond those before and after it, in units of tolerance; bounces have none."""
    steps = np.hypot(np.diff(track.x), np.diff(track.y))
    steps[track.cut_above[1:] | track.cut_above[:-1]] = np.nan
    padded = np.concatenate([[np.nan], steps, [np.nan]])
    beside = np.fmax(padded[:-2], padded[2:])
    excess = steps - 1.3 * np.where(np.isfinite(beside), beside, steps) - 2.0
    return max(0.0, float(np.nanmax(excess, initial=0.0))) / 1.5


def _near_obstacles(clip: ObjectClip, track: ObjectTrack, world: World) -> Flags:
    """[T] so near to an obstacle that it may have been touched since the last frame."""
    near = np.zeros(clip.num_frames, dtype=np.bool_)
    step = float(np.nanmax(np.abs(np.diff(track.x)), initial=0.0))
    for box in clip.obstacles:
        middle, half = (box.left + box.right) / 2, (box.right - box.left) / 2
        with np.errstate(invalid="ignore"):
            near |= np.abs(track.x - middle) - half - track.half_width < TOUCH + step
    return near


def _exchange(first: ObjectTrack, second: ObjectTrack, frame: int, world: World) -> float:
    """|change of the sum of momenta| over what came in, beyond a slack, in units of tolerance."""
    before = after = incoming = 0.0
    for track in (first, second):
        speed_in, speed_out = _speeds(track, frame, world)
        before += track.usual_area * speed_in
        after += track.usual_area * speed_out
        incoming += track.usual_area * max(abs(speed_in), 2.0)
    change = abs(after - before) / incoming
    return max(0.0, change - 0.2) / 0.3 if np.isfinite(change) else 0.0


def _speeds(track: ObjectTrack, frame: int, world: World) -> tuple[float, float]:
    """Sideways speed over up to five frames before and after a contact; NaN where unseen."""
    sides = (range(frame - 1, frame - 6, -1), range(frame + 1, frame + 6))
    speeds = []
    for side in sides:
        seen = [n for n in side if 0 <= n < len(track.x) and np.isfinite(track.x[n])]
        fit = (
            np.polyfit(np.array(seen) / world.fps, track.x[seen], 1) if len(seen) > 1 else [np.nan]
        )
        speeds.append(float(fit[0]))
    return speeds[0], speeds[1]


def solidity(clip: ObjectClip, world: World) -> float:
    """exp(-(depth - 0.8) / 0.8), the depth of objects in the ground, obstacles and each other.

    Two frames have to show it, since one may catch a contact between two pixels.
    """
    ground = ground_of(clip, world)
    depths = [0.0]
    for index, track in enumerate(clip.tracks):
        with np.errstate(invalid="ignore"):
            into = np.where(track.top > 0.5, track.top + 2 * track.half_height - ground, 0.0)
            depths.append(_second_largest(np.where(_near_others(clip, index), 0.0, into)))
        depths += [_second_largest(_depth_in(track, box)) for box in clip.obstacles]
    for first, second in combinations(clip.tracks, 2):
        depths.append(_pair_depth(first, second))
    return float(np.exp(-max(0.0, max(depths) - 0.8) / 0.8))


def _second_largest(values: Floats) -> float:
    known = np.sort(values[np.isfinite(values)])
    return float(known[-2]) if len(known) > 1 else 0.0


def _depth_in(track: ObjectTrack, box: Box) -> Floats:
    """[T] how far the object's outline reaches into an obstacle."""
    right = np.minimum(track.x + track.half_width, box.right)
    across = right - np.maximum(track.x - track.half_width, box.left)
    along = track.y + track.half_height - box.top
    return np.asarray(np.minimum(across, along), dtype=np.float64)


def _pair_depth(first: ObjectTrack, second: ObjectTrack) -> float:
    """How far two objects overlap; the smaller one's width when they have changed sides."""
    level = np.abs(first.y - second.y) < 0.7 * (first.half_height + second.half_height)
    side = np.where(first.present & second.present & level, np.sign(first.x - second.x), 0.0)
    shown = side[side != 0]
    if len(shown) > 1 and (np.diff(shown) != 0).any():
        return 2 * min(first.half_width, second.half_width)
    overlap = first.half_width + second.half_width - np.abs(first.x - second.x)
    return _second_largest(np.where(level, overlap, np.nan))
