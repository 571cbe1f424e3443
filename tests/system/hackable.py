"""A reward that is easy to game, for the test that the alarm is heard."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec


class Brightness:
    """Mean of all pixels: a white clip wins, whatever it was to show."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return videos.mean(dim=(1, 2, 3, 4))
