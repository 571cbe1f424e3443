"""Motion of a clip by RAFT optical flow (arXiv:2003.12039), torchvision's architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Serving
from rlvid.rewards.specialists.needs import (
    MissingPartError,
    fingerprint,
    need_file,
    need_folder,
)

FILES = ("raft.safetensors", "raft.pth")
MIN_SIDE = 128
"""RAFT's coarsest correlation needs 16 cells of 8 px; smaller clips are enlarged."""
FASTEST_SHARE = 0.05
"""Of the pixels, whose mean speed is the amount of motion, as VBench's dynamic degree takes it."""


class RaftFlow:
    """Smoothness and amount of motion by RAFT, in [0, 1].

        smoothness = exp(-mean |flow_t - flow_(t-1)| / (speed + still_speed))
        amount     = min(1, mean speed of the fastest 5 % of pixels / full_speed)

    Speeds are in heights of the picture a second, so clips of any size and rate compare. Wants a
    folder with raft.safetensors or raft.pth: the weights of torchvision's raft_large or raft_small
    (BSD-3 code; see the licence of the weights you bring).

    Sees: jerks, flicker of position, stillness.
    Blind to: reversed time, physics, what moves, the prompt. Gamed by: a steady camera move.
    """

    BLIND_TO = ("reversed time", "physics", "what moves", "the prompt")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str = ""
        clip_fps: int = 16
        """Of the clips it will get."""
        measure: Literal["smoothness", "amount", "both"] = "both"
        """both: their product, so that a still clip earns nothing."""
        full_speed: float = 0.2
        """Heights a second that earn the full amount."""
        still_speed: float = 0.02
        """Heights a second that count as none."""
        num_updates: int = 12
        """Refinements of RAFT; fewer are faster and coarser."""

    def __init__(self, config: Config) -> None:
        folder = need_folder(config.folder, "raft_flow", holds=f"{FILES[0]} or {FILES[1]}")
        self._config = config
        weights = need_file(folder, *FILES, scorer="raft_flow", what="RAFT's weights")
        self._model = _load(weights)
        self.clip_spec = ClipSpec(fps=config.clip_fps, min_frames=3)
        self.serving = Serving(batch_size=1)
        self.version = fingerprint(weights)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] -> [B] float32; the prompts are not read."""
        return torch.tensor([self.parts(video)[self._config.measure] for video in videos])

    @torch.no_grad()
    def parts(self, video: Tensor) -> Mapping[str, float]:
        """Return "smoothness", "amount" and "both" of [T, 3, H, W]."""
        config = self._config
        flow = self.flow(video) * config.clip_fps  # heights a second
        speed = flow.norm(dim=1)
        change = (flow[1:] - flow[:-1]).norm(dim=1).mean()
        # Means of the whole clip: a ratio frame by frame would be noise where nothing moves.
        smoothness = float(torch.exp(-change / (speed.mean() + config.still_speed)))
        pixels = speed.flatten(1)
        count = max(1, round(FASTEST_SHARE * pixels.shape[1]))
        fastest = float(pixels.topk(count, dim=1).values.mean())
        amount = max(0.0, fastest - config.still_speed) / (config.full_speed - config.still_speed)
        amount = min(1.0, amount)
        return {"smoothness": smoothness, "amount": amount, "both": smoothness * amount}

    def flow(self, video: Tensor) -> Tensor:
        """[T, 3, H, W] in [0, 1] -> [T - 1, 2, H', W'] in heights of the picture a frame."""
        self._model.to(video.device)
        height, width = video.shape[2:]
        factor = max(1.0, MIN_SIDE / min(height, width))
        size = [8 * round(side * factor / 8) for side in (height, width)]
        clip = functional.interpolate(video, size, mode="bilinear", align_corners=False)
        clip = clip * 2.0 - 1.0
        # One pair at a time: a clip's score must not depend on how long its neighbours are.
        pairs = zip(clip[:-1], clip[1:], strict=True)
        updates = self._config.num_updates
        flows = [self._model(a[None], b[None], num_flow_updates=updates)[-1] for a, b in pairs]
        return torch.cat(flows) / size[0]


def _load(file: Path) -> Any:
    """Return RAFT with the weights of the file; large and small are told by their names."""
    try:
        from torchvision.models.optical_flow import raft_large, raft_small
    except (ImportError, RuntimeError) as error:
        raise MissingPartError(
            f"raft_flow: torchvision does not load here ({error}). Install the torchvision of "
            "your torch."
        ) from error
    state = _read(file)
    for build in (raft_large, raft_small):
        model = build(weights=None)
        if set(model.state_dict()) == set(state):
            model.load_state_dict(state)
            return model.requires_grad_(False).eval()
    raise MissingPartError(
        f"raft_flow: {file} fits neither raft_large nor raft_small of torchvision: expected their "
        f"state dict, got {len(state)} tensors such as {next(iter(state), 'none')}."
    )


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(file))
    return dict(torch.load(file, map_location="cpu", weights_only=True))
