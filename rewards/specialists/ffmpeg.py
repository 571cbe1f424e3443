"""Clips through the filters of the ffmpeg that imageio-ffmpeg ships.

The wrapper is BSD-2; the binary itself is built with GPL parts, so read its terms before you hand
it on. Letters: T frames, H W pixels.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlvid.rewards.base import RewardError
from rlvid.rewards.specialists.needs import need_package

DEADLINE_S = 120.0
"""Of one call; a clip of a few hundred frames takes seconds."""

_METADATA = re.compile(r"^lavfi\.([\w.]+)=(\S+)$", re.MULTILINE)


def open_ffmpeg(scorer: str) -> str:
    """Return the path of the binary; MissingPartError without the package."""
    return str(need_package("imageio_ffmpeg", scorer).get_ffmpeg_exe())


def to_rgb(video: Tensor) -> npt.NDArray[np.uint8]:
    """[T, 3, H, W] float32 in [0, 1] -> [T, H, W, 3] uint8."""
    pixels = (video * 255.0).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def raw_input(frames: npt.NDArray[np.uint8], file: str, *, fps: int) -> list[str]:
    """Return the arguments that read [T, H, W, 3] uint8 as raw bytes from `file` ("-" is stdin)."""
    _, height, width, _ = frames.shape
    size = f"{width}x{height}"
    layout = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps)]
    return [*layout, "-i", file]


def frame_metadata(
    ffmpeg: str, frames: npt.NDArray[np.uint8], filters: str, *, fps: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Return what `filters` write about each frame: name without "lavfi." -> [T]."""
    chain = f"{filters},metadata=mode=print:file=-"
    output = run(
        [ffmpeg, *raw_input(frames, "-", fps=fps), "-vf", chain, "-f", "null", "-"],
        stdin=frames.tobytes(),
    )
    values: dict[str, list[float]] = {}
    for name, value in _METADATA.findall(output):
        values.setdefault(name, []).append(float(value))
    return {name: np.asarray(column) for name, column in values.items()}


def run(command: Sequence[str], *, stdin: bytes = b"", folder: Path | None = None) -> str:
    """Run ffmpeg on one thread and return its standard output; RewardError with its last line."""
    options = ["-hide_banner", "-nostats", "-loglevel", "error", "-threads", "1"]
    finished = subprocess.run(
        [command[0], *options, *command[1:]],
        input=stdin,
        capture_output=True,
        cwd=folder,
        timeout=DEADLINE_S,
        check=False,
    )
    if finished.returncode:
        last = finished.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RewardError(f"ffmpeg: ended with {finished.returncode}: {' '.join(last)}")
    return finished.stdout.decode()
