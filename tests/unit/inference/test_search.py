"""The choice among measured settings, on points made by hand."""

from __future__ import annotations

import pytest

from rlvid.config.inference import InferenceConfig, SearchSpace, StepCacheConfig
from rlvid.inference.search import (
    Bounds,
    LeftOut,
    Point,
    choose,
    num_settings,
    pareto_front,
    search,
)

BOUNDS = Bounds(min_psnr_db=30.0, max_reward_loss=0.01)


def point(
    speedup: float,
    psnr_db: float,
    *,
    reward_change: float = 0.0,
    config: InferenceConfig | None = None,
) -> Point:
    return Point(
        config=config or InferenceConfig(),
        seconds=1.0 / speedup,
        speedup=speedup,
        speedup_range=(speedup, speedup),
        psnr_db=psnr_db,
        psnr_db_min=psnr_db,
        feature_distance=0.0,
        reward_change=reward_change,
    )


def test_front_has_what_no_other_beats() -> None:
    plain, near, far, beaten = point(1, 100), point(2, 40), point(3, 25), point(1.9, 39)
    assert pareto_front([plain, beaten, near, far]) == (far, near, plain)


def test_equal_points_are_both_on_the_front() -> None:
    """Neither beats the other, and dropping one would depend on the order."""
    assert len(pareto_front([point(2, 40), point(2, 40)])) == 2


def test_a_point_as_fast_and_less_near_is_beaten() -> None:
    assert pareto_front([point(2, 40), point(2, 39)]) == (point(2, 40),)


def test_chosen_is_the_fastest_within_the_bounds() -> None:
    plain, near, far = point(1, 100), point(2, 40), point(3, 25)
    losing, gaining = point(4, 50, reward_change=-0.02), point(2.5, 30, reward_change=0.3)
    assert choose([plain, near, far, losing], BOUNDS) == near
    assert choose([plain, near, far, losing, gaining], BOUNDS) == gaining


def test_not_a_number_is_within_no_bounds() -> None:
    """A setting whose clips are NaN must not win by comparing false."""
    nan = float("nan")
    assert choose([point(1, 100), point(9, nan), point(9, 90, reward_change=nan)], BOUNDS) == point(
        1, 100
    )


def test_bounds_that_nothing_keeps_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"none of 1 settings is within the bounds \(PSNR of at"):
        choose([point(1, 100)], Bounds(min_psnr_db=200.0, max_reward_loss=0.0))


SPACE = SearchSpace(
    attention=(None, "flash"),
    step_cache=(StepCacheConfig(), StepCacheConfig(kind="taylorseer")),
    guidance_interval=(None, (0.5, 1.0)),
    quantise=("none",),
    compile=("none", "regional"),
    batch_prompts=(1,),
)


def measured(config: InferenceConfig) -> Point | LeftOut:
    """A machine on which each option gains something, compiling most, and flash is missing."""
    if config.attention == "flash":
        return LeftOut(config=config, reason="no GPU")
    gains = [
        1.5 if config.step_cache.kind != "none" else 1.0,
        1.2 if config.guidance_interval else 1.0,
        2.0 if config.compile != "none" else 1.0,
    ]
    losses = 10.0 * sum(gain != 1.0 for gain in gains)
    return point(gains[0] * gains[1] * gains[2], 60.0 - losses, config=config)


def test_greedy_search_goes_on_from_the_best_so_far() -> None:
    found = search(SPACE, measured, BOUNDS)
    assert [one.config.describe() for one in found.points] == [
        "plain",
        "TaylorSeer every 3, order 1",
        "TaylorSeer every 3, order 1, guidance in [0.5, 1]",
    ]
    assert found.chosen == found.points[2]
    assert len(found.points) + len(found.left_out) <= num_settings(SPACE, is_exhaustive=False)


def test_what_cannot_run_or_be_combined_is_named_and_not_replaced() -> None:
    left_out = {
        one.config.describe(): one.reason for one in search(SPACE, measured, BOUNDS).left_out
    }
    assert left_out["attention flash"] == "no GPU"
    [reason] = [text for name, text in left_out.items() if "compile" in name]
    assert "compile must be 'none' where step_cache is used" in reason


def test_exhaustive_search_finds_what_greed_walks_past() -> None:
    """Compiling gains more than the cache, which greed took first and compiling excludes."""
    found = search(SPACE, measured, BOUNDS, is_exhaustive=True)
    assert found.chosen.config.describe() == "guidance in [0.5, 1], compile regional"
    assert found.chosen.speedup == pytest.approx(2.4)
    assert len(found.points) + len(found.left_out) <= num_settings(SPACE, is_exhaustive=True)


def test_no_setting_is_measured_twice() -> None:
    seen: list[InferenceConfig] = []

    def once(config: InferenceConfig) -> Point | LeftOut:
        assert config not in seen
        seen.append(config)
        return measured(config)

    search(SPACE, once, BOUNDS)
    seen.clear()
    search(SPACE, once, BOUNDS, is_exhaustive=True)


def test_plain_model_that_fails_is_an_error() -> None:
    with pytest.raises(ValueError, match="plain model cannot be measured: broken"):
        search(SPACE, lambda config: LeftOut(config=config, reason="broken"), BOUNDS)
