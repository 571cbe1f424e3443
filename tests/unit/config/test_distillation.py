"""The `distillation` section: orders of stages that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rlvid.config.distillation import DistillationConfig


def test_orders_of_both_papers_are_taken() -> None:
    assert DistillationConfig().stages == ("causal_teacher", "causal_init", "self_forcing")
    paper: dict[str, Any] = {
        "stages": ("few_step", "causal_init", "self_forcing"),
        "causal_init": {"teacher": "bidirectional_student"},
    }
    DistillationConfig.model_validate(paper)
    DistillationConfig(stages=("few_step",), learner={"mode": "lora"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"stages": ()}, "at least one"),
        ({"stages": ("few_step", "few_step")}, "each once"),
        ({"stages": ("self_forcing",)}, "expected causal_init before it"),
        ({"stages": ("few_step", "causal_init")}, "expected causal_teacher before it"),
        ({"stages": ("causal_teacher",)}, "causal_teacher is no student"),
        ({"student_steps": (0.9, 0.5)}, "levels that fall from 1"),
        ({"student_steps": (1.0, 0.5, 0.5)}, "levels that fall from 1"),
        ({"learner": {"mode": "lora"}}, "LoRA on top of a LoRA"),
        (
            {
                "stages": ("few_step",),
                "learner": {"mode": "lora"},
                "few_step": {"gan": {"weight": 5e-3}},
            },
            "fake score cannot carry a discriminator",
        ),
        ({"learner": {"mode": "full", "optimizer": {"learning_rate": 1.0}}}, "each stage's own"),
        ({"few_step": {"num_steps": 2000}}, "at most max_steps 1000, got 2000"),
        ({"few_step": {"sigma_range": (0.5, 0.1)}}, "0 < low < high < 1"),
    ],
)
def test_what_cannot_be_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DistillationConfig.model_validate(tree)


def test_longer_matching_is_taken_knowingly() -> None:
    longer = {"few_step": {"num_steps": 2000, "max_steps": 2000}}
    assert DistillationConfig.model_validate(longer).few_step.num_steps == 2000
