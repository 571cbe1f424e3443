"""Calibration tasks of camera motion: a view that moves over a drawn texture in a known way."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.rewards.critics.camera_motion import LABELS
from rlvid.seeds import derive_seed, prompt_id

SIDE = 64
"""Pixels of the view."""
NUM_FRAMES = 13
_WORDS = {
    "static": "the camera stays still",
    "pan_left": "the camera pans left",
    "pan_right": "the camera pans to the right",
    "tilt_up": "the camera tilts up",
    "tilt_down": "the camera tilts down",
    "zoom_in": "the camera zooms in",
    "zoom_out": "the camera zooms out",
    "roll_left": "the camera rolls counter-clockwise",
    "roll_right": "the camera rolls clockwise",
}


def texture(rng: np.random.Generator, side: int) -> npt.NDArray[np.float32]:
    """Draw [side, side, 3] in [0, 1]: smooth clouds of colour with blocks and discs on them."""
    image = np.full((side, side, 3), 0.5, dtype=np.float32)
    for cells, strength in ((6, 0.12), (24, 0.08), (side // 3, 0.05)):
        noise = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        image += strength * cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(40):
        colour = tuple(float(value) for value in rng.uniform(0.1, 0.9, size=3))
        x, y = (int(value) for value in rng.integers(0, side, size=2))
        size = int(rng.integers(side // 40, side // 10))
        if rng.random() < 0.5:
            cv2.circle(image, (x, y), size, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(image, (x, y), (x + size, y + size), colour, -1)
    return np.clip(image, 0.0, 1.0)


def moving_view(
    rng: np.random.Generator, label: str, amount: float, *, with_object: bool = True
) -> npt.NDArray[np.float32]:
    """Return [T, SIDE, SIDE, 3] of a camera that moves as `label` says.

    Args:
        amount: displacement of the edges over the clip, in shares of the side.
        with_object: a small disc crosses the view on its own, which no fit should follow.
    """
    image = texture(rng, 4 * SIDE)
    middle = 2.0 * SIDE + rng.uniform(-0.4, 0.4, size=2) * SIDE
    path = np.linspace(0.0, amount, NUM_FRAMES)
    start, drift = rng.uniform(0.2, 0.8, size=2), rng.uniform(-0.5, 0.5, size=2)
    colour = tuple(float(value) for value in rng.uniform(0.0, 1.0, size=3))
    frames = np.empty((NUM_FRAMES, SIDE, SIDE, 3), dtype=np.float32)
    for index, done in enumerate(path):
        zoom, angle, shift = 1.0, 0.0, np.zeros(2)
        kind, _, sense = label.partition("_")
        sign = 1.0 if sense in ("right", "down", "in") else -1.0
        if kind == "pan":
            shift[0] = sign * done * SIDE
        elif kind == "tilt":
            shift[1] = sign * done * SIDE
        elif kind == "zoom":
            zoom = (1.0 + 2.0 * done) ** sign
        elif kind == "roll":
            angle = sign * 2.0 * done
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        turn = np.array([[cos, -sin], [sin, cos]])
        offset = middle + shift - turn @ np.full(2, SIDE / 2)
        matrix = np.hstack([turn, offset[:, None]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frames[index] = cv2.warpAffine(
            image, matrix, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REFLECT
        )
        if with_object:
            x, y = (start + drift * index / NUM_FRAMES) * SIDE
            cv2.circle(frames[index], (int(x), int(y)), SIDE // 10, colour, -1, cv2.LINE_AA)
    return frames


def camera_clips(
    asked: tuple[str, ...], num_clips: int, *, seed: int, split: str, true: bool
) -> ClipSet:
    """Draw clips whose prompt asks for one of `asked`; with `true` false they show another."""
    rng = np.random.default_rng(derive_seed(seed, "camera", split, *asked, str(true)))
    clips, prompts = [], []
    for _ in range(num_clips):
        label = str(rng.choice(asked))
        shown = label if true else str(rng.choice([name for name in LABELS if name != label]))
        clips.append(moving_view(rng, shown, float(rng.uniform(0.08, 0.4))))
        text = f"a wall of many colours, {_WORDS[label]}"
        prompts.append(Prompt(prompt_id=prompt_id(text), text=text))
    videos = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).contiguous()
    return ClipSet(videos=videos, prompts=tuple(prompts))


def camera_task(
    asked: tuple[str, ...], num_clips: int, *, seed: int, split: str
) -> tuple[ClipSet, ClipSet]:
    """Return clips that show what their prompt asks, and clips that show another motion."""
    draw = partial(camera_clips, asked, num_clips, seed=seed, split=split)
    return draw(true=True), draw(true=False)


static = partial(camera_task, ("static",))
pan = partial(camera_task, ("pan_left", "pan_right"))
tilt = partial(camera_task, ("tilt_up", "tilt_down"))
zoom = partial(camera_task, ("zoom_in", "zoom_out"))
roll = partial(camera_task, ("roll_left", "roll_right"))


def drift(num_clips: int, *, seed: int, split: str) -> tuple[ClipSet, Tensor]:
    """Clips asked to be static that pan or tilt by 0 to 30 % of the side; strength is the share."""
    rng = np.random.default_rng(derive_seed(seed, "camera drift", split))
    clips, strengths = [], []
    for _ in range(num_clips):
        strengths.append(float(rng.uniform(0.0, 0.3)))
        label = str(rng.choice(("pan_left", "pan_right", "tilt_up", "tilt_down")))
        clips.append(moving_view(rng, label, strengths[-1]))
    text = f"a wall of many colours, {_WORDS['static']}"
    prompt = Prompt(prompt_id=prompt_id(text), text=text)
    videos = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).contiguous()
    return ClipSet(videos=videos, prompts=(prompt,) * num_clips), torch.tensor(strengths)
