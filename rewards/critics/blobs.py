"""Cuts the frames of a clip into coloured or moving blobs, one colour class at a time.

Lengths are in world px (the height of a clip is 32 of them). Letters: T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from rlvid.data.tiny_world.scene import WORLD_SIZE
from rlvid.rewards.critics.tracking import CHROMA_FLOOR, NEIGHBOURS, Floats, Frames

Segmentation = Literal["colour", "background"]

CORE = 0.35
"""Coverage from which a pixel may join two parts of one object."""
SEEN_CHROMA = 0.2
"""Chroma from which a pixel says something of an object's hue."""
MIN_AREA = 4.0
"""World px^2 of the smallest object."""
MAX_VIEW_SHARE = 0.4
"""Of the view; what is larger is background, whose motion would obey any law."""
HUE_BINS = 72
MIN_HUE_SHARE = 0.04
"""Of all coverage, for a colour to be a class of its own."""
CLASS_WIDTH = 4
"""Bins on each side of a peak that belong to it at least."""
MOVED = 0.12
"""Largest difference of a channel from the background at which a pixel still is background."""


@dataclass(frozen=True, slots=True)
class Blob:
    """One connected part in one frame."""

    frame: int
    hue_class: int
    x: float
    y: float
    """Centroid in the image, world px."""
    left: float
    right: float
    top: float
    bottom: float
    """Edges in the image; soft pixels count in part."""
    area: float
    """World px^2."""
    colour: tuple[float, float, float]
    """RGB of its inside."""

    @property
    def half_width(self) -> float:
        return (self.right - self.left) / 2

    @property
    def half_height(self) -> float:
        return (self.bottom - self.top) / 2


def find_blobs(frames: Frames, segmentation: Segmentation, pan: Floats) -> list[list[Blob]]:
    """Return the blobs of each frame of [T, H, W, 3], large ones first.

    "colour" takes what is saturated, class by class of hue, so that touching objects of two
    colours stay two. "background" takes what differs from the median of the frames, aligned by
    `pan` [T], whatever its colour; objects that touch are then one.
    """
    if segmentation == "colour":
        coverage, classes = _by_hue(frames)
    else:
        coverage = _foreground(frames, pan)
        classes = np.zeros(coverage.shape, dtype=np.int8)
    scale = WORLD_SIZE / frames.shape[1]
    return [_blobs_of(n, frames[n], coverage[n], classes[n], scale) for n in range(len(frames))]


def _by_hue(frames: Frames) -> tuple[Frames, npt.NDArray[np.int8]]:
    """Return how much of each pixel is object, [T, H, W] in [0, 1], and its class of hue.

    Each class is divided by its own chroma: a pale object next to a vivid one would measure small.
    """
    chroma = frames.max(axis=3) - frames.min(axis=3)
    # Noise and tinted light give the background a chroma of its own.
    usual = float(np.median(chroma))
    floor, vivid = max(CHROMA_FLOOR, 1.5 * usual), chroma > max(SEEN_CHROMA, 2.0 * usual)
    classes = _hue_classes(frames, np.where(vivid, chroma, 0.0))
    level = np.ones(int(classes.max()) + 1)
    for index in range(len(level)):
        inside = chroma[vivid & (classes == index)]
        if len(inside):
            level[index] = max(float(np.quantile(inside, 0.7)), floor + 0.05)
    share = (chroma - floor) / (np.maximum(level, floor + 0.05)[classes] - floor)
    return np.clip(share, 0.0, 1.0).astype(np.float32), classes


def _hue_classes(frames: Frames, weight: Frames) -> npt.NDArray[np.int8]:
    """[T, H, W] index of the nearest hue that the clip has much of, by peaks of its histogram."""
    hue = cv2.cvtColor(frames.reshape(1, -1, 3), cv2.COLOR_RGB2HSV)[..., 0].reshape(weight.shape)
    bins = np.minimum((hue * (HUE_BINS / 360.0)).astype(np.intp), HUE_BINS - 1)
    mass = np.bincount(bins.ravel(), weights=weight.ravel(), minlength=HUE_BINS)
    smooth = (np.roll(mass, 1) + 2 * mass + np.roll(mass, -1)) / 4
    peaks: list[int] = []
    left = smooth.copy()
    while left.max() > MIN_HUE_SHARE * max(smooth.sum(), 1e-6):
        peaks.append(int(left.argmax()))
        apart = np.abs(np.arange(HUE_BINS) - peaks[-1])
        left[np.minimum(apart, HUE_BINS - apart) <= CLASS_WIDTH] = 0.0
    if not peaks:
        return np.zeros(weight.shape, dtype=np.int8)
    apart = np.abs(np.arange(HUE_BINS)[:, None] - np.array(peaks))
    nearest = np.minimum(apart, HUE_BINS - apart).argmin(axis=1).astype(np.int8)
    return np.asarray(nearest[bins], dtype=np.int8)


def _foreground(frames: Frames, pan: Floats) -> Frames:
    """[T, H, W] in [0, 1] how far each pixel is from the background that the camera pans over."""
    shift = pan * frames.shape[1] / WORLD_SIZE
    size = (frames.shape[2], frames.shape[1])
    aligned = np.stack([_shifted(frame, s, size) for frame, s in zip(frames, shift, strict=True)])
    background = np.median(aligned, axis=0).astype(np.float32)
    result = np.empty(frames.shape[:3], dtype=np.float32)
    for n, frame in enumerate(frames):
        behind = _shifted(background, -float(shift[n]), size)
        apart = np.abs(frame - behind).max(axis=2)
        result[n] = cv2.GaussianBlur(np.clip((apart - MOVED) / MOVED, 0.0, 1.0), (3, 3), 0.6)
    return result


def _shifted(image: Frames, right: float, size: tuple[int, int]) -> Frames:
    matrix = np.array([[1.0, 0.0, right], [0.0, 1.0, 0.0]])
    moved = cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.float32)


def _blobs_of(
    frame: int, image: Frames, coverage: Frames, classes: npt.NDArray[np.int8], scale: float
) -> list[Blob]:
    blobs = []
    core = coverage > CORE
    for hue_class in np.unique(classes[core]):
        inside = (core & (classes == hue_class)).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=4)
        for index in range(1, count):
            # The soft edge is one pixel wide; half of the pixels will do as a first sieve.
            size = stats[index, cv2.CC_STAT_AREA]
            if size * scale**2 < MIN_AREA / 2 or size > MAX_VIEW_SHARE * coverage.size:
                continue
            part = (labels == index).astype(np.uint8)
            soft = coverage * cv2.dilate(part, NEIGHBOURS)
            # An edge pixel next to another colour's core is the other's.
            soft[core & (classes != hue_class)] = 0.0
            blob = _measure(frame, int(hue_class), image, soft, scale)
            if blob.area >= MIN_AREA:
                blobs.append(blob)
    return sorted(blobs, key=lambda blob: -blob.area)


def _measure(frame: int, hue_class: int, image: Frames, soft: Frames, scale: float) -> Blob:
    mass = max(float(soft.sum()), 1e-6)
    columns, rows = soft.sum(axis=0), soft.sum(axis=1)
    x = float((columns * (np.arange(len(columns)) + 0.5)).sum()) / mass
    y = float((rows * (np.arange(len(rows)) + 0.5)).sum()) / mass
    left, right = _extent(soft.max(axis=0), x)
    top, bottom = _extent(soft.max(axis=1), y)
    core = soft**4
    colour = np.tensordot(core, image, axes=((0, 1), (0, 1))) / max(float(core.sum()), 1e-6)
    red, green, blue = (float(value) for value in colour)
    return Blob(
        frame=frame,
        hue_class=hue_class,
        x=x * scale,
        y=y * scale,
        left=left * scale,
        right=right * scale,
        top=top * scale,
        bottom=bottom * scale,
        area=mass * scale**2,
        colour=(red, green, blue),
    )


def _extent(profile: Frames, centre: float) -> tuple[float, float]:
    """Edges of a soft profile on both sides of its centre, in pixels."""
    edges = np.arange(len(profile))
    before = np.clip(centre - edges, 0.0, 1.0)
    low = centre - float((profile * before).sum())
    high = centre + float((profile * (1.0 - before)).sum())
    return low, high
