"""What phase prompt_enhancement costs, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.enhancement import enhancement_work
from rlvid.launch.estimate.phases import held_by
from rlvid.launch.estimate.records import LEARNER, REWRITER, Work, count_model
from rlvid.launch.memory import SMOLLM2_PARAMETERS


def work_of(**enhancement: Any) -> tuple[Recipe, dict[str, Work]]:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "phases": ["prompt_enhancement"],
            "prompt_enhancement": {
                "num_steps": 2,
                "prompts_per_step": 3,
                "group_size": 4,
                "clips_per_rewrite": 2,
                "num_denoising_steps": 10,
                "guidance_scale": 1.0,
                "rewriter": {"max_new_tokens": 100},
                **enhancement,
            },
        }
    )
    counted = count_model(recipe, Assumptions())
    assert counted is not None
    return recipe, {item.what: item for item in enhancement_work(recipe, counted)}


@pytest.mark.parametrize(("mode", "passes"), [("lora", 2 + 4), ("full", 2 + 6)])
def test_rewrites_are_written_rendered_and_learned_from(mode: str, passes: int) -> None:
    """24 rewrites of 100 tokens and 48 clips of 10 steps."""
    algorithm = {"kl_coefficient": 0.0, "num_updates": 1}
    recipe, work = work_of(learner={"mode": mode}, algorithm=algorithm)
    counted = count_model(recipe, Assumptions())
    assert counted is not None
    assert work["write"].flops == 2 * SMOLLM2_PARAMETERS * 2400
    assert work["denoise"].flops == 48 * 10 * counted.row.forward
    assert work["train"].flops == passes * SMOLLM2_PARAMETERS * 2400
    assert [work[what].stage for what in ("write", "denoise", "train")] == [0, 1, 2]


def test_a_rewriter_that_is_not_here_leaves_the_clips() -> None:
    _, work = work_of(rewriter={"model": "/nowhere/llm"})
    assert work["write"].flops is None
    assert work["train"].flops is None
    assert work["denoise"].flops


def test_its_own_ranks_and_server_hold_the_gpus() -> None:
    server = {"num_gpus": 1.0, "num_replicas": 2}
    recipe, work = work_of(
        learner={"mode": "lora", "num_gpus": 1.0, "num_ranks": 3},
        sampler={"kind": "vllm", "server": server},
    )
    assert work["write"].role == REWRITER
    held = held_by(recipe, "prompt_enhancement", REWRITER)
    assert (held.num_processes, held.num_gpus) == (2, 1.0)
    held = held_by(recipe, "prompt_enhancement", LEARNER)
    assert (held.num_processes, held.num_gpus) == (3, 1.0)
