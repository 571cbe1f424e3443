"""How well a clip and its whole sentence belong together, by a contrastive video-text network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rlvid.models.tiny import video_text_folder
from rlvid.models.tiny.video_text_network import UNKNOWN, WEIGHTS_FILE, VideoTextNetwork
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.specialists.needs import fingerprint


class VideoText:
    """Cosine similarity of clip and prompt in the space of a video-text network of the tiny world.

    About 0.2 for a clip with its own caption and about 0.03 for one whose clip differs in a single
    attribute: the network was trained with a scale of 46, so small differences are large for it.

    Sees: object, colour, motion, direction and camera against the sentence.
    Blind to: what no caption says, so flicker, vanishing, wrong physics of the right motion.
    A prompt of which it knows less than half the words is not judged (NaN).
    """

    CLAIMS = ("wrong_colour", "wrong_object", "wrong_direction", "wrong_motion", "wrong_camera")
    BLIND_TO = ("flicker", "vanishing", "whatever no caption says", "words it was not trained on")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str | None = None
        """Where the weights are; None is the network that ships with rlvid."""
        score: Literal["cosine", "probability"] = "cosine"
        """probability: sigmoid of the trained logit; it is flat far from the border."""

    def __init__(self, config: Config) -> None:
        folder = video_text_folder() if config.folder is None else Path(config.folder)
        self._network = VideoTextNetwork.load(folder)
        self._score = config.score
        self.version = fingerprint(folder / WEIGHTS_FILE)
        self.clip_spec = ClipSpec(fps=8, min_frames=9)

    @torch.no_grad()
    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32."""
        # One clip at a time: convolution kernels differ with the batch size, and a score must not.
        pairs = zip(videos, prompts, strict=True)
        return torch.stack([self._one(video, prompt.text) for video, prompt in pairs])

    def _one(self, video: Tensor, text: str) -> Tensor:
        numbers = self._network.word_numbers(text)
        if 2 * numbers.count(UNKNOWN) > len(numbers):
            return torch.tensor(torch.nan)
        clip = self._network.embed_videos(video[None].float().cpu())
        sentence = self._network.embed_texts([text])
        if self._score == "cosine":
            return (clip @ sentence.T)[0, 0]
        return self._network.logits(clip, sentence)[0, 0].sigmoid()
