"""Measures a clip of the tiny world: where its one coloured object is and how the camera pans.

Used by the critics; knows of the world only that the object is its single saturated thing and
that the background holds still. Lengths are in world pixels (the height of a clip is 32 of them),
so that clips of any size compare. Letters: T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from rlvid.data.tiny_world.scene import WORLD_SIZE

Floats = npt.NDArray[np.float64]
Frames = npt.NDArray[np.float32]

CHROMA_FLOOR = 0.08
"""Largest max - min of RGB in the background; the drawn one reaches 0.05."""
FULL_CHROMA = 0.35
"""Chroma at which the object counts as seen for sure; the palest of the world has 0.51."""
MAX_PAN = 6.0
"""World px searched on both sides of the middle frame; a pan over a clip goes 4 each way. Beyond 5
the ground's stripes repeat, only the posts tell then."""
PAN_STEP = 0.25
"""World px between tried shifts; a parabola refines the best one."""
MAX_ELEMENTS = 1 << 20
"""Of one temporary array of the search for the pan."""

MAX_ROWS = 128
"""Larger clips are reduced to that: four pixels for every world px are enough to track by."""
NEIGHBOURS = np.ones((3, 3), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedClip:
    """What was measured in one clip."""

    centre: Floats
    """[T, 2] x, y in the image; where nothing is seen, interpolated between its neighbours."""
    area: Floats
    """[T] world px^2, 0 where nothing is seen."""
    base: float
    """From the centroid down to the object's lowest edge, world px: the median over the frames."""
    confidence: Floats
    """[T] in [0, 1]: how saturated and how large the found object is."""
    colours: Floats
    """[T, 3] RGB in [0, 1] of the object's inside; mid grey where nothing is seen."""
    coverage: Frames
    """[T, H, W] soft mask of the object."""
    pan: Floats
    """[T] camera offset relative to the middle frame, positive when it went right."""

    @property
    def world(self) -> Floats:
        """[T, 2] where the object is in the world: the image position plus the pan."""
        shift = np.stack([self.pan, np.zeros_like(self.pan)], axis=1)
        return np.asarray(self.centre + shift, dtype=np.float64)

    @property
    def is_seen(self) -> bool:
        """Whether two frames at least show an object, which any statement of motion needs."""
        return int((self.confidence > 0.1).sum()) >= 2


def to_frames(video: Tensor) -> Frames:
    """[T, 3, H, W] float in [0, 1] -> contiguous numpy [T, H, W, 3] float32."""
    frames = video.detach().cpu().float().permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(np.clip(frames, 0.0, 1.0))


def reduced(frames: Frames) -> Frames:
    """[T, H, W, 3] with MAX_ROWS rows at most: edges carry sub-pixel positions at that size too."""
    height, width = frames.shape[1:3]
    if height <= MAX_ROWS:
        return frames
    size = (round(width * MAX_ROWS / height), MAX_ROWS)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def track(frames: Frames) -> TrackedClip:
    """Find the object and the pan in [T, H, W, 3]; `coverage` is that of the reduced frames."""
    frames = reduced(frames)
    scale = WORLD_SIZE / frames.shape[1]
    saturated, full = saturation(frames)
    coverage = np.stack([_largest_part(image) for image in saturated])
    mass = coverage.sum(axis=(1, 2))
    centre = _centres(coverage, mass) * scale
    seen = (full - CHROMA_FLOOR) / (FULL_CHROMA - CHROMA_FLOOR)
    confidence = np.clip(seen, 0.0, 1.0) * np.clip(mass * scale**2 / 10.0, 0.0, 1.0)
    return TrackedClip(
        centre=_fill_gaps(centre, confidence > 0.05),
        area=mass.astype(np.float64) * scale**2,
        base=_base(coverage, centre[:, 1] / scale) * scale,
        confidence=confidence.astype(np.float64),
        colours=_colours(frames, coverage),
        coverage=coverage.astype(np.float32),
        pan=camera_pan(frames, coverage),
    )


def object_look(frames: Frames) -> tuple[Floats, Floats]:
    """Return area [T], world px^2, and colours [T, 3], for a critic that needs no more."""
    scale = WORLD_SIZE / frames.shape[1]
    saturated, _ = saturation(frames)
    coverage = np.stack([_largest_part(image) for image in saturated])
    area = coverage.sum(axis=(1, 2), dtype=np.float64) * scale**2
    return np.asarray(area, dtype=np.float64), _colours(frames, coverage)


def _colours(frames: Frames, coverage: Frames) -> Floats:
    """[T, 3]; the fourth power leaves out the edges, which are mixed with the background."""
    square = coverage * coverage
    weight = (square * square).reshape(len(frames), 1, -1)
    mass = weight.sum(axis=2)
    mean = (weight @ frames.reshape(len(frames), -1, 3))[:, 0] / np.maximum(mass, 1e-6)
    return np.where(mass > 0.1, mean, 0.5).astype(np.float64)


def saturation(frames: Frames) -> tuple[Frames, Floats]:
    """Return how much of each pixel is object, [T, H, W] in [0, 1], and `_full_chroma` [T].

    At an edge chroma is mixed with the pale background in proportion to the area covered, so it
    is a sub-pixel measure once it is divided by the object's own.
    """
    red, green, blue = (np.ascontiguousarray(frames[..., channel]) for channel in range(3))
    highest = np.maximum(np.maximum(red, green), blue)
    chroma = highest - np.minimum(np.minimum(red, green), blue)
    full = _full_chroma(chroma)
    level = max(float(np.median(full)), CHROMA_FLOOR + 0.05)
    share = np.clip((chroma - CHROMA_FLOOR) / (level - CHROMA_FLOOR), 0.0, 1.0)
    return np.asarray(share, dtype=np.float32), full


def _full_chroma(chroma: Frames) -> Floats:
    """[T] mean chroma of the most saturated fiftieth of each frame, about half the object."""
    flat = chroma.reshape(len(chroma), -1)
    count = max(1, flat.shape[1] // 50)
    return np.asarray(np.partition(flat, -count, axis=1)[:, -count:].mean(axis=1), dtype=np.float64)


def _largest_part(image: Frames) -> Frames:
    """Keep the connected saturated part with the largest mass, its soft edge included."""
    count, labels = cv2.connectedComponents((image > 0.35).astype(np.uint8), connectivity=4)
    if count < 2:
        return np.zeros_like(image)
    masses = np.bincount(labels.ravel(), weights=image.ravel(), minlength=count)
    masses[0] = 0.0
    part = (labels == int(masses.argmax())).astype(np.uint8)
    return np.asarray(image * cv2.dilate(part, NEIGHBOURS), dtype=np.float32)


def _centres(coverage: Frames, mass: Frames) -> Floats:
    """[T, 2] centroid in pixels, counted from the left and top edge of the image."""
    height, width = coverage.shape[1:]
    safe = np.maximum(mass, 1e-6)
    x = (coverage.sum(axis=1) * (np.arange(width) + 0.5)).sum(axis=1) / safe
    y = (coverage.sum(axis=2) * (np.arange(height) + 0.5)).sum(axis=1) / safe
    return np.stack([x, y], axis=1).astype(np.float64)


def _fill_gaps(centre: Floats, seen: npt.NDArray[np.bool_]) -> Floats:
    """Interpolate the centres of frames that show nothing; the middle when none does."""
    if not seen.any():
        return np.full_like(centre, WORLD_SIZE / 2)
    frames = np.arange(len(centre))
    filled = [np.interp(frames, frames[seen], centre[seen, axis]) for axis in (0, 1)]
    return np.stack(filled, axis=1)


def _base(coverage: Frames, centre_y: Floats) -> float:
    """Median distance from the centroid to the lowest edge, pixels; soft rows count in part."""
    rows = np.arange(coverage.shape[1])
    below = np.clip(rows[None, :] + 1.0 - centre_y[:, None], 0.0, 1.0)
    extent = (coverage.max(axis=2) * below).sum(axis=1)
    seen = extent[extent > 0]
    return float(np.median(seen)) if len(seen) else 0.0


def camera_pan(frames: Frames, coverage: Frames) -> Floats:
    """Return [T] world px the camera went right of the middle frame, by matching backgrounds.

    Every frame is compared with the middle one shifted by s, leaving out the object of both:
    the s of the least mean squared difference is the pan. All frames against one, because
    errors of frame-to-frame shifts would add up.
    """
    scale = WORLD_SIZE / frames.shape[1]
    grey = cv2.transform(frames.reshape(1, -1, 3), np.full((1, 3), 1 / 3)).reshape(coverage.shape)
    free = np.stack([1 - cv2.dilate(c, NEIGHBOURS) for c in (coverage > 0.1).astype(np.uint8)])
    count = round(MAX_PAN / PAN_STEP)
    shifts = np.arange(-count, count + 1).astype(np.float64) * PAN_STEP
    errors = _shifted_errors(grey.astype(np.float64), free.astype(np.float64), shifts / scale)
    return np.array([_refined_minimum(row, shifts) for row in errors])


def _shifted_errors(grey: Floats, free: Floats, shifts: Floats) -> Floats:
    """[T, S] mean squared difference to the middle frame seen `shifts` [S] pixels further right.

    With w [T, H, W] where a frame is free, m_s where the shifted middle is, and M_s its picture:
    sum w m_s (g - M_s)^2 = (w g^2) m_s - 2 (w g) (m_s M_s) + w (m_s M_s^2), three products of
    matrices over the pixels. In float64, since the terms are far larger than their sum.
    """
    num_frames, height, width = grey.shape
    middle = num_frames // 2
    whole = np.floor(shifts).astype(np.intp)
    part = (shifts - whole)[:, None, None]
    near = np.arange(width) + whole[:, None]
    inside = ((near >= 0) & (near + 1 < width))[..., None]
    near, far = np.clip(near, 0, width - 1), np.clip(near + 1, 0, width - 1)
    total, weight = np.zeros((2, num_frames, len(shifts)))
    # A band of rows at a time bounds the memory of large clips.
    rows = max(1, MAX_ELEMENTS // (width * len(shifts)))
    for top in range(0, height, rows):
        # Columns first: what is gathered by column then lies in one piece.
        light, here = (x[:, top : top + rows].swapaxes(1, 2).copy() for x in (grey, free))
        there, mask = light[middle], inside * np.minimum(here[middle][near], here[middle][far])
        masked = (1 - part) * there[near] + part * there[far]
        square = mask * masked**2
        masked *= mask
        seen = here * light
        flat = [x.reshape(len(x), -1) for x in (seen * light, seen, here, mask, masked, square)]
        total += flat[0] @ flat[3].T - 2.0 * (flat[1] @ flat[4].T) + flat[2] @ flat[5].T
        weight += flat[2] @ flat[3].T
    return np.asarray(total / np.maximum(weight, 1.0), dtype=np.float64)


def _refined_minimum(errors: Floats, shifts: Floats) -> float:
    """The shift of the least error, moved to the vertex of the parabola through its neighbours."""
    best = int(errors.argmin())
    if best in (0, len(shifts) - 1):
        return float(shifts[best])
    before, at, after = errors[best - 1 : best + 2]
    bend = before - 2 * at + after
    offset = 0.5 * (before - after) / bend if bend > 0 else 0.0
    return float(shifts[best] + offset * (shifts[1] - shifts[0]))
