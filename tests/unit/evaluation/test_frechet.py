"""The Frechet distance against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rlvid.evaluation.frechet import frechet_distance

SQUARE = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
"""Mean 0, covariance 4/3 times one."""


def test_same_set_has_no_distance() -> None:
    assert frechet_distance(SQUARE, SQUARE) == pytest.approx(0.0, abs=1e-12)


def test_shift_alone_counts_squared() -> None:
    assert frechet_distance(SQUARE, SQUARE + [3.0, 4.0]) == pytest.approx(25.0)


def test_spread_alone_is_the_difference_of_the_roots() -> None:
    """Twice as wide: each axis has (2 s - s)^2 = s^2 = 4/3, and there are two."""
    assert frechet_distance(SQUARE, 2.0 * SQUARE) == pytest.approx(8.0 / 3.0)


def test_axes_that_do_not_commute() -> None:
    """Covariances diag(4, 1) and its turn by 45 degrees.

    Of two axes the trace of the root of a product is sqrt(tr(S1 S2) + 2 sqrt(det S1 det S2)) =
    sqrt(12.5 + 8), so the distance is 10 - 2 sqrt(20.5).
    """
    turn = np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2.0)
    wide = SQUARE * np.sqrt(3.0 / 4.0) * [2.0, 1.0]
    assert frechet_distance(wide, wide @ turn) == pytest.approx(10.0 - 2.0 * np.sqrt(20.5))


def test_order_of_sets_does_not_matter() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(50, 5)), draw.normal(size=(40, 5)) * 1.5 + 0.3
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([[1.0, 2.0]], SQUARE, r"first: expected \[N, D\] with at least 2"),
        (SQUARE, [1.0, 2.0], r"second: expected \[N, D\]"),
        (SQUARE, np.zeros((4, 3)), "features of one length, got 2 and 3"),
        (SQUARE, np.full((4, 2), np.nan), "second: some numbers are not finite"),
    ],
)
def test_bad_features_are_refused(first: object, second: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(first, second)  # type: ignore[arg-type]
