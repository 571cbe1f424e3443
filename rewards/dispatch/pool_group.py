"""One group on its way through the pool, from what was submitted to the scores that come back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlvid.records import Score
from rlvid.rewards.decoding import ClipInfo
from rlvid.rewards.scoring import GroupScores


@dataclass(slots=True, eq=False)
class PoolGroup:
    """What the pool knows of a group; clips and latents are references it only hands on."""

    ticket: int
    payload: Any
    """What the decoder is to be called with; None when clips were given."""
    promised: ClipInfo | None
    """Who the clips are, of files that may turn out to be no videos: their scores are missing then.
    None for a group of this run: that it cannot be decoded stops the run."""
    labels: tuple[str, ...]
    """Scorers that must answer, in the recipe's order; none when only the clips are wanted."""
    frames: Any = None
    info: ClipInfo | None = None
    scoring_since: float = 0.0
    score_s: float = 0.0
    _scores: dict[tuple[str, int], Score] = field(default_factory=dict)
    _flops: dict[str, float] = field(default_factory=dict)
    """By scorer; NaN where those of a clip are not known, which adds up to NaN."""

    def clips_are(self, info: ClipInfo, frames: Any, now: float) -> None:
        if self.info is None:  # clips that were lost and decoded again get no second deadline
            self.scoring_since = now
        self.info, self.frames = info, frames

    def settle(self, label: str, index: int, value: float | None, error: str = "") -> None:
        """Note a score; None is missing for the reason `error`. The first word counts."""
        info = self._clips()
        score = Score(
            group_id=info.group_id,
            index=index,
            scorer=label,
            value=value,
            error=(error or "no reason given") if value is None else None,
        )
        self._scores.setdefault((label, index), score)

    def worked(self, label: str, flops: float | None) -> None:
        """Note what a scorer's answer for one clip took, None where that is not known."""
        self._flops[label] = self._flops.get(label, 0.0) + (math.nan if flops is None else flops)

    def lacking(self, label: str) -> Sequence[int]:
        """Return the rows of the clips that `label` has not answered for, 0 to G-1."""
        indices = self._clips().indices
        return [row for row, index in enumerate(indices) if (label, index) not in self._scores]

    @property
    def is_done(self) -> bool:
        return self.info is not None and len(self._scores) == len(self.labels) * len(
            self.info.indices
        )

    def scores(self) -> GroupScores:
        info = self._clips()
        flops = {label: self._flops.get(label, 0.0) for label in self.labels}
        return GroupScores(
            scores=tuple(
                self._scores[label, index] for label in self.labels for index in info.indices
            ),
            decode_s=info.decode_s,
            score_s=self.score_s,
            guards=info.guards,
            flops={label: number for label, number in flops.items() if not math.isnan(number)},
        )

    def _clips(self) -> ClipInfo:
        assert self.info is not None, f"group of ticket {self.ticket} is not decoded yet"
        return self.info
