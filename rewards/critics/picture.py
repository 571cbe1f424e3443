"""Light, colour and quality of the single frames, without a reference. T frames, H W pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics.guards import LUMA, WHITE, grid, saturation
from rlvid.rewards.critics.tracking import Frames, to_frames

BLACK = 0.03
"""Luma up to which a pixel counts as crushed."""
MAX_SAMPLE = 200_000
"""Pixels that quantiles are taken of."""
FLOOR = 0.02
"""Least value of a part, so that a clip with one hopeless part can still be made better."""


class ExposureCritic:
    """Whether light and colour are within bounds, in [0, 1].

    The product of five parts: `bright` (share of blown-out pixels), `dark` (of crushed ones),
    `contrast` (range of luma), `colour` (share of pixels whose colour is at the end of the scale)
    and `reference` (distance of mean luma, contrast and chroma from those of true clips, when the
    recipe gives them). A guard: it bounds what other rewards push, and is 1 for every ordinary
    clip.

    Gamed by: a flat grey picture of the right mean; pair it with anything that sees content.
    """

    CLAIMS = ("over_exposed", "washed_out", "over_saturated")
    BLIND_TO = (
        "degrees: it has steps where much of a picture passes a bound at once",
        "which colours there are, and small bright or dark parts",
        "time, content, prompt",
    )

    WORKING_BYTES = 29.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        bright_share: float = 0.05
        """Share of blown-out pixels that is free."""
        dark_share: float = 0.25
        """Share of black pixels that is free; many films have dark corners."""
        least_contrast: float = 0.3
        """Luma between the 2nd and the 98th percentile below which a clip is washed out."""
        vivid_share: float = 0.005
        """Share of pixels at the end of the colour scale that is free."""
        reference: tuple[float, float, float] | None = None
        """Mean luma, contrast and mean chroma of true clips, e.g. TINY_WORLD_REFERENCE."""
        reference_scale: float = 0.1
        """Distance from the reference at which its part is 1/e."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] -> [B] float32; the prompts are not read."""
        return torch.tensor([self.parts(to_frames(video))["exposure"] for video in videos])

    def parts(self, frames: Frames) -> Mapping[str, float]:
        """Return the score "exposure" of [T, H, W, 3] and its parts."""
        config = self._config
        luma = np.asarray(frames @ LUMA, dtype=np.float32)
        highest, lowest = frames.max(axis=3), frames.min(axis=3)
        vivid = (highest - lowest > 0.6) & ((highest > 0.99) | (lowest < 0.01))
        contrast = luma_range(luma)
        parts = {
            "bright": _beyond(float((luma >= WHITE).mean()), config.bright_share, 0.1),
            "dark": _beyond(float((luma <= BLACK).mean()), config.dark_share, 0.2),
            "contrast": min(1.0, contrast / config.least_contrast),
            "colour": _beyond(float(vivid.mean()), config.vivid_share, 0.02),
            "reference": 1.0,
        }
        if config.reference is not None:
            here = (float(luma.mean()), contrast, saturation(frames))
            apart = float(np.abs(np.subtract(here, config.reference)).max())
            parts["reference"] = float(np.exp(-apart / config.reference_scale))
        return {"exposure": float(np.prod(list(parts.values()))), **parts}


TINY_WORLD_REFERENCE = (0.78, 0.58, 0.08)
"""Mean luma, contrast and mean chroma of true clips of the tiny world (training captions)."""


def _beyond(share: float, free: float, scale: float) -> float:
    """1 up to the free share, then falling with it."""
    return float(np.exp(-max(0.0, share - free) / scale))


class GridCritic:
    """How little a small tile repeats over the picture, in [0, 1]: 1 - `grid` of the guards.

    The pattern is the known artefact of too much noise in a stochastic sampler, and of decoders
    that miss their latent by a little. Gamed by: a flat picture.
    """

    CLAIMS = ("grid_pattern",)
    GRADED = ("grid_strength",)
    BLIND_TO = (
        "periods that do not divide 16 px",
        "a pattern on less than half of the picture",
        "content that really is a grid, which it takes for one",
    )

    WORKING_BYTES = 28.0

    def __init__(self) -> None:
        self.clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] -> [B] float32; the prompts are not read."""
        lumas = [np.asarray(to_frames(video) @ LUMA, dtype=np.float32) for video in videos]
        return torch.tensor([1.0 - grid(luma) for luma in lumas])


class PictureQualityCritic:
    """Technical quality of the frames from five measures, in [0, 1]; no learned judge of beauty.

    The geometric mean of `sharpness` (steepest edges against the contrast there is), `cleanness`
    (noise in the flattest half), `unblocky` (no more gradient on block borders than elsewhere),
    `contrast` and `colourfulness` (Hasler and Suesstrunk, 2003). These are proxies: they say that
    a picture is not blurred, noisy, blocky or grey, and nothing of whether it is good.

    Gamed by: drawing hard edges and vivid patches; use it with a small weight, or held out.
    """

    CLAIMS = ("blurred", "noise", "blocky", "washed_out")
    GRADED = ("blur_strength", "noise_strength")
    BLIND_TO = (
        "composition, content, anatomy, prompt and time",
        "intended softness, grain or muted colours, which it punishes",
        "blocks that are not 4, 8 or 16 px wide",
    )

    WORKING_BYTES = 34.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        sharpness: float = 0.35
        """Edge steepness, in shares of the contrast a pixel, at which its part is 1/2."""
        noise: float = 0.02
        """Noise in [0, 1] of luma at which its part is 1/e."""
        contrast: float = 0.3
        """Range of luma from which its part is 1."""
        colourfulness: float = 0.05
        """At which its part is 1/2."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] -> [B] float32; the prompts are not read."""
        return torch.tensor([self.parts(to_frames(video))["picture_quality"] for video in videos])

    def parts(self, frames: Frames) -> Mapping[str, float]:
        """Return the score "picture_quality" of [T, H, W, 3] and its parts."""
        config = self._config
        luma = np.asarray(frames @ LUMA, dtype=np.float32)
        contrast = luma_range(luma)
        steep = edge_steepness(luma) / max(contrast, 0.02)
        colour = colourfulness(frames)
        parts = {
            "sharpness": steep**2 / (steep**2 + config.sharpness**2),
            "cleanness": float(np.exp(-noise_level(luma) / config.noise)),
            "unblocky": float(np.exp(-max(0.0, blockiness(luma) - 0.25) / 0.25)),
            "contrast": min(1.0, contrast / config.contrast),
            "colourfulness": colour / (colour + config.colourfulness),
        }
        floored = np.maximum(np.array(list(parts.values())), FLOOR)
        return {"picture_quality": float(np.exp(np.log(floored).mean())), **parts}


def luma_range(luma: Frames) -> float:
    """Luma between the 2nd and the 98th percentile of [T, H, W]; of large clips, of a sample."""
    step = max(1, int(np.sqrt(luma.size / MAX_SAMPLE)))
    low, high = np.quantile(luma[:, ::step, ::step], (0.02, 0.98))
    return float(high - low)


def edge_steepness(luma: Frames) -> float:
    """Mean over frames of the 98th percentile of the difference between neighbouring pixels."""
    across = np.abs(np.diff(luma, axis=2)).reshape(len(luma), -1)
    down = np.abs(np.diff(luma, axis=1)).reshape(len(luma), -1)
    both = np.concatenate([across, down], axis=1)
    step = max(1, both.size // MAX_SAMPLE)
    return float(np.quantile(both[:, ::step], 0.98, axis=1).mean())


def noise_level(luma: Frames) -> float:
    """Standard deviation of noise by the difference of two Laplacians (Immerkaer, 1996).

    The median instead of his mean: edges, which answer too, are the smaller half.
    """
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32)
    answers = np.stack([cv2.filter2D(frame, -1, kernel)[1:-1, 1:-1] for frame in luma])
    return float(np.median(np.abs(answers))) / (0.6745 * 6.0)


def blockiness(luma: Frames) -> float:
    """Excess of gradient on the borders of 4, 8 or 16 px blocks over its fair share, 0 to 1."""
    across = np.abs(np.diff(luma, axis=2)).mean(axis=(0, 1))
    down = np.abs(np.diff(luma, axis=1)).mean(axis=(0, 2))
    worst = 0.0
    for side in (4, 8, 16):
        if min(len(across), len(down)) < 2 * side:
            continue
        excess = []
        for profile in (across, down):
            share = float(profile[side - 1 :: side].sum()) / max(float(profile.sum()), 1e-6)
            excess.append((share - 1 / side) / (1 - 1 / side))
        worst = max(worst, min(excess))
    return worst


def colourfulness(frames: Frames) -> float:
    """Hasler and Suesstrunk's measure on [0, 1] colours; theirs, on [0, 255], is 255 times it."""
    red, green, blue = (frames[..., channel] for channel in range(3))
    first, second = red - green, (red + green) / 2 - blue
    spread = float(np.hypot(first.std(), second.std()))
    return spread + 0.3 * float(np.hypot(first.mean(), second.mean()))
