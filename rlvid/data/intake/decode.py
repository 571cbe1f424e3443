"""Video files from anybody, frame by frame and within limits; the one place of intake with av."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.stream import VideoStream

from rlvid.data.intake.drops import DropReason, RefusedError

MAX_FRAME_PIXELS = 2**25
"""Of one frame: 7680x4320 just fits."""
MAX_VIDEO_PIXELS = 2**33
"""Of all frames that are decoded, which bounds the work: 16 s of 3840x2160 at 60 fps just fit."""
MAX_MISSING_FRAC = 0.05
"""Share of the frames its header promises that a whole video may lack; edit lists hide some."""
DURATION_SLACK_S = 0.5
"""Where the header only has the file's duration, which is that of its longest stream."""

QUICKTIME_STARTS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
QUICKTIME_CONTENT = (b"moov", b"mdat", b"moof")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the file says of its video stream."""

    height: int
    width: int
    fps: Fraction
    num_frames: int
    """0 where it does not say."""
    seconds: float | None
    sample_aspect: Fraction
    """Width of a pixel over its height, as shown."""


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """One decoded frame, not yet turned into RGB."""

    seconds: Fraction
    """Since the first frame of the video."""
    picture: av.VideoFrame

    def rgb(self) -> npt.NDArray[np.uint8]:
        """Return [H, W, 3] uint8, turned the way a player shows it."""
        try:
            image = self.picture.to_ndarray(format="rgb24")
        except (av.error.FFmpegError, ValueError) as error:
            raise RefusedError("unreadable_video", f"no RGB picture of a frame: {error}") from error
        return np.ascontiguousarray(np.rot90(image, k=round(self.picture.rotation / 90)))


class Video:
    """An open file; see `open_video`."""

    def __init__(self, container: InputContainer, stream: VideoStream, header: Header) -> None:
        self._container = container
        self._stream = stream
        self.header = header

    def frames(self) -> Iterator[TimedFrame]:
        """Yield the frames in the order of their times; one without a later time is passed over.

        Raises:
            RefusedError: no frames, damaged ones, more pixels than the limits, or, at the end,
                fewer frames than the header promised.
        """
        first: Fraction | None = None
        last = Fraction(-1)
        count = 0
        pixels = 0
        for picture in self._pictures():
            count += 1
            pixels += picture.width * picture.height
            if pixels > MAX_VIDEO_PIXELS:
                raise RefusedError(
                    "too_large", f"more than {MAX_VIDEO_PIXELS} pixels in all frames"
                )
            time = self._time_of(picture, count - 1)
            first = time if first is None else first
            if time - first > last:
                last = time - first
                yield TimedFrame(last, picture)
        self._check_complete(count, float(last))

    def _pictures(self) -> Iterator[av.VideoFrame]:
        decoded = self._container.decode(self._stream)
        count = 0
        while True:
            try:
                picture = next(decoded, None)
            except (av.error.FFmpegError, ValueError, OSError) as error:
                reason: DropReason = "damaged_video" if count else "unreadable_video"
                raise RefusedError(reason, f"frame {count} cannot be decoded: {error}") from error
            if picture is None:
                return
            if picture.is_corrupt:
                raise RefusedError("damaged_video", f"frame {count} is damaged")
            yield picture
            count += 1

    def _time_of(self, picture: av.VideoFrame, index: int) -> Fraction:
        base = picture.time_base or self._stream.time_base
        if picture.pts is None or base is None:
            return index / self.header.fps
        return Fraction(picture.pts * base)

    def _check_complete(self, count: int, last_s: float) -> None:
        header = self.header
        if count == 0:
            raise RefusedError("no_frames", "no frame in the video stream")
        if header.num_frames:
            is_short = count < (1.0 - MAX_MISSING_FRAC) * header.num_frames
        else:
            promised = (header.seconds or 0.0) * (1.0 - MAX_MISSING_FRAC) - DURATION_SLACK_S
            is_short = last_s + 1.0 / float(header.fps) < promised
        if is_short:
            raise RefusedError(
                "truncated_video",
                f"expected {header.num_frames or '?'} frames in {header.seconds} s as its header "
                f"says, got {count} in {last_s:g} s",
            )


@contextmanager
def open_video(data: bytes) -> Iterator[Video]:
    """Open a file in memory: MP4 or QuickTime, Matroska or WebM, or AVI.

    The container is told from the first bytes and named to the reader, which left to guess takes
    text that makes it open other files, or listen on the network, for a video.

    Raises:
        RefusedError: another container, a file cut short, no video stream, or a frame size beyond
            `MAX_FRAME_PIXELS`.
    """
    container_format = sniff_container(data)
    if container_format is None:
        raise RefusedError(
            "unreadable_video",
            f"expected MP4, QuickTime, Matroska, WebM or AVI, got bytes {data[:12]!r}",
        )
    if is_cut_short(data, container_format):
        raise RefusedError("truncated_video", f"{len(data)} bytes, fewer than its parts say")
    try:
        container = av.open(io.BytesIO(data), format=container_format, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise RefusedError("unreadable_video", f"cannot be opened: {error}") from error
    with container:
        if not container.streams.video:
            raise RefusedError("unreadable_video", "no video stream")
        stream = container.streams.video[0]
        header = _header(container, stream)
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        yield Video(container, stream, header)


def _header(container: InputContainer, stream: VideoStream) -> Header:
    if stream.codec_context is None or not stream.average_rate or stream.average_rate < 0:
        raise RefusedError("unreadable_video", "no decoder for it, or no frame rate in its header")
    if stream.width < 1 or stream.height < 1:
        raise RefusedError("unreadable_video", "no frame size in its header, or an impossible one")
    if stream.width * stream.height > MAX_FRAME_PIXELS:
        raise RefusedError(
            "too_large",
            f"expected at most {MAX_FRAME_PIXELS} pixels a frame, got "
            f"{stream.width}x{stream.height}",
        )
    seconds = None
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / av.time_base
    return Header(
        height=stream.height,
        width=stream.width,
        fps=Fraction(stream.average_rate),
        num_frames=stream.frames,
        seconds=seconds,
        sample_aspect=Fraction(stream.sample_aspect_ratio or 1),
    )


def sniff_container(data: bytes) -> str | None:
    """Return the demuxer that the first bytes ask for, None for any but those allowed."""
    if data[4:8] in QUICKTIME_STARTS:
        return "mp4"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    return None


def is_cut_short(data: bytes, container_format: str) -> bool:
    """Return whether a part of the file says it is longer than what is there.

    Matroska may leave lengths open, so there only the count of frames or the duration tells.
    """
    if container_format == "avi":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    place = 0
    while container_format == "mp4" and place + 8 <= len(data):
        kind = data[place + 4 : place + 8]
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0: to the end of the file; else no box
            return False
        place += size
        if place > len(data) and kind in QUICKTIME_CONTENT:
            return True
    return False
