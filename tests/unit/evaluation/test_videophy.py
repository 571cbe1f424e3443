"""VideoPhy-2's numbers against ones made by hand; what is missing is counted and never 0."""

from __future__ import annotations

import math

import pytest

from rlvid.evaluation.videophy import (
    FOLLOWED,
    UNDETERMINED,
    VIOLATED,
    PhysicsScore,
    grade_of_text,
    grade_of_value,
    rule_of_p_yes,
    rule_of_text,
    score_of_parts,
    summarise,
)
from rlvid.rewards.judges.prompt_files import load_prompt_file


def score(
    prompt: str, semantic: int | None, physical: int | None, **rules: int | None
) -> PhysicsScore:
    return PhysicsScore(
        video_id=f"{prompt}/{semantic}{physical}",
        prompt_id=prompt,
        semantic_adherence=semantic,
        physical_commonsense=physical,
        rules=rules,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("semantic", "physical", "expected"),
    [
        (4, 4, True), (5, 4, True), (3, 5, False), (5, 3, False), (1, 1, False),
        (None, 5, None), (5, None, None), (1, None, None),
    ],
)  # fmt: skip
def test_a_clip_passes_with_both_grades_at_four(
    semantic: int | None, physical: int | None, expected: bool | None
) -> None:
    assert score("p", semantic, physical).passes is expected


def test_means_and_shares_by_hand() -> None:
    """SA 5 4 2 3, PC 4 3 5 4: one clip of four passes, three by each grade alone are not four."""
    report = summarise([score("a", 5, 4), score("a", 4, 3), score("b", 2, 5), score("c", 3, 4)])
    assert report.semantic_adherence.mean == pytest.approx(14 / 4)
    assert report.physical_commonsense.mean == pytest.approx(16 / 4)
    assert report.semantic_pass.mean == pytest.approx(0.5)
    assert report.physical_pass.mean == pytest.approx(0.75)
    assert report.joint.mean == pytest.approx(0.25)
    assert (report.num_videos, report.num_prompts) == (4, 3)
    assert report.rules_followed.mean is None


def test_missing_grades_are_left_out_and_counted() -> None:
    """With 0 for the missing PC the mean would be 2.5; the passing share stays that of the rest."""
    report = summarise([score("a", 5, 5), score("b", 4, None), score("c", None, None)])
    assert report.physical_commonsense.mean == 5.0
    assert report.physical_commonsense.num_missing == 2
    assert (report.joint.mean, report.joint.num_scored, report.joint.num_missing) == (1.0, 1, 2)
    assert report.semantic_adherence.mean == 4.5


def test_nothing_scored_is_unknown() -> None:
    report = summarise([score("a", None, None)])
    assert (report.joint.mean, report.joint.low, report.joint.num_missing) == (None, None, 1)


def test_rules_that_cannot_be_determined_are_in_no_share() -> None:
    """Followed 2, violated 1, undetermined 2, no answer 1: 2 / 3 of the decided."""
    report = summarise(
        [
            score("a", 5, 5, falls=FOLLOWED, mass=UNDETERMINED, shadow=None),
            score("b", 5, 5, falls=VIOLATED, mass=UNDETERMINED, shadow=FOLLOWED),
        ]
    )
    rules = report.rules_followed
    assert rules.mean == pytest.approx(2 / 3)
    assert (rules.num_scored, rules.num_missing, report.num_undetermined) == (3, 1, 2)


def test_intervals_resample_prompts() -> None:
    """Ten clips of each prompt that all agree are no more certain than one of each."""
    once = [score(f"p{n}", 5, 5 if n % 3 else 2) for n in range(12)]
    narrow, wide = summarise(once * 10).joint, summarise(once).joint
    assert (narrow.low, narrow.high) == pytest.approx((wide.low, wide.high))
    assert wide.low is not None
    assert wide.high is not None
    assert wide.low < 2 / 3 < wide.high
    assert summarise([score("a", 5, 5)] * 9).joint.low is None  # one prompt is no sample of prompts


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, 1), (0.25, 2), (0.75, 4), (1.0, 5), (0.62, 3), (0.625, 4), (0.64, 4)],
)
def test_a_rubrics_value_becomes_the_nearest_grade(value: float, expected: int) -> None:
    """0.625 is grade 3.5: halves go up, whatever the parity."""
    assert grade_of_value(value) == expected


def test_parts_of_our_judges_are_found_by_the_names_of_their_rubrics() -> None:
    """The names are those of the prompt files that ship, or every grade would be missing."""
    names = {
        rubric.name
        for file in ("adherence", "physics")
        for rubric in load_prompt_file(file, where="test").rubrics
    }
    found = score_of_parts("v", "p", dict.fromkeys(names, 0.75), {"falls": FOLLOWED})
    assert (found.semantic_adherence, found.physical_commonsense) == (4, 4)
    assert found.passes
    assert score_of_parts("v", "p", {"semantic_adherence": 1.0}).passes is None
    assert score_of_parts("v", "p", {"semantic_adherence": math.nan}).semantic_adherence is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("4", 4), ("Score: 4.", 4), ("4/5", 4), ("4 out of 5", 4), ("I would say 2", 2),
        ("4.5", None), ("10", None), ("0", None), ("-3", None), ("", None), ("none", None),
        ("3 or 4", None),
    ],
)  # fmt: skip
def test_grades_in_words(answer: str, expected: int | None) -> None:
    assert grade_of_text(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("0", VIOLATED), (" 1\n", FOLLOWED), ("2", UNDETERMINED), ("3", None), ("0 or 1", None)],
)
def test_rules_in_words(answer: str, expected: int | None) -> None:
    assert rule_of_text(answer) == expected


@pytest.mark.parametrize(
    ("p_yes", "below", "expected"),
    [
        (0.9, 0.0, FOLLOWED), (0.1, 0.0, VIOLATED), (0.5, 0.0, UNDETERMINED),
        (0.6, 0.3, UNDETERMINED), (0.7, 0.3, FOLLOWED), (0.3, 0.3, VIOLATED),
        (math.nan, 0.0, None),
    ],
)  # fmt: skip
def test_rules_of_a_yes_or_no_judge(p_yes: float, below: float, expected: int | None) -> None:
    assert rule_of_p_yes(p_yes, undetermined_below=below) == expected


def test_what_is_no_grade_is_refused() -> None:
    with pytest.raises(ValueError, match="semantic_adherence: expected a grade from 1 to 5"):
        score("p", 0, 3)
    with pytest.raises(ValueError, match="rule 'falls': expected 0"):
        score("p", 1, 3, falls=3)
    with pytest.raises(ValueError, match=r"a rubric's value in \[0, 1\], got 4"):
        grade_of_value(4)
    with pytest.raises(ValueError, match="no clips"):
        summarise([])
