"""Measures how well scorers tell true clips of the tiny world from broken ones.

The clips are of held-out captions and of seeds that no scorer was tuned on (tuning used training
captions and seeds below 100 000).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from rlvid.config.rewards import ScorerConfig
from rlvid.data.tiny_world import (
    BREAKAGES,
    all_facts,
    breakages_for,
    caption,
    render_clip,
    split_of,
)
from rlvid.evaluation.statistics import auc
from rlvid.records import Prompt
from rlvid.rewards.base import GroupReward, Reward
from rlvid.rewards.registry import open_scorer
from rlvid.seeds import derive_seed, prompt_id

REQUIRED_AUC = 0.95
"""What a scorer must reach on every breakage it claims to see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRow:
    """One scorer against one breakage."""

    scorer: str
    breakage: str
    is_claimed: bool
    """Whether the scorer says that it sees this breakage."""
    auc: float
    """Probability that a true clip scores above a broken one."""
    low: float
    high: float
    """95 % bootstrap interval of the auc."""
    true_mean: float
    broken_mean: float
    num_clips: int
    """Clips on each side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """What `rlvid rewards calibrate` prints."""

    rows: tuple[CalibrationRow, ...]
    seed: int

    @property
    def failures(self) -> tuple[CalibrationRow, ...]:
        """Claims that are not kept."""
        return tuple(row for row in self.rows if row.is_claimed and row.auc < REQUIRED_AUC)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def run_calibration(names: Sequence[str], num_clips: int, seed: int) -> CalibrationReport:
    """Calibrate scorers given by short name or `package.module:Class`, with default settings."""
    scorers = {
        name: open_scorer(ScorerConfig(use=name), f"rewards calibrate {name}") for name in names
    }
    return calibrate(scorers, num_clips=num_clips, seed=seed)


def calibrate(
    scorers: Mapping[str, Reward | GroupReward],
    *,
    num_clips: int,
    seed: int,
    split: str = "heldout",
) -> CalibrationReport:
    """Score `num_clips` true and as many broken clips for every breakage.

    True and broken clips have different captions' draws and seeds, so a scorer cannot win by
    remembering. A claim is the scorer's attribute `CLAIMS`, a tuple of breakage names.
    """
    if num_clips < 2:
        raise ValueError(f"calibrate: num_clips must be at least 2, got {num_clips}")
    true_by_motion = ClipSet.draw(None, num_clips, seed=seed, split=split)
    true_scores = {name: true_by_motion.scores(scorer) for name, scorer in scorers.items()}
    rows = []
    for breakage in BREAKAGES:
        broken = ClipSet.draw(breakage, num_clips, seed=seed, split=split)
        for name, scorer in scorers.items():
            claims = getattr(scorer, "CLAIMS", ())
            rows.append(_row(name, breakage, claims, true_scores[name], broken.scores(scorer)))
    return CalibrationReport(rows=tuple(rows), seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSet:
    """Clips with the captions they claim to show."""

    videos: Tensor
    """[N, T, 3, H, W]."""
    prompts: tuple[Prompt, ...]

    @classmethod
    def draw(cls, breakage: str | None, num_clips: int, *, seed: int, split: str) -> ClipSet:
        """Render clips of random captions of the split on which the breakage can be seen."""
        known = [
            facts
            for facts in all_facts()
            if split_of(facts) == split and (breakage is None or breakage in breakages_for(facts))
        ]
        rng = np.random.default_rng(derive_seed(seed, "calibrate", split, str(breakage)))
        chosen = [known[int(n)] for n in rng.integers(len(known), size=num_clips)]
        first = 100_000 if split == "heldout" else 0
        seeds = [first + int(n) for n in rng.integers(90_000, size=num_clips)]
        clips = [render_clip(f, s, breakage=breakage) for f, s in zip(chosen, seeds, strict=True)]
        prompts = tuple(
            Prompt(prompt_id=prompt_id(caption(facts)), text=caption(facts), facts=facts)
            for facts in chosen
        )
        return cls(videos=torch.stack(clips), prompts=prompts)

    def scores(self, scorer: Reward | GroupReward) -> Tensor:
        """[N]; a group-wise scorer sees each clip as a group of its own."""
        if isinstance(scorer, GroupReward):
            pairs = zip(self.videos, self.prompts, strict=True)
            return torch.cat([scorer.score_group(video[None], prompt) for video, prompt in pairs])
        return scorer.score(self.videos, self.prompts)


def _row(
    name: str, breakage: str, claims: Sequence[str], true: Tensor, broken: Tensor
) -> CalibrationRow:
    area = auc(true.numpy(), broken.numpy())
    return CalibrationRow(
        scorer=name,
        breakage=breakage,
        is_claimed=breakage in claims,
        auc=area.value,
        low=area.low,
        high=area.high,
        true_mean=float(true.mean()),
        broken_mean=float(broken.mean()),
        num_clips=len(true),
    )


def render(report: CalibrationReport) -> Table:
    """Return the report as a table; claims that are not kept are red."""
    table = Table(title="Scorers against broken clips (AUC, 95 % interval)")
    for heading in ("scorer", "breakage", "claimed", "AUC", "interval", "true", "broken"):
        table.add_column(heading, justify="left" if heading in ("scorer", "breakage") else "right")
    for row in report.rows:
        style = "red" if row in report.failures else ("bold" if row.is_claimed else "dim")
        table.add_row(
            row.scorer,
            row.breakage,
            "yes" if row.is_claimed else "",
            f"{row.auc:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.true_mean:.3f}",
            f"{row.broken_mean:.3f}",
            style=style,
        )
    return table
