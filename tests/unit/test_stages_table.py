"""The bench's table over seeds, from two evaluations made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.stages_table import summary


def _cell(reward: float, before: float | None) -> dict[str, Any]:
    """One stage on one set of prompts."""
    change = None
    if before is not None:
        change = {"difference": reward - before, "low": 0.0, "high": 1.0}
        change |= {"gsb": 0.5, "gsb_low": 0.4, "gsb_high": 0.6}
    return {
        "lines": {
            "reward": {
                "mean": reward,
                "vs_base": change,
                "vs_before": change,
            }
        },
        "motion_share": {"value": 0.9, "low": 0.7, "high": 1.0},
        "seconds_per_clip": 2.0,
    }


def _tree(*, grpo: float, student: float) -> dict[str, Any]:
    """A base of 0.2, sft at 0.4, and what comes after it."""
    rewards = {"base": 0.2, "sft": 0.4, "grpo": grpo, "few_step": student}
    names = list(rewards)
    columns = []
    for name, before in zip(names, [None, *names], strict=False):
        is_student = name == "few_step"
        cell = _cell(rewards[name], rewards[before] if before else None)
        columns.append(
            {
                "name": name,
                "before": before,
                "teacher": "grpo" if is_student else None,
                "num_function_evaluations": 4 if is_student else 20,
                "sets": {"full": cell},
            }
        )
    lines = [{"name": "reward", "trained": True}]
    return {"lines": lines, "sets": ["full"], "columns": columns}


def test_changes_have_the_interval_of_their_seeds() -> None:
    """Gains of grpo over sft of 0.1 and 0.3; t of one degree of freedom is 12.706."""
    lines = summary([_tree(grpo=0.5, student=0.5), _tree(grpo=0.7, student=0.6)])
    base, _, grpo, student = lines
    assert "change" not in base["lines"]["reward"]
    assert "share_of_gain" not in grpo
    change = grpo["lines"]["reward"]["change"]
    half = 12.706 * (0.02**0.5) / 2**0.5
    assert change["value"] == pytest.approx(0.2)
    assert change["interval"] == pytest.approx([0.2 - half, 0.2 + half], abs=1e-3)
    assert change["seeds"] == pytest.approx([0.1, 0.3])
    assert student["motion_share"]["value"] == 0.9
    assert (student["num_function_evaluations"], student["seconds_per_clip"]) == (4, 2.0)
    # Seeds that gain 0.1 and 0.3 leave open whether there is a gain.
    assert student["share_of_gain_over_sft"] is None


def test_a_student_keeps_a_share_of_a_sure_gain() -> None:
    """Over the base 0.3 of 0.4 in both seeds; over sft 0.1 of 0.2."""
    [*_, student] = summary([_tree(grpo=0.6, student=0.5), _tree(grpo=0.6, student=0.5)])
    assert student["share_of_gain"]["value"] == pytest.approx(0.75)
    assert student["share_of_gain_over_sft"]["value"] == pytest.approx(0.5)
    assert student["share_of_gain_over_sft"]["seeds"] == pytest.approx([0.5, 0.5])


def test_one_seed_has_the_interval_of_its_prompts() -> None:
    [_, _, grpo, student] = summary([_tree(grpo=0.6, student=0.5)])
    assert grpo["lines"]["reward"]["change"]["interval"] == [0.0, 1.0]
    assert grpo["lines"]["reward"]["gsb"]["interval"] == [0.4, 0.6]
    assert student["share_of_gain_over_sft"]["interval"] is None
    [*_, student] = summary([_tree(grpo=0.4, student=0.5)])
    assert student["share_of_gain_over_sft"] is None
