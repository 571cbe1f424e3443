"""Serves a reward model that the `reward_model` phase trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rlvid.models.tiny import reward_model_folder
from rlvid.records import Prompt
from rlvid.reward_models import PARTS
from rlvid.reward_models.folder import load_reward_model
from rlvid.rewards.base import ClipSpec, Serving

WHERE = "trained_reward.folder"
SHIPPED = "tiny"
PART_CLAIMS: Mapping[str, tuple[str, ...]] = {
    "VQ": (
        "flicker", "shake", "warp", "shuffle", "over_exposed", "blurred", "noise", "jitter",
    ),
    "MQ": (
        "reversed_gravity", "teleport", "vanish", "energy_gain", "hover", "through_wall",
        "flicker", "shake", "warp", "shuffle", "freeze_and_jump",
        "over_exposed", "washed_out", "still", "blocky", "blurred", "jitter",
    ),
}  # fmt: skip
"""What parts of the shipped model see; it was trained with no label of these. As for the overall:
what is at 0.95 or above at the lower end of its interval (tests/bench/results/reward_model.json).
TA claims nothing: no breakage shows a clip of quite another caption."""


class TrainedReward:
    """The z-scored parts of a trained reward model, or their sum (VideoAlign's overall).

    A part of 0 is an average training clip, 1 is one standard deviation better. Sees what its
    pairs taught it. Blind to the rest, and unbounded: a policy that leaves the training clips far
    behind can raise it without being better, so train with a second opinion beside it. MQ of
    VideoAlign is known to punish still video; whether yours does, its pairs decide.

    The model that ships was trained on clips of the tiny world by who made them (true, decoded,
    sampled in 20 steps, in 2) and on own degradations; no critic labelled a pair. Its MQ tells
    motion and picture that go wrong, its VQ bad pictures. Its TA tells a clip of quite another
    caption and is blind to one wrong attribute.
    """

    CLAIMS: tuple[str, ...] = (
        "flicker",
        "shake",
        "warp",
        "shuffle",
        "freeze_and_jump",
        "noise",
        "jitter",
    )
    """Of the shipped model's overall; its parts claim others, another folder nothing."""
    BLIND_TO: tuple[str, ...] = (
        "one wrong attribute",
        "objects that appear or change colour",
        "saturation",
        "a fine grid",
    )

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str = SHIPPED
        """What the reward_model phase wrote, `artifact:<name>` of a phase of the same run, or
        "tiny", the model that ships with rlvid."""
        part: Literal["overall", "VQ", "MQ", "TA"] = "overall"
        confidence_bound: float = 0.0
        """Spreads taken off each part's mean (lower confidence bound): a clip of which the model is
        unsure scores less. Needs a model trained with head: spread."""
        device: str = "cpu"

    def __init__(self, config: Config) -> None:
        if config.folder.startswith("artifact:"):
            raise ValueError(
                f"{WHERE}: {config.folder!r} is made by a reward_model phase of the same run; "
                "outside of such a run give the folder it wrote"
            )
        if config.confidence_bound < 0.0:
            raise ValueError(
                "trained_reward.confidence_bound: expected 0 or more, got "
                f"{config.confidence_bound}"
            )
        self._device = torch.device(config.device)
        is_shipped = config.folder == SHIPPED
        folder = reward_model_folder() if is_shipped else Path(config.folder).expanduser()
        self._trained = load_reward_model(folder, where=WHERE, device=self._device)
        if not is_shipped or config.part != "overall":
            self.CLAIMS = PART_CLAIMS.get(config.part, ()) if is_shipped else ()
            self.BLIND_TO = type(self).BLIND_TO if is_shipped else ()
        if config.confidence_bound and not self._trained.model.has_spread:
            raise ValueError(
                f"trained_reward.confidence_bound: {config.folder!r} has no spread; train it with "
                "reward_model.head: spread, or leave confidence_bound at 0"
            )
        self._config = config
        clip = self._trained.clip
        self.clip_spec = ClipSpec(
            fps=round(clip.fps), num_frames=clip.num_frames, height=clip.height, width=clip.width
        )
        self.serving = Serving(device=self._device.type)
        self.version = self._trained.digest

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32."""
        parts = self.parts(videos, prompts)
        if self._config.part != "overall":
            return parts[self._config.part]
        return torch.stack([parts[part] for part in PARTS]).sum(dim=0)

    @torch.no_grad()
    def parts(self, videos: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return each part's z-scored value [B], the confidence bound taken off."""
        rows = []
        # One clip at a time: convolution kernels differ with the batch size, and a score must not.
        for video, prompt in zip(videos, prompts, strict=True):
            clip = video[None].float().to(self._device)
            judged = self._trained.model(clip, [prompt.text])
            value = judged.mean[0]
            if judged.spread is not None:
                value = value - self._config.confidence_bound * judged.spread[0]
            rows.append(value.float().cpu())
        table = torch.stack(rows)
        scores = self._trained.z_scores
        return {
            part: (table[:, index] - scores[part].mean) / scores[part].std
            for index, part in enumerate(PARTS)
        }
