"""Smoothness of point tracks by CoTracker (arXiv:2307.07635), from a TorchScript file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Serving
from rlvid.rewards.specialists.needs import (
    MissingPartError,
    fingerprint,
    need_file,
    need_folder,
)

FILE = "cotracker.ts"


class CoTracker:
    """How smoothly points on a grid move, and how many of them stay in sight, in [0, 1].

        visible share * exp(-mean |acceleration| / (mean speed + still_speed))

    Wants a folder with `cotracker.ts`, CoTracker exported by torch.jit: called with video
    [1, T, 3, H, W] float32 in 0 to 255 and queries [1, N, 3] (frame, x, y), it returns tracks
    [1, T, N, 2] in px and visibility [1, T, N]. A TorchScript file is a program: take it only from
    where you would take code. Licence: CoTracker's weights are for non-commercial use; read it.

    Sees: jerking, melting and vanishing parts.
    Blind to: physics beyond smoothness, the prompt. Gamed by: stillness, so pair it with motion.
    """

    BLIND_TO = ("physics beyond smoothness", "stillness", "the prompt")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str = ""
        grid: int = 10
        """Points on each side of the grid in the first frame."""
        still_speed: float = 0.002
        """Heights of the picture a frame that count as no motion."""

    def __init__(self, config: Config) -> None:
        holds = f"{FILE}, CoTracker exported by torch.jit.script or trace"
        folder = need_folder(config.folder, "cotracker", holds=holds)
        file = need_file(folder, FILE, scorer="cotracker", what="CoTracker exported by torch.jit")
        try:
            self._model: Any = torch.jit.load(str(file), map_location="cpu").eval()
        except RuntimeError as error:
            raise MissingPartError(
                f"cotracker: {file} is no TorchScript file ({str(error).splitlines()[0]}). Export "
                "the model with torch.jit; weights alone need the package's own code."
            ) from error
        self._config = config
        self.clip_spec = ClipSpec(min_frames=3)
        self.serving = Serving(batch_size=1)
        self.version = fingerprint(file)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] -> [B] float32; the prompts are not read."""
        return torch.tensor([self.parts(video)["cotracker"] for video in videos])

    @torch.no_grad()
    def parts(self, video: Tensor) -> Mapping[str, float]:
        """Return the score "cotracker" of [T, 3, H, W] and its two parts."""
        height, width = video.shape[2:]
        self._model.to(video.device)
        tracks, visibility = self._model(
            video[None] * 255.0, grid_queries(self._config.grid, height, width).to(video.device)
        )
        path = tracks[0].float() / height
        speed = path.diff(dim=0).norm(dim=-1)
        jerk = path.diff(dim=0).diff(dim=0).norm(dim=-1)
        smooth = float(torch.exp(-jerk.mean() / (speed.mean() + self._config.still_speed)))
        visible = float(visibility[0].float().mean())
        return {"cotracker": smooth * visible, "smoothness": smooth, "visible": visible}


def grid_queries(count: int, height: int, width: int) -> Tensor:
    """Return [1, count^2, 3]: frame 0 and the x, y in px of points evenly over the picture."""
    rows = (torch.arange(count) + 0.5) / count * height
    columns = (torch.arange(count) + 0.5) / count * width
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros(count * count), x.flatten(), y.flatten()], dim=1)[None]
