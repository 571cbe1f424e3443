"""The pictures and clips that a prompt names beside its text: checked, told apart, read.

A prompt set names files; whoever samples or learns opens them again, so they lie where every
machine of the run finds them. Errors begin with the name of the medium; callers say whose it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {
    "first_frame": (".png", ".jpg", ".jpeg"),
    "last_frame": (".png", ".jpg", ".jpeg"),
    "control": (".mp4",),
}
"""What a prompt may name, and the files it may be: a picture, or a clip as long as the video."""
CLIPS = frozenset({"control"})
"""Those that are clips."""
PLACES = {"first_frame": 0, "last_frame": -1}
"""Those that are frames of the video, and where."""
_FORMATS = ("PNG", "JPEG")
"""PIL's readers; it has many more, for files that are none of these whatever their names say."""


def digest_media(name: str, path: str | Path) -> str:
    """Return the digest of a file's bytes, 32 hex digits; ValueError when it cannot be read."""
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise ValueError(
            f"{name}: {path} cannot be read on this machine: {error}. Keep it where every machine "
            "of the run finds it."
        ) from error


def check_media(name: str, path: str | Path) -> tuple[int, int]:
    """Return (height, width) of a file that a prompt names.

    Raises:
        ValueError: an unknown name, no such file, another kind of file, or it does not decode.
    """
    if name not in SUFFIXES:
        raise ValueError(f"{name}: unknown name: expected one of {', '.join(SUFFIXES)}.")
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES[name]:
        raise ValueError(f"{name}: expected a {' or '.join(SUFFIXES[name])} file, got {path}.")
    if not path.is_file():
        raise ValueError(f"{name}: no such file: {path}. Give a path that exists.")
    image = next(_frames(name, path)) if name in CLIPS else _picture(name, path)
    return image.height, image.width


def check_length(name: str, path: str | Path, num_frames: int) -> None:
    """Raise ValueError unless a medium that is a clip has as many frames as the video.

    By what its file says of itself, which takes no decoding; by counting where that says nothing.
    """
    if name not in CLIPS:
        return
    import av

    try:
        with av.open(str(path), format="mp4") as container:
            found = container.streams.video[0].frames if container.streams.video else 0
    except (av.error.FFmpegError, OSError) as error:
        raise _undecodable(name, path, error) from error
    _check_count(name, path, found or sum(1 for _ in _frames(name, Path(path))), num_frames)


def read_media(name: str, path: str | Path, *, num_frames: int, height: int, width: int) -> Tensor:
    """Return a picture [3, height, width] or a clip [T, 3, height, width], float32 in [0, 1].

    It is scaled to the size by PIL's Lanczos filter, as diffusers' VideoProcessor does: all of it,
    so a picture of another shape is stretched. Crop it to the shape of the video first.

    Raises:
        ValueError: it does not decode, or is a clip of another length.
    """
    if name not in CLIPS:
        return _pixels(_picture(name, Path(path)), height, width)
    frames = [_pixels(frame, height, width) for frame in _frames(name, Path(path))]
    _check_count(name, path, len(frames), num_frames)
    return torch.stack(frames)


def to_picture(pixels: Tensor) -> Image:
    """[3, height, width] in [0, 1] -> PIL's picture of 256 levels, which image processors take."""
    from PIL import Image

    levels = pixels.mul(255.0).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def _picture(name: str, path: Path) -> Image:
    """Return a picture as RGB, upright as its camera says."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=_FORMATS) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: {path} does not decode as a picture: {error}.") from error


def _frames(name: str, path: Path) -> Iterator[Image]:
    """Yield the frames of a clip as RGB, at least one."""
    import av

    count = 0
    try:
        with av.open(str(path), format="mp4") as container:
            for frame in container.decode(video=0) if container.streams.video else ():
                yield frame.to_image()
                count += 1
    except (av.error.FFmpegError, OSError) as error:
        raise _undecodable(name, path, error) from error
    if not count:
        raise ValueError(f"{name}: {path} has no video frames. Expected an MP4 with some.")


def _undecodable(name: str, path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{name}: {path} does not decode as a video: {error}.")


def _check_count(name: str, path: str | Path, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(
            f"{name}: {path} has {found} frames: expected those of the video, {expected}. Cut it, "
            "or set model.num_frames."
        )


def _pixels(image: Image, height: int, width: int) -> Tensor:
    import numpy as np
    from PIL import Image

    scaled = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return torch.tensor(scaled).permute(2, 0, 1).float().div(255.0).contiguous()
