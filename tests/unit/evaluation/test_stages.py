"""The table of stages from scores made by hand: 4 prompts of 2 clips."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from rlvid.evaluation.drift import Pair
from rlvid.evaluation.stages import (
    Line,
    Measured,
    TableSettings,
    motion_share,
    paired_scores,
    table,
    verdict_between,
)

PAIRS: list[Pair] = [(prompt, index) for prompt in "abcd" for index in (0, 1)]
SETTINGS = TableSettings(tie_margin=0.5, num_bootstrap=200)
JUDGE = Line(name="judge", labels=("judge",), trained=False)
AXIS = Line(name="MQ", labels=("judge", "other"), trained=False)


def _flat(value: float) -> dict[Pair, float]:
    return dict.fromkeys(PAIRS, value)


def _column(
    name: str,
    scores: Mapping[str, Mapping[Pair, float]],
    *,
    before: str | None = None,
    teacher: str | None = None,
) -> Measured:
    return Measured(name=name, scores=scores, before=before, teacher=teacher)


BASE_SCORES = {pair: float(position % 2) for position, pair in enumerate(PAIRS)}
"""Mean 0.5, standard deviation 0.5, so a margin of 0.5 is one of 0.25."""
BASE = _column("base", {"judge": BASE_SCORES})


def _raised(by: float) -> dict[str, dict[Pair, float]]:
    return {"judge": {pair: value + by for pair, value in BASE_SCORES.items()}}


def test_each_stage_is_compared_with_the_base_and_with_the_one_before() -> None:
    sft = _column("sft", _raised(0.3), before="base")
    grpo = _column("grpo", _raised(0.5), before="sft")
    found = table([BASE, sft, grpo], [JUDGE], SETTINGS)
    base, first, second = (found[name]["judge"] for name in ("base", "sft", "grpo"))
    assert (base.mean, base.vs_base, base.vs_before) == (0.5, None, None)
    assert first.vs_base == first.vs_before
    assert second.vs_base is not None
    assert second.vs_before is not None
    assert second.vs_base.difference == pytest.approx(0.5)
    assert second.vs_before.difference == pytest.approx(0.2)
    assert (second.vs_base.good, second.vs_base.same, second.vs_base.bad) == (8, 0, 0)
    assert (second.vs_before.good, second.vs_before.same) == (0, 8)  # 0.2 is within the margin
    assert (second.vs_base.gsb, second.vs_before.gsb) == (1.0, 0.0)


def test_gsb_is_good_less_bad_over_all_and_its_interval_draws_prompts() -> None:
    moved = {"a": 1.0, "b": 1.0, "c": 0.0, "d": -1.0}
    scores = {pair: value + moved[pair[0]] for pair, value in BASE_SCORES.items()}
    stage = _column("sft", {"judge": scores}, before="base")
    change = table([BASE, stage], [JUDGE], SETTINGS)["sft"]["judge"].vs_base
    assert change is not None
    assert (change.good, change.same, change.bad) == (4, 2, 2)
    assert change.gsb == 0.25
    assert change.gsb_low < 0.25 < change.gsb_high


@pytest.mark.parametrize(
    ("difference", "verdict"), [(0.1, "same"), (-0.1, "same"), (0.11, "good"), (-0.11, "bad")]
)
def test_a_difference_up_to_the_margin_is_the_same(difference: float, verdict: str) -> None:
    assert verdict_between(difference, 0.1) == verdict


def test_an_axis_is_the_mean_of_the_scorers_that_judged_a_clip_in_both() -> None:
    """A dimension leaves out captions of other kinds; it must not change who is compared."""
    other = {pair: 0.0 for pair in PAIRS if pair[0] in "ab"}
    first = _column("base", {"judge": _flat(0.2), "other": other})
    second = _column("sft", {"judge": _flat(0.4), "other": _flat(1.0)}, before="base")
    pairs, (before, after) = paired_scores([first, second], AXIS)
    assert pairs == PAIRS
    assert before == pytest.approx([0.1] * 4 + [0.2] * 4)
    assert after == pytest.approx([0.7] * 4 + [0.4] * 4)


def test_a_scorer_without_a_clip_in_common_is_an_error_that_names_all() -> None:
    stage = _column("sft", {"judge": {}}, before="base")
    with pytest.raises(ValueError, match="'judge' gave no score for 'sft' on any"):
        table([BASE, stage], [JUDGE], SETTINGS)


def test_a_student_keeps_a_share_of_its_teachers_gain_over_the_base() -> None:
    grpo = _column("grpo", _raised(0.5), before="base")
    student = _column("few_step", _raised(0.45), before="grpo", teacher="grpo")
    lost = _column("lost", _raised(0.1), before="few_step", teacher="base")
    found = table([BASE, grpo, student, lost], [JUDGE], SETTINGS)
    share = found["few_step"]["judge"].share_of_gain
    assert share is not None
    assert share.value == pytest.approx(0.9)
    assert found["grpo"]["judge"].share_of_gain is None
    assert found["lost"]["judge"].share_of_gain is None  # the base has no gain over itself


def test_motion_is_a_share_of_the_teachers() -> None:
    teacher = Measured(name="grpo", scores={}, motion=_flat(0.02))
    student = Measured(name="few_step", scores={}, motion=_flat(0.019))
    share = motion_share(student, teacher, SETTINGS)
    assert share is not None
    assert share.value == pytest.approx(0.95)
