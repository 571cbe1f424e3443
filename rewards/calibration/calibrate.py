"""Measures how well scorers tell true clips from broken ones, and how fast they are.

The clips are of held-out captions and of seeds that no scorer was tuned on (tuning used training
captions and seeds below 100 000). What a scorer is measured on: `tasks.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rlvid.config.rewards import ScorerConfig
from rlvid.data.tiny_world import BREAKAGES
from rlvid.evaluation.statistics import auc
from rlvid.rewards.base import Endpoint, GroupReward, Reward, RewardError, UsesServer
from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.rewards.calibration.report import (
    CalibrationReport,
    CalibrationRow,
    GradedRow,
    ScorerRow,
)
from rlvid.rewards.calibration.tasks import get_graded_task, get_task
from rlvid.rewards.registry import open_scorer

Floats = npt.NDArray[np.float64]
Scorers = Mapping[str, Reward | GroupReward]


def run_calibration(
    names: Sequence[str],
    num_clips: int,
    seed: int,
    *,
    server: str = "",
    server_model: str = "",
    unclaimed: bool = False,
    skip_unready: bool = False,
) -> CalibrationReport:
    """Calibrate scorers given by short name or `package.module:Class`, with default settings.

    Args:
        server: URL of a model server for the scorers that ask one; "" starts the embedded judge
            when there is such a scorer, and ends it afterwards.
        server_model: name that the server serves; "" takes its first.
        skip_unready: leave out, and name, the scorers that cannot be opened here (weights or a
            package missing, no server) instead of raising.
    """
    scorers: dict[str, Reward | GroupReward] = {}
    skipped: dict[str, str] = {}
    with ExitStack() as opened:
        endpoint: Endpoint | None = None
        for name in names:
            try:
                scorer = open_scorer(ScorerConfig(use=name), f"rewards calibrate {name}")
                if isinstance(scorer, UsesServer):
                    if endpoint is None:
                        endpoint = _endpoint(server, server_model, opened)
                    scorer.connect([endpoint])
                scorers[name] = scorer
            except (ValueError, ImportError, OSError, RewardError) as error:
                if not skip_unready:
                    raise
                skipped[name] = str(error)
        return calibrate(
            scorers, num_clips=num_clips, seed=seed, unclaimed=unclaimed, skipped=skipped
        )


def _endpoint(server: str, server_model: str, opened: ExitStack) -> Endpoint:
    """Return the server of the URL, or one of our own that lives as long as `opened`."""
    from rlvid.rewards.vllm.standalone import endpoint_of, own_server

    if server:
        return endpoint_of(server, model=server_model)
    return opened.enter_context(own_server())


def calibrate(
    scorers: Scorers,
    *,
    num_clips: int,
    seed: int,
    split: str = "heldout",
    unclaimed: bool = False,
    skipped: Mapping[str, str] | None = None,
) -> CalibrationReport:
    """Score `num_clips` true and as many broken clips for everything the scorers claim to see.

    True and broken clips have different captions' draws and seeds, so a scorer cannot win by
    remembering.

    Args:
        unclaimed: also measure every scorer on the tiny world's breakages it does not claim, which
            shows whether it reacts to everything.
    """
    if num_clips < 2:
        raise ValueError(f"calibrate: num_clips must be at least 2, got {num_clips}")
    clock = _Clock()
    rows = _breakage_rows(scorers, num_clips, seed, split, unclaimed, clock)
    for task in _named(scorers, "CLAIMS"):
        if task in BREAKAGES:
            continue
        true, broken = get_task(task)(num_clips, seed=seed, split=split)
        for name, scorer in _claiming(scorers, "CLAIMS", task):
            rows.append(_row(name, task, True, clock.scores(name, scorer, true, broken)))
    graded = []
    for task in _named(scorers, "GRADED"):
        clips, strengths = get_graded_task(task)(num_clips, seed=seed, split=split)
        for name, scorer in _claiming(scorers, "GRADED", task):
            (scores,) = clock.scores(name, scorer, clips)
            graded.append(_graded_row(name, task, strengths, scores))
    return CalibrationReport(
        rows=tuple(rows),
        graded=tuple(graded),
        scorers=tuple(clock.row(name, scorer) for name, scorer in scorers.items()),
        skipped=dict(skipped or {}),
        seed=seed,
    )


def _breakage_rows(
    scorers: Scorers, num_clips: int, seed: int, split: str, unclaimed: bool, clock: _Clock
) -> list[CalibrationRow]:
    """Rows of the tiny world's breakages; all scorers share one set of true clips."""
    claimed = set(_named(scorers, "CLAIMS"))
    wanted = [name for name in BREAKAGES if unclaimed or name in claimed]
    if not wanted:
        return []
    true_clips = ClipSet.draw(None, num_clips, seed=seed, split=split)
    true: dict[str, Tensor] = {}
    rows = []
    for breakage in wanted:
        broken = ClipSet.draw(breakage, num_clips, seed=seed, split=split)
        for name, scorer in scorers.items():
            is_claimed = breakage in getattr(scorer, "CLAIMS", ())
            if not (is_claimed or unclaimed):
                continue
            if name not in true:
                (true[name],) = clock.scores(name, scorer, true_clips)
            (scores,) = clock.scores(name, scorer, broken)
            rows.append(_row(name, breakage, is_claimed, [true[name], scores]))
    return rows


def _named(scorers: Scorers, attribute: str) -> list[str]:
    """Return what the scorers name in CLAIMS or GRADED, once each, in their order."""
    names = (name for scorer in scorers.values() for name in getattr(scorer, attribute, ()))
    return list(dict.fromkeys(names))


def _claiming(
    scorers: Scorers, attribute: str, task: str
) -> Iterable[tuple[str, Reward | GroupReward]]:
    return [(n, scorer) for n, scorer in scorers.items() if task in getattr(scorer, attribute, ())]


class _Clock:
    """Scores clips and adds up how long each scorer took."""

    def __init__(self) -> None:
        self._wall: dict[str, float] = {}
        self._cpu: dict[str, float] = {}
        self._clips: dict[str, int] = {}

    def scores(self, name: str, scorer: Reward | GroupReward, *sets: ClipSet) -> list[Tensor]:
        wall, cpu = time.perf_counter(), time.process_time()
        results = [clips.scores(scorer) for clips in sets]
        self._wall[name] = self._wall.get(name, 0.0) + time.perf_counter() - wall
        self._cpu[name] = self._cpu.get(name, 0.0) + time.process_time() - cpu
        self._clips[name] = self._clips.get(name, 0) + sum(len(clips.prompts) for clips in sets)
        return results

    def row(self, name: str, scorer: Reward | GroupReward) -> ScorerRow:
        clips = self._clips.get(name, 0)
        return ScorerRow(
            scorer=name,
            clips_per_s=clips / self._wall[name] if clips else 0.0,
            cpu_ms_per_clip=1e3 * self._cpu[name] / clips if clips else 0.0,
            blind_to=tuple(getattr(scorer, "BLIND_TO", ())),
        )


def _row(name: str, task: str, is_claimed: bool, scores: Sequence[Tensor]) -> CalibrationRow:
    true, broken = (np.asarray(side, dtype=np.float64) for side in scores)
    seen_true, seen_broken = true[np.isfinite(true)], broken[np.isfinite(broken)]
    if not (seen_true.size and seen_broken.size):
        raise ValueError(f"calibrate: {name} could judge no clip of {task}: every score is missing")
    area = auc(seen_true, seen_broken)
    return CalibrationRow(
        scorer=name,
        breakage=task,
        is_claimed=is_claimed,
        auc=area.value,
        low=area.low,
        high=area.high,
        true_mean=float(seen_true.mean()),
        broken_mean=float(seen_broken.mean()),
        num_clips=len(true),
        num_missing=len(true) + len(broken) - seen_true.size - seen_broken.size,
    )


def _graded_row(name: str, task: str, strengths: Tensor, scores: Tensor) -> GradedRow:
    values = np.asarray(scores, dtype=np.float64)
    seen = np.isfinite(values)
    if not seen.any():
        raise ValueError(f"calibrate: {name} could judge no clip of {task}: every score is missing")
    rho = spearman(np.asarray(strengths, dtype=np.float64)[seen], values[seen])
    num_missing = int((~seen).sum())
    return GradedRow(scorer=name, task=task, rho=rho, num_clips=len(seen), num_missing=num_missing)


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation of two [N], ties sharing their mean rank; 0 when one side is constant."""
    ranks = [_ranks(values) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / scale if scale > 0 else 0.0


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)
