"""From any video to frames of the wanted rate and size, without holding the decoded video.

Letters: T frames of H x W.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
import numpy.typing as npt

from rlvid.config.intake import IntakeConfig
from rlvid.data.clips import ClipShape
from rlvid.data.intake.decode import Header, TimedFrame, Video, open_video
from rlvid.data.intake.drops import RefusedError

Image = npt.NDArray[np.uint8]

MIN_RATE_FRAC = 0.99
"""Of the wanted rate: 23.976 for 24 fps repeats a frame every 42 s, 15 for 16 one every second."""
MAX_ASPECT_CHANGE = 0.01
"""By which an aspect may differ where nothing is cropped; it is then stretched by as much."""
SPARE_FRAMES = 4
"""Beyond max_seconds: the last frame may begin at it and lasts a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """A whole source video at the wanted rate and size."""

    frames: Image
    """[T, H, W, 3] uint8 RGB."""
    height: int
    """px of the source as shown, before the crop."""
    width: int
    fps: float
    """Of the source, by its header."""
    seconds: float
    """Of the source, as decoded: to the end of its last frame."""


def normalise(data: bytes, shape: ClipShape, config: IntakeConfig) -> Footage:
    """Decode a file and return its frames at the fps and size of `shape`.

    Raises:
        RefusedError: a file that cannot be read to its end, or with a length, size, rate or aspect
            that the section does not take.
    """
    with open_video(data) as video:
        _check_header(video.header, shape, config)
        reader = _Reader(video, config.max_seconds)
        fps = Fraction(shape.fps).limit_denominator(1001)
        most = math.ceil(config.max_seconds * shape.fps) + SPARE_FRAMES
        frames = np.empty((most, shape.height, shape.width, 3), dtype=np.uint8)
        count = 0
        last: TimedFrame | None = None
        for frame in resample(reader.frames(), fps, video.header.fps):
            if frame is last:
                frames[count] = frames[count - 1]
            else:
                image = frame.rgb()
                if last is None:
                    _check_size(image, config)
                    height, width = image.shape[:2]
                frames[count] = fit(image, shape, config, video.header.sample_aspect)
            last = frame
            count += 1
    _check_length(reader, count, shape, config)
    return Footage(
        frames=frames[:count],
        height=height,
        width=width,
        fps=float(video.header.fps),
        seconds=reader.seconds,
    )


def _check_length(
    reader: _Reader, num_resampled: int, shape: ClipShape, config: IntakeConfig
) -> None:
    if reader.num_frames == 1:
        raise RefusedError("one_frame", "expected a video, got a single frame")
    if reader.seconds < config.min_seconds or num_resampled < shape.num_frames:
        raise RefusedError(
            "too_short",
            f"expected {config.min_seconds:g} s or more and {shape.num_frames} frames at "
            f"{shape.fps:g} fps, got {reader.seconds:.3f} s and {num_resampled} frames",
        )


class _Reader:
    """Counts what it hands on, and stops a video that is longer than it may be."""

    def __init__(self, video: Video, max_seconds: float) -> None:
        self._video = video
        self._max_seconds = max_seconds
        self.num_frames = 0
        self.seconds = 0.0

    def frames(self) -> Iterator[TimedFrame]:
        for frame in self._video.frames():
            self.num_frames += 1
            self.seconds = float(frame.seconds + 1 / self._video.header.fps)
            if float(frame.seconds) > self._max_seconds:
                raise _too_long(self._max_seconds, self.seconds)
            yield frame


def _too_long(max_seconds: float, seconds: float) -> RefusedError:
    return RefusedError("too_long", f"expected {max_seconds:g} s or less, got {seconds:.3f} s")


def _check_header(header: Header, shape: ClipShape, config: IntakeConfig) -> None:
    if header.fps < MIN_RATE_FRAC * shape.fps:
        raise RefusedError(
            "low_frame_rate", f"expected {shape.fps:g} fps or more, got {float(header.fps):g}"
        )
    frame_s = 1.0 / float(header.fps)
    if header.seconds is not None and header.seconds > config.max_seconds + frame_s:
        raise _too_long(config.max_seconds, header.seconds)


def _check_size(image: Image, config: IntakeConfig) -> None:
    height, width = image.shape[:2]
    if height < config.min_height or width < config.min_width:
        raise RefusedError(
            "too_small",
            f"expected {config.min_height}x{config.min_width} or more (height x width), "
            f"got {height}x{width}",
        )


def resample(
    frames: Iterable[TimedFrame], fps: Fraction, source_fps: Fraction
) -> Iterator[TimedFrame]:
    """Yield, for the times 0, 1/fps, 2/fps, ..., the frame nearest in time.

    Of two equally near the earlier is taken; nothing is blended. The last frame lasts for
    1 / `source_fps`, and the times end where it does. Times are exact fractions, since 24 to 16 fps
    asks for a time midway between two frames at every other frame.
    """
    wanted = 0
    last: TimedFrame | None = None
    for frame in frames:
        while last is not None and wanted / fps <= (last.seconds + frame.seconds) / 2:
            yield last
            wanted += 1
        last = frame
    while last is not None and wanted / fps < last.seconds + 1 / source_fps:
        yield last
        wanted += 1


def fit(
    image: Image, shape: ClipShape, config: IntakeConfig, sample_aspect: Fraction = Fraction(1)
) -> Image:
    """Return the image cropped about its centre to the wanted aspect, and resized by area.

    Args:
        image: [h, w, 3] uint8.
        sample_aspect: width of a pixel of the image over its height.

    Returns:
        [H, W, 3] uint8; every pixel is the mean of the area it covers.
    """
    height, width = image.shape[:2]
    wanted = shape.width / shape.height / float(sample_aspect)
    if config.crop == "none" and abs(math.log(width / height / wanted)) > MAX_ASPECT_CHANGE:
        raise RefusedError(
            "wrong_aspect",
            f"expected {shape.width}:{shape.height} within 1 %, got {width}:{height} of pixels "
            f"{float(sample_aspect):g} wide",
        )
    if config.crop == "centre":
        crop_height = min(height, max(1, round(width / wanted)))
        crop_width = min(width, max(1, round(height * wanted)))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        image = image[top : top + crop_height, left : left + crop_width]
    size = (shape.width, shape.height)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
