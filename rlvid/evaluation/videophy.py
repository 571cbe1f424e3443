"""Physics scores in the form of VideoPhy-2 (arXiv:2503.06800), from grades that a judge gave.

Semantic adherence (SA) and physical commonsense (PC) are grades from 1 to 5; a clip passes jointly
with SA >= 4 and PC >= 4. A verdict on a physical rule is 0, 1 or 2: "0 if not, 1 if valid, or 2 if
indeterminate" (the rule question of VIDEOPHY2/template.py, github.com/Hritikbansal/videophy). A
score that a judge did not give is missing: left out and counted, never 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlvid.evaluation.statistics import check_settings, mean_interval

GRADES = (1, 2, 3, 4, 5)
PASSES_FROM = 4
"""Lowest SA and lowest PC of a clip that passes."""
SEMANTIC_ADHERENCE, PHYSICAL_COMMONSENSE = "semantic_adherence", "physical_commonsense"
"""Names of the rubrics of the prompt files `adherence` and `physics`."""

RuleVerdict = Literal[0, 1, 2]
VIOLATED: RuleVerdict = 0
FOLLOWED: RuleVerdict = 1
UNDETERMINED: RuleVerdict = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicsScore:
    """The grades of one clip."""

    video_id: str
    prompt_id: str
    """Clips of one prompt are resampled together."""
    semantic_adherence: int | None
    """1 to 5; None where the judge gave no grade."""
    physical_commonsense: int | None
    """1 to 5; None where the judge gave no grade."""
    rules: Mapping[str, RuleVerdict | None] = field(default_factory=dict)
    """Text of each rule that was asked about to its verdict; None where there was no answer."""

    def __post_init__(self) -> None:
        for name in (SEMANTIC_ADHERENCE, PHYSICAL_COMMONSENSE):
            grade = getattr(self, name)
            if grade is not None and grade not in GRADES:
                raise ValueError(
                    f"{self.video_id}: {name}: expected a grade from 1 to 5 or None, got {grade!r}"
                    ". Use grade_of_value for a score in [0, 1]."
                )
        for rule, verdict in self.rules.items():
            if verdict not in (VIOLATED, FOLLOWED, UNDETERMINED, None):
                raise ValueError(
                    f"{self.video_id}: rule {rule!r}: expected 0 (violated), 1 (followed), 2 "
                    f"(cannot be determined) or None, got {verdict!r}."
                )

    @property
    def passes(self) -> bool | None:
        """SA >= 4 and PC >= 4; None where one is missing.

        A low grade beside a missing one could only fail, but counting it would leave out passes
        and keep failures: the share would be too low.
        """
        if self.semantic_adherence is None or self.physical_commonsense is None:
            return None
        return min(self.semantic_adherence, self.physical_commonsense) >= PASSES_FROM


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over clips, or over rule verdicts, with its interval over prompts."""

    mean: float | None
    """None where nothing was scored."""
    low: float | None
    """Bootstrap interval, whole prompts resampled; None with fewer than 2 prompts."""
    high: float | None
    num_scored: int
    num_missing: int
    """Left out for want of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicsReport:
    """VideoPhy-2's numbers of a set of clips."""

    semantic_adherence: Estimate
    """Mean grade, 1 to 5."""
    physical_commonsense: Estimate
    """Mean grade, 1 to 5."""
    semantic_pass: Estimate
    """Share of clips with SA >= 4."""
    physical_pass: Estimate
    """Share of clips with PC >= 4."""
    joint: Estimate
    """Share of clips with both: the benchmark's headline."""
    rules_followed: Estimate
    """Share followed of the verdicts that say followed or violated."""
    num_undetermined: int
    """Verdicts 2: in no share, and not missing either."""
    num_videos: int
    num_prompts: int
    confidence: float


def summarise(
    scores: Sequence[PhysicsScore],
    *,
    num_bootstrap: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PhysicsReport:
    """Return the means of a set of clips with intervals that resample whole prompts.

    Raises:
        ValueError: no clips, or settings of the bootstrap that cannot be.
    """
    if not scores:
        raise ValueError("videophy: no clips: expected at least one scored clip.")
    check_settings(num_bootstrap, confidence)

    def estimate(values: Sequence[float | None], prompts: Sequence[Hashable]) -> Estimate:
        return _estimate(
            values, prompts, num_bootstrap=num_bootstrap, confidence=confidence, seed=seed
        )

    prompts = [score.prompt_id for score in scores]
    semantic = [score.semantic_adherence for score in scores]
    physical = [score.physical_commonsense for score in scores]
    asked = [(score.prompt_id, verdict) for score in scores for verdict in score.rules.values()]
    decided = [(prompt, verdict) for prompt, verdict in asked if verdict != UNDETERMINED]
    return PhysicsReport(
        semantic_adherence=estimate(semantic, prompts),
        physical_commonsense=estimate(physical, prompts),
        semantic_pass=estimate([_passes(grade) for grade in semantic], prompts),
        physical_pass=estimate([_passes(grade) for grade in physical], prompts),
        joint=estimate([score.passes for score in scores], prompts),
        rules_followed=estimate([verdict for _, verdict in decided], [p for p, _ in decided]),
        num_undetermined=len(asked) - len(decided),
        num_videos=len(scores),
        num_prompts=len(set(prompts)),
        confidence=confidence,
    )


def score_of_parts(
    video_id: str,
    prompt_id: str,
    parts: Mapping[str, float],
    rules: Mapping[str, RuleVerdict | None] | None = None,
) -> PhysicsScore:
    """Return the record of a clip from the parts of our judges' verdicts.

    Args:
        parts: name of a rubric to its value in [0, 1], of the modes `rubric` and `grade`; a rubric
            that is not among them is a missing grade.
    """
    return PhysicsScore(
        video_id=video_id,
        prompt_id=prompt_id,
        semantic_adherence=grade_of_value(parts.get(SEMANTIC_ADHERENCE, math.nan)),
        physical_commonsense=grade_of_value(parts.get(PHYSICAL_COMMONSENSE, math.nan)),
        rules=rules or {},
    )


def grade_of_value(value: float) -> int | None:
    """Return the grade nearest to 1 + 4 value, halves up; None for NaN.

    Our rubrics give (grade - 1) / 4, exactly where the judge writes the grade, as an expectation
    where it is read off the tokens; the latter is rounded, since the benchmark's grades are whole.
    """
    if math.isnan(value):
        return None
    if not 0.0 <= value <= 1.0:
        raise ValueError(
            f"grade_of_value: expected a rubric's value in [0, 1], got {value}. A grade from 1 to "
            "5 needs no mapping."
        )
    return math.floor(1.0 + 4.0 * value + 0.5)


def grade_of_text(answer: str) -> int | None:
    """Return the only whole number from 1 to 5 in an answer, "4", "Score: 4" or "4/5"; else None.

    An answer that names two grades has not decided, and "10" or "4.5" is no grade.
    """
    found = re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"\b([1-5])\s*(?:/|out of)\s*5\b", r"\1", answer))
    return int(found[0]) if len(found) == 1 and found[0] in map(str, GRADES) else None


def rule_of_text(answer: str) -> RuleVerdict | None:
    """Return the only number 0, 1 or 2 in an answer; else None."""
    found = re.findall(r"-?\d+(?:\.\d+)?", answer)
    verdicts: dict[str, RuleVerdict] = {"0": VIOLATED, "1": FOLLOWED, "2": UNDETERMINED}
    return verdicts.get(found[0]) if len(found) == 1 else None


def rule_of_p_yes(p_yes: float, *, undetermined_below: float = 0.0) -> RuleVerdict | None:
    """Return the verdict of a judge that was asked whether the rule is followed, Yes or No.

    Args:
        p_yes: P(yes) / (P(yes) + P(no)); NaN is a missing answer.
        undetermined_below: certainty |2 p_yes - 1| below which the verdict is 2. A judge that may
            only say Yes or No has no other way to say so; exactly 0.5 is always 2.
    """
    if math.isnan(p_yes):
        return None
    certainty = abs(2.0 * p_yes - 1.0)
    if certainty == 0.0 or certainty < undetermined_below:
        return UNDETERMINED
    return FOLLOWED if p_yes > 0.5 else VIOLATED


def _passes(grade: int | None) -> bool | None:
    return None if grade is None else grade >= PASSES_FROM


def _estimate(
    values: Sequence[float | None],
    prompts: Sequence[Hashable],
    *,
    num_bootstrap: int,
    confidence: float,
    seed: int,
) -> Estimate:
    known = [(float(v), p) for v, p in zip(values, prompts, strict=True) if v is not None]
    numbers, clusters = [value for value, _ in known], [prompt for _, prompt in known]
    low = high = None
    if len(set(clusters)) >= 2:
        _, low, high = mean_interval(
            numbers, clusters, num_bootstrap=num_bootstrap, confidence=confidence, seed=seed
        )
    return Estimate(
        mean=sum(numbers) / len(numbers) if numbers else None,
        low=low,
        high=high,
        num_scored=len(numbers),
        num_missing=len(values) - len(numbers),
    )
