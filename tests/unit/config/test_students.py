"""Phases after a distillation: what could not train its student is refused before it is made."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from rlvid.config import Recipe

FEW_STEP = {"stages": ("few_step",)}
RIGHT = {
    "rollout": {
        "step_plan": {"kind": "ode"},
        "initial_noise": "independent",
        "guidance_scale": 1.0,
    },
    "algorithm": {"use": "nft"},
}


@pytest.mark.parametrize(
    ("phases", "sections", "message"),
    [
        (("distillation", "sft"), {}, "sft got a distilled student .* Put sft before distillation"),
        (("distillation", "evaluate", "dpo"), {}, "dpo got a distilled student"),
        (("distillation", "distillation"), {}, "distillation got a distilled student"),
        (("distillation", "grpo"), RIGHT, "got a causal student"),
        (("distillation", "grpo"), {"distillation": FEW_STEP}, "got isotemporal and 3; with algor"),
        (("distillation", "grpo"), {**RIGHT, "distillation": FEW_STEP}, None),
        (("sft", "grpo", "distillation"), {}, None),
        (("distillation", "tiny_base", "sft"), {}, None),
        (("distillation", "mine:Own", "sft"), {}, None),
    ],
)
def test_what_follows_a_distillation(
    phases: tuple[str, ...], sections: dict[str, Any], message: str | None
) -> None:
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        Recipe.model_validate({"name": "a", "phases": phases, **sections})
