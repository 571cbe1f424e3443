"""The report's view of the reward: curves, agreement, guards, alarms with their steps."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.observability.charts import Mark, Series, line_chart
from rlvid.observability.report import ReportData, build_report
from rlvid.observability.reward_section import (
    AlarmRow,
    correlation_matrix,
    guard_charts,
    marks_of,
    scorer_charts,
    weight_chart,
)

ALARM = AlarmRow(
    phase="00_grpo",
    step=2,
    kind="judge_drift",
    subject="judge",
    message="held-out judge 'judge' fell by <0.3>",
)


def row(step: int, **metrics: float) -> dict[str, Any]:
    named = {name.replace("__", "/").replace("_AND_", "~"): v for name, v in metrics.items()}
    return {"phase": "00_grpo", "step": step, "metrics": named}


def rows() -> list[dict[str, Any]]:
    return [
        row(
            step,
            rollout__reward__mean=0.1 * step,
            rewards__a__mean=0.1 * step,
            rewards__a__weight=1.0,
            heldout__judge__mean=0.5 - 0.1 * step,
            guards__grid__mean=0.1,
            correlation__a_AND_b__spearman_in_group=-0.5 + 0.25 * step,
            correlation__a_AND_b__pearson=0.75,
        )
        for step in range(1, 4)
    ]


@pytest.fixture(scope="module")
def page() -> str:
    return build_report(ReportData(title="a run", summary=[], rows=rows(), alarms=[ALARM]))


def test_alarm_is_on_the_page_with_its_step_and_a_line_in_the_charts(page: str) -> None:
    """The message may hold what a prompt or scorer is called, so it is escaped."""
    assert "<td>2</td>" in page
    assert "fell by &lt;0.3&gt;" in page
    assert "step 2: judge_drift: judge</title>" in page


def test_page_says_when_nothing_was_found_and_when_nobody_looked() -> None:
    """A missing section must not read as a clean bill."""
    watched = build_report(ReportData(title="a", summary=[], rows=rows(), alarms=[]))
    unwatched = build_report(ReportData(title="a", summary=[], rows=rows(), alarms=None))
    assert '<span class="calm">None.</span>' in watched
    assert "<h2>Alarms</h2>" not in unwatched


def test_matrix_is_of_the_last_step_and_symmetric() -> None:
    matrix = correlation_matrix(rows())
    assert matrix is not None
    assert (matrix.step, list(matrix.names)) == (3, ["a", "b"])
    [[first, upper], [lower, last]] = matrix.cells
    assert (first, last) == (None, None)
    assert upper is not None
    assert upper == lower
    assert upper.value == pytest.approx(0.25)
    assert "pearson +0.75" in upper.note
    assert correlation_matrix([row(0, rewards__a__mean=1.0)]) is None


def test_judge_is_said_to_score_no_rollout() -> None:
    charts = scorer_charts(rows())
    assert ["it scores no training rollout" in chart for chart in charts] == [False, True]


def test_weights_are_drawn_only_where_a_curriculum_moves_one() -> None:
    assert weight_chart(rows()) == ""
    moved = [row(step, rewards__a__weight=float(step)) for step in range(3)]
    assert "Weights in force" in weight_chart(moved)


def test_alarms_of_one_step_share_a_line_and_others_stay_outside() -> None:
    marks = marks_of([ALARM, ALARM])
    assert marks == [Mark(at=2.0, label="judge_drift: judge; judge_drift: judge")]
    series = [Series(label="a", points=[(0, 1.0), (1, 2.0)])]
    assert 'class="mark"' not in line_chart("a", series, marks=marks)


def test_guard_that_stays_near_zero_is_drawn_near_zero() -> None:
    """On an axis of its own, logarithmic at that, noise at 1e-9 fills the whole height."""
    tiny = [row(step, guards__grid__mean=10.0 ** -(3 + 3 * step)) for step in range(3)]
    [chart] = guard_charts(tiny)
    assert ">0.1</text>" in chart
    assert "e-" not in chart.split("</svg>")[0].split("<circle")[0]
