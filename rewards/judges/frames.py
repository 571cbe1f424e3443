"""From a clip to the message parts that show it to a model: images, a sheet of them, or a video.

Letters: T frames of the clip, N frames shown, H W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

if TYPE_CHECKING:
    from rlvid.models.tiny.vlm_layout import JudgeLayout

Frames = npt.NDArray[np.uint8]
Layout = Literal["tiny_judge", "images", "sheet", "mp4", "jpeg"]
JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One clip, or part of it, as parts of a chat message."""

    parts: tuple[dict[str, Any], ...]
    kind: Literal["image", "video"]
    num_sent: int
    """Images, or frames of the video, that the parts hold."""
    size: tuple[int, int]
    """(height, width) of each."""
    fps: float = 0.0
    """Frame rate that a video claims; 0 for images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What of a clip a judge is shown."""

    layout: Layout = "images"
    """images: a PNG a frame. sheet: one PNG of all. mp4: lossless H.264. jpeg: vLLM's video/jpeg,
    a list of JPEG frames that needs no codec and is not subsampled. tiny_judge: as the judge that
    ships was taught."""
    num_frames: int | None = 8
    """Evenly spread over the clip, first and last among them; None shows every frame."""
    height: int | None = None
    width: int | None = None
    """Frames are resized to it for the judge; None leaves them."""
    columns: int = 4
    """Of a sheet."""

    def indices(self, num_frames: int) -> list[int]:
        """Return the frames shown of a clip of so many."""
        count = self.num_frames or num_frames
        if count > num_frames:
            raise ValueError(
                f"view: num_frames is {count}, the clip has {num_frames}: expected at most as "
                "many. Lower num_frames, or null for every frame."
            )
        return [round(float(index)) for index in np.linspace(0, num_frames - 1, count)]

    def show(self, clip: Frames, fps: float, part: str = "all") -> Shown:
        """Return the parts for uint8 [T, H, W, 3].

        Args:
            part: "all", "first" or "last" frame.
        """
        if self.layout == "tiny_judge" and part == "all":
            return _images(tiny_images(clip))
        chosen = list(range(len(clip))) if self.layout == "tiny_judge" else self.indices(len(clip))
        chosen = {"all": chosen, "first": chosen[:1], "last": chosen[-1:]}[part]
        frames = resized(clip[chosen], self.height, self.width)
        if part != "all" or self.layout in ("images", "tiny_judge"):
            return _images(list(frames))
        if self.layout == "sheet":
            return _images([sheet(frames, self.columns)])
        # Fewer frames over the same time are a slower frame rate, not a shorter clip.
        rate = fps * max(1, len(frames) - 1) / max(1, len(clip) - 1)
        url = mp4_url(frames, rate) if self.layout == "mp4" else jpeg_url(frames)
        return Shown(
            parts=({"type": "video_url", "video_url": {"url": url}},),
            kind="video",
            num_sent=len(frames),
            size=(frames.shape[1], frames.shape[2]),
            fps=rate,
        )


def to_frames(video: Tensor) -> Frames:
    """[T, 3, H, W] float in [0, 1] -> [T, H, W, 3] uint8."""
    pixels = video.detach().clamp(0.0, 1.0).mul(255.0).round().permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.cpu().numpy().astype(np.uint8))


def resized(frames: Frames, height: int | None, width: int | None) -> Frames:
    """Return the frames at another size; area averaging, so that shrinking does not alias."""
    size = (height or frames.shape[1], width or frames.shape[2])
    if size == frames.shape[1:3]:
        return frames
    shrinks = size[0] < frames.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.stack([cv2.resize(f, size[::-1], interpolation=how) for f in frames])


@lru_cache(maxsize=1)
def tiny_layout() -> JudgeLayout:
    """Return how the shipped judge was taught to see clips, from the file beside its weights."""
    from rlvid.models.tiny import vlm_judge_folder
    from rlvid.models.tiny.vlm_layout import JudgeLayout

    return JudgeLayout.load(vlm_judge_folder())


def tiny_images(clip: Frames) -> list[Frames]:
    """Return the images that the shipped judge was taught to read."""
    layout = tiny_layout()
    return layout.images(resized(clip, *layout.size))


def sheet(frames: Frames, columns: int) -> Frames:
    """Return [N, H, W, 3] as one image, row by row, black where a row is not full."""
    rows = -(-len(frames) // columns)
    _, height, width, channels = frames.shape
    padded = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    padded[: len(frames)] = frames
    grid = padded.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid.reshape(rows * height, columns * width, channels))


def png_url(image: Frames) -> str:
    """Lossless: what the judge decodes is what was scored."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done, "PNG takes every uint8 image"
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def jpeg_url(frames: Frames) -> str:
    encoded = []
    for frame in frames:
        done, data = cv2.imencode(
            ".jpg",
            cv2.cvtColor(frame, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY],
        )
        assert done, "JPEG takes every uint8 image"
        encoded.append(base64.b64encode(data.tobytes()).decode())
    return "data:video/jpeg;base64," + ",".join(encoded)


def mp4_url(frames: Frames, fps: float) -> str:
    """H.264 in RGB at quantiser 0, which is lossless; yuv420p would halve the colour's size."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "rgb24"
        stream.options = {"qp": "0", "preset": "veryfast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return "data:video/mp4;base64," + base64.b64encode(buffer.getvalue()).decode()


def _images(images: Sequence[Frames]) -> Shown:
    return Shown(
        parts=tuple(
            {"type": "image_url", "image_url": {"url": png_url(image)}} for image in images
        ),
        kind="image",
        num_sent=len(images),
        size=(images[0].shape[0], images[0].shape[1]),
    )
