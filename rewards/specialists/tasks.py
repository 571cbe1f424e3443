"""Calibration tasks of the specialists: what the breakages of the tiny world cannot show.

Each draws true clips, and clips that are broken in one way; see `rlvid.rewards.calibration.tasks`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rlvid.records import Prompt
from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.seeds import derive_seed, prompt_id

Sets = tuple[ClipSet, ClipSet]

WORDS = (
    "OPEN", "COFFEE", "STOP", "HOTEL", "Bakery", "Garden", "EXIT 24", "SALE 50%", "Platform 9",
    "Museum", "TAXI", "Harbour", "MARKET", "Cinema", "NORTH", "Bridge",
)  # fmt: skip
OTHER_TOPICS = (
    "two chefs cook pasta in a busy kitchen",
    "a crowd cheers at a football match at night",
    "a woman reads a newspaper on the train",
    "waves break on a rocky shore in winter",
    "the finance minister answers questions in parliament",
    "a surgeon washes her hands before an operation",
)
TEXT_SIDE = 96
"""Height and width of the clips with text; the letters are about 11 px high."""


def _rng(task: str, seed: int, split: str, side: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "specialists", task, split, side))


def rendered_text(num_clips: int, *, seed: int, split: str) -> Sets:
    """Words on a moving picture: the quoted ones, against misspelt, other and missing words."""
    true_rng, broken_rng = (_rng("rendered_text", seed, split, side) for side in ("true", "broken"))
    true = [str(true_rng.choice(WORDS)) for _ in range(num_clips)]
    wanted = [str(broken_rng.choice(WORDS)) for _ in range(num_clips)]
    shown = [_wrong_text(text, n % 3, broken_rng) for n, text in enumerate(wanted)]
    return (
        ClipSet(videos=_written(true, true_rng), prompts=_signs(true)),
        ClipSet(videos=_written(shown, broken_rng), prompts=_signs(wanted)),
    )


def _signs(texts: Sequence[str]) -> tuple[Prompt, ...]:
    sentences = [f'a sign that says "{text}" above a moving shape' for text in texts]
    return tuple(Prompt(prompt_id=prompt_id(one), text=one) for one in sentences)


def _wrong_text(text: str, kind: int, rng: np.random.Generator) -> str:
    """Misspell (a third of the letters and two at least), take another word, or write nothing."""
    if kind == 2:
        return ""
    if kind == 1:
        return str(rng.choice([word for word in WORDS if word != text]))
    letters = list(text)
    places = rng.choice(len(letters), size=max(2, len(letters) // 3), replace=False)
    for place in places:
        others = [letter for letter in string.ascii_uppercase if letter != letters[place].upper()]
        letters[place] = str(rng.choice(others))
    return "".join(letters)


def _written(texts: Sequence[str], rng: np.random.Generator) -> Tensor:
    """[N, T, 3, H, W]: a noise-free gradient that drifts, with the text in a light band."""
    import cv2  # heavy, and no other task here needs it

    clips = []
    for text in texts:
        tint, place = rng.uniform(0.2, 0.8, size=3), int(rng.integers(24, TEXT_SIDE - 12))
        frames = []
        for time in np.linspace(0.0, 1.0, 9):
            ramp = 0.5 + 0.5 * np.sin(np.linspace(0, 3, TEXT_SIDE)[None, :] + 2 * time)
            frame = np.full((TEXT_SIDE, TEXT_SIDE, 3), 255.0) * tint * ramp[..., None]
            frame = np.ascontiguousarray(frame.astype(np.uint8))
            frame[place - 16 : place + 8] = 235
            at = (4, place)
            cv2.putText(frame, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1)
            frames.append(torch.from_numpy(frame))
        clips.append(torch.stack(frames))
    return torch.stack(clips).permute(0, 1, 4, 2, 3).float() / 255.0


def blur(num_clips: int, *, seed: int, split: str) -> Sets:
    """True clips, against others that lost their fine detail: a box of 3 to 5 px, twice."""
    true = ClipSet.draw(None, num_clips, seed=seed, split=split)
    other = ClipSet.draw(None, num_clips, seed=seed + 1, split=split)
    rng = _rng("blur", seed, split, "broken")
    clips = []
    for video in other.videos:
        size = int(rng.choice((3, 5)))
        for _ in range(2):
            video = functional.avg_pool2d(video, size, 1, size // 2, count_include_pad=False)
        clips.append(video)
    return true, replace(other, videos=torch.stack(clips))


def scene_drift(num_clips: int, *, seed: int, split: str) -> Sets:
    """True clips, against others that turn slowly into another place: upside down, other hues."""
    true = ClipSet.draw(None, num_clips, seed=seed, split=split)
    other = ClipSet.draw(None, num_clips, seed=seed + 1, split=split)
    target = other.videos.roll(1, dims=0).flip(-2)[:, :, [2, 0, 1]]
    weight = torch.linspace(0.0, 1.0, other.videos.shape[1])[:, None, None, None]
    return true, replace(other, videos=torch.lerp(other.videos, target, weight))


def wrong_topic(num_clips: int, *, seed: int, split: str) -> Sets:
    """True clips with their captions, against true clips under sentences about something else."""
    true = ClipSet.draw(None, num_clips, seed=seed, split=split)
    other = ClipSet.draw(None, num_clips, seed=seed + 1, split=split)
    rng = _rng("wrong_topic", seed, split, "broken")
    texts = [str(rng.choice(OTHER_TOPICS)) for _ in range(num_clips)]
    prompts = tuple(Prompt(prompt_id=prompt_id(text), text=text) for text in texts)
    return true, replace(other, prompts=prompts)
