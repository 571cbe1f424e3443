"""MP4 files that every browser plays: H.264, yuv420p; the one place of `data` that imports av."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from torch import Tensor

CRF = "12"
"""x264 quality; 12 leaves the loss to yuv420p: about 3 of 255 levels in a 32 px tiny world clip."""
CONTAINER = "mp4"
"""Named to the reader too: left to guess, it takes text that makes it listen on the network, or
open other files, for a video."""
MAX_PIXELS = 2**28
"""Of a file in memory, all frames together: 291 frames of 720x1280, 805 MB as RGB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What the header of a video file says."""

    num_frames: int
    height: int
    width: int
    fps: float


def write_mp4(path: str | Path, video: Tensor, fps: float) -> None:
    """Write [T, 3, H, W] float in [0, 1] as H.264, with the index in front so that it streams.

    Raises:
        ValueError: another shape, no frames, or an odd height or width, which yuv420p cannot hold.
    """
    check_video(video)
    with Mp4Writer(path, fps) as writer:
        writer.write(video)


def check_video(video: Tensor) -> None:
    """Raise ValueError unless `write_mp4` takes it."""
    if (
        video.ndim != 4
        or video.shape[1] != 3
        or video.shape[0] < 1
        or not video.is_floating_point()
    ):
        raise ValueError(
            f"write_mp4: wrong video: expected float [T, 3, H, W] with T >= 1, "
            f"got {video.dtype} {tuple(video.shape)}."
        )
    height, width = int(video.shape[2]), int(video.shape[3])
    if height % 2 or width % 2:
        raise ValueError(
            f"write_mp4: odd size: expected even height and width, got {height}x{width}. "
            "Pad or crop the video by one pixel."
        )


class Mp4Writer:
    """An MP4 file that takes its frames in parts."""

    def __init__(self, path: str | Path, fps: float, *, is_live: bool = False) -> None:
        """Open the file.

        Args:
            is_live: every frame is a fragment and on the disk at once, so that it plays while it
                grows; else there is one index in front, which is written at the end.
        """
        settings = {"movflags": "+faststart"}
        if is_live:
            flags = "+frag_every_frame+empty_moov+default_base_moof"
            settings = {"movflags": flags, "flush_packets": "1"}
        self._container = av.open(str(path), "w", format=CONTAINER, options=settings)
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.pix_fmt = "yuv420p"
        options = {"crf": CRF, "preset": "veryfast"}
        if is_live:
            options |= {"tune": "zerolatency", "g": str(max(round(fps), 1))}
        self._stream.options = options
        self._size: tuple[int, int] | None = None

    def write(self, video: Tensor) -> None:
        """Append frames [T, 3, H, W] float in [0, 1]; see `write_mp4`."""
        check_video(video)
        size = int(video.shape[2]), int(video.shape[3])
        if self._size is None:
            self._stream.height, self._stream.width = self._size = size
        if size != self._size:
            raise ValueError(
                f"Mp4Writer: frames of {size[0]}x{size[1]} after frames of {self._size[0]}x"
                f"{self._size[1]}: expected one size. Open a file for each."
            )
        frames = video.detach().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
        for frame in np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy()):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close the file, complete unless an error ends the block."""
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()


def probe_mp4(path: str | Path) -> VideoInfo:
    """Return what the header says, without decoding."""
    try:
        with av.open(str(path), format=CONTAINER) as container:
            stream, fps = _video_stream(container, name=str(path))
            return VideoInfo(
                num_frames=stream.frames, height=stream.height, width=stream.width, fps=fps
            )
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a video: {error}.") from error


def read_mp4(path: str | Path) -> tuple[Tensor, float]:
    """Return all frames as [T, 3, H, W] float32 in [0, 1], and the frame rate."""
    frames, fps = _decode(str(path), name=str(path))
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return video.float().div_(255.0).contiguous(), fps


def decode_mp4(
    data: bytes, *, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], float]:
    """Return all frames of a file in memory as [T, H, W, 3] uint8, and the frame rate.

    The file may come from anybody, so decoding stops where its frames exceed `max_pixels`: 10 KB
    can hold a minute of black pictures.

    Raises:
        ValueError: no MP4, damaged, or more pixels than that.
    """
    name = f"video of {len(data)} bytes"
    return _decode(io.BytesIO(data), name=name, max_pixels=max_pixels)


def _decode(
    source: str | io.BytesIO, *, name: str, max_pixels: int | None = None
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], float]:
    frames: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    left = math.inf if max_pixels is None else max_pixels
    try:
        with av.open(source, format=CONTAINER) as container:
            stream, fps = _video_stream(container, name=name)
            if stream.width * stream.height > left:  # Before a decoder takes memory for it.
                raise _too_large(stream, 1, max_pixels, name=name)
            for frame in container.decode(stream):
                left -= frame.width * frame.height
                if left < 0:
                    raise _too_large(frame, len(frames) + 1, max_pixels, name=name)
                frames.append(frame.to_ndarray(format="rgb24"))
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{name}: cannot be read as a video: {error}.") from error
    if not frames:
        raise ValueError(f"{name}: no frames in the video stream.")
    return np.stack(frames), fps


def _video_stream(container: InputContainer, *, name: str) -> tuple[VideoStream, float]:
    """Return the first video stream and its frames per second."""
    if not container.streams.video:
        raise ValueError(f"{name}: no video stream. Expected an MP4 with one.")
    stream = container.streams.video[0]
    if not stream.average_rate:
        raise ValueError(f"{name}: no frame rate in its header. Write the file anew.")
    return stream, float(stream.average_rate)


def _too_large(
    picture: VideoStream | av.VideoFrame, count: int, max_pixels: int | None, *, name: str
) -> ValueError:
    return ValueError(
        f"{name}: too large: expected at most {max_pixels} pixels in all frames together, got more "
        f"in the first {count} of {picture.width}x{picture.height}. Send a smaller video."
    )
