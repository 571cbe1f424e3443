"""Which combinations are tried, which are worth having, and which is chosen; pure functions.

A setting is worth having when no other is both faster and nearer to the plain clips. Settings are
ranked by their speed-up, which was measured against the plain model turn by turn: seconds taken at
different times on a busy machine cannot be compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from pydantic import ValidationError

from rlvid.config.errors import describe
from rlvid.config.inference import InferenceConfig, SearchSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting, measured beside the plain model on the same prompts and seeds."""

    config: InferenceConfig
    seconds: float
    """A clip, the median of the repeats."""
    speedup: float
    """Seconds of the plain model over its own, the median of pairs measured turn by turn; 1 for the
    plain model itself."""
    speedup_range: tuple[float, float]
    """Least and greatest of the pairs; the plain model's says how noisy the machine is."""
    psnr_db: float
    """Of its clips against the plain ones, the mean; at most `measure.PSNR_OF_EQUALS`."""
    psnr_db_min: float
    """Of the clip that changed most."""
    feature_distance: float
    """1 - cosine of video features of its clips and the plain ones, the mean."""
    reward_change: float
    """Its mean reward less that of the plain clips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A setting that cannot run here, and why."""

    config: InferenceConfig
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far a chosen setting may be from the plain model."""

    min_psnr_db: float
    max_reward_loss: float

    def hold(self, point: Point) -> bool:
        return point.psnr_db >= self.min_psnr_db and point.reward_change >= -self.max_reward_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search has measured."""

    points: tuple[Point, ...]
    """The plain model first, then in the order of the search."""
    left_out: tuple[LeftOut, ...]
    chosen: Point


Measure = Callable[[InferenceConfig], Point | LeftOut]


def pareto_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that no other beats in speed-up and PSNR, fastest first.

    One beats another when it is at least as good in both and better in one; of equals all stay.
    """
    front = [
        point
        for point in points
        if not any(
            other.speedup >= point.speedup
            and other.psnr_db >= point.psnr_db
            and (other.speedup > point.speedup or other.psnr_db > point.psnr_db)
            for other in points
        )
    ]
    return tuple(sorted(front, key=lambda point: -point.speedup))


def choose(points: Sequence[Point], bounds: Bounds) -> Point:
    """Return the fastest point within the bounds; the nearer one of equally fast ones.

    Raises:
        ValueError: none is; the plain model always should be.
    """
    within = [point for point in points if bounds.hold(point)]
    if not within:
        raise ValueError(
            f"optimise: none of {len(points)} settings is within the bounds (PSNR of at least "
            f"{bounds.min_psnr_db:g} dB, reward loss of at most {bounds.max_reward_loss:g}): "
            "expected the plain model to be. Give bounds that equal clips keep"
        )
    return max(within, key=lambda point: (point.speedup, point.psnr_db))


def search(
    space: SearchSpace, measure: Measure, bounds: Bounds, *, is_exhaustive: bool = False
) -> Found:
    """Measure settings of a space and choose one.

    Greedy: axis by axis every value is tried beside the best setting so far, which takes the sum of
    the axes' lengths; exhaustive: their product.

    Raises:
        ValueError: the plain model itself cannot be measured, or no point is within the bounds.
    """
    plain = measure(InferenceConfig())
    if isinstance(plain, LeftOut):
        raise ValueError(f"optimise: the plain model cannot be measured: {plain.reason}")
    points, left_out = [plain], []
    tried = [plain.config]
    for axis in _rounds(space, is_exhaustive=is_exhaustive):
        best = choose(points, bounds).config
        for changes in axis:
            result = _measured(best, changes, measure, tried)
            if isinstance(result, Point):
                points.append(result)
            elif result is not None:
                left_out.append(result)
    return Found(points=tuple(points), left_out=tuple(left_out), chosen=choose(points, bounds))


def num_settings(space: SearchSpace, *, is_exhaustive: bool) -> int:
    """Return how many settings a search measures at most, the plain one included."""
    lengths = [len(values) for values in space.axes().values()]
    return prod(lengths) + 1 if is_exhaustive else sum(lengths) + 1


def _rounds(space: SearchSpace, *, is_exhaustive: bool) -> Iterator[list[dict[str, object]]]:
    """Yield what is changed about the best setting, a list for each round."""
    axes = space.axes()
    if is_exhaustive:
        combinations = itertools.product(*axes.values())
        yield [dict(zip(axes, values, strict=True)) for values in combinations]
        return
    for name, values in axes.items():
        yield [{name: value} for value in values]


def _measured(
    best: InferenceConfig,
    changes: dict[str, object],
    measure: Measure,
    tried: list[InferenceConfig],
) -> Point | LeftOut | None:
    """Return None for a setting that was tried before."""
    changed = best.model_copy(update=changes)
    if changed in tried:
        return None
    tried.append(changed)
    try:
        config = InferenceConfig.model_validate(changed.model_dump())
    except ValidationError as error:
        return LeftOut(config=changed, reason="; ".join(describe(error, InferenceConfig)))
    return measure(config)
