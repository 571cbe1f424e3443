"""Which columns a run's stages make, what they are asked, and the tree that the report reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config import Recipe
from rlvid.data.video_files import write_mp4
from rlvid.launch.enhancement.apply import ShownPrompts
from rlvid.launch.heldout import FULL, VAGUE, prompt_sets
from rlvid.launch.phases.base import Artifacts, RunStage
from rlvid.launch.report_stages import stages_data
from rlvid.launch.stage_table import stage_lines, stages_tree
from rlvid.launch.stages import (
    Column,
    StageCell,
    StagePlan,
    columns_of,
    num_function_evaluations,
    plan_stages,
)
from rlvid.models.causal_layout import BlockLayout
from rlvid.models.policy import Policy
from rlvid.models.student import StudentSampling
from rlvid.observability.report import ReportData, build_report
from rlvid.records import Prompt
from tests.unit.launch.hand_made import prompt, recipe

TINY, SFT, GRPO = (Policy(model_path=name) for name in ("tiny", "sft", "grpo"))
VAGUE_SOURCE = {"source": "tiny_world_vague", "split": "heldout"}


def _recipe(**stages: Any) -> Recipe:
    evaluate = {"num_prompts": 2, "num_denoising_steps": 20, "stages": stages}
    evaluate |= {"num_bootstrap": 100}
    return recipe(evaluate=evaluate)


def _student(folder: Path, *, is_causal: bool) -> Policy:
    folder.mkdir()
    layout = BlockLayout(frames_per_block=1) if is_causal else None
    StudentSampling(sigmas=(1.0, 0.9, 0.75, 0.5), layout=layout).save(folder)
    return Policy(model_path=str(folder))


def _artifacts(tmp_path: Path) -> Artifacts:
    teacher = "prompt_enhancement"
    few, causal = (_student(tmp_path / name, is_causal=name == "c") for name in ("f", "c"))
    return Artifacts(
        base_policy=TINY,
        policy=causal,
        stages=(
            RunStage(name="sft", policy=SFT),
            RunStage(name="grpo", policy=GRPO),
            RunStage(name=teacher, policy=GRPO, enhancer="e"),
            RunStage(name="few_step", policy=few, enhancer="e", teacher=teacher),
            RunStage(name="self_forcing", policy=causal, enhancer="e", teacher=teacher),
        ),
    )


def test_a_column_for_the_base_every_stage_and_the_teacher_in_few_steps(tmp_path: Path) -> None:
    made, artifacts = _recipe(undistilled_steps=4), _artifacts(tmp_path)
    columns = columns_of(made, artifacts)
    assert [(column.name, column.before) for column in columns] == [
        ("base", None),
        ("sft", "base"),
        ("grpo", "sft"),
        ("prompt_enhancement", "grpo"),
        ("undistilled", "prompt_enhancement"),
        ("few_step", "prompt_enhancement"),
        ("self_forcing", "few_step"),
    ]
    control = columns[4]
    assert (control.policy, control.enhancer, control.num_denoising_steps) == (GRPO, "e", 4)
    assert [num_function_evaluations(made, column) for column in columns] == [
        # 20 steps under guidance; a causal student passes once more to write its cache.
        40, 40, 40, 40, 8, 4, 5,
    ]  # fmt: skip
    names = [column.name for column in columns_of(_recipe(), artifacts)]
    assert "undistilled" not in names


def test_a_run_that_remembers_no_stage_has_the_newest_policy() -> None:
    """As of before there were stages, and two policies that `rlvid compare` is given."""
    columns = columns_of(_recipe(), Artifacts(base_policy=TINY, policy=SFT))
    assert [(column.name, column.policy) for column in columns] == [("base", TINY), ("newest", SFT)]


def test_nothing_is_planned_where_stages_are_left_out() -> None:
    plain = recipe()
    assert plan_stages(plain, Artifacts(base_policy=TINY, policy=SFT)) == StagePlan()
    assert stages_tree(plain, ()) == {}
    assert stage_lines({}) == []


def test_vague_prompts_are_a_second_set_that_nobody_trains_on() -> None:
    sets = prompt_sets(_recipe(vague_prompts=VAGUE_SOURCE))
    assert [len(prompts) for prompts in sets.values()] == [2, 2]
    assert not {p.text for p in sets[FULL]} & {p.text for p in sets[VAGUE]}
    learnt = _recipe(vague_prompts={"source": "tiny_world_vague", "split": "train"})
    trained = learnt.prompt_enhancement.model_copy(
        update={"prompts": learnt.prompts.model_copy(update={"source": "tiny_world_vague"})}
    )
    phases = {"phases": ("prompt_enhancement", "evaluate"), "prompt_enhancement": trained}
    with pytest.raises(ValueError, match=r"evaluate\.stages\.vague_prompts: \d+ held-out prompts"):
        prompt_sets(learnt.model_copy(update=phases))


PROMPTS = (prompt("a red ball"), prompt("a blue box"))
PAIRS = [(p.prompt_id, index) for p in PROMPTS for index in (0, 1)]


def _cell(column: Column, level: float, folder: Path) -> StageCell:
    """Two prompts of two clips, the reward and a judge spread around a level."""
    shown = ShownPrompts(prompts=PROMPTS)
    if column.enhancer:
        rewrite = Prompt(prompt_id=PROMPTS[0].prompt_id, text="a red ball", enhanced_text="redder")
        shown = ShownPrompts(prompts=(rewrite, PROMPTS[1]), enhancer=column.enhancer, num_drifted=1)
    scores = {pair: level + 0.01 * number for number, pair in enumerate(PAIRS)}
    clip = f"stages/{FULL}_00_{column.name}.mp4"
    (folder / "stages").mkdir(exist_ok=True)
    write_mp4(folder / clip, torch.full((2, 3, 16, 16), 0.5), 8)
    return StageCell(
        column=column,
        prompts=FULL,
        shown=shown,
        scores={name: scores for name in ("reward", "adherence", "attribute_judge")},
        motion={pair: 0.1 * level for pair in PAIRS},
        seconds_per_clip=2.0,
        clips=(clip,),
    )


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """evaluation.json of three columns: 0.2 for the base, 0.6 for grpo, 0.5 for its student."""
    made = recipe(
        rewards={"scorers": [{"use": "adherence"}, {"use": "attribute_judge", "weight": 0.0}]},
        evaluate={"stages": {"axes": {"TA": ["attribute_judge"]}}, "num_bootstrap": 100},
    )
    columns = (
        Column(name="base", policy=TINY),
        Column(name="grpo", policy=GRPO, before="base", enhancer="e"),
        Column(name="few_step", policy=SFT, before="grpo", teacher="grpo", enhancer="e"),
    )
    cells = [_cell(c, v, tmp_path) for c, v in zip(columns, (0.2, 0.6, 0.5), strict=True)]
    found = stages_tree(made, cells)
    loaded: dict[str, Any] = json.loads(json.dumps(found))
    return loaded


def test_the_tree_has_every_line_of_every_stage(tree: dict[str, Any]) -> None:
    stages = tree["stages"]
    assert [(line["name"], line["trained"]) for line in stages["lines"]] == [
        ("reward", True),
        ("TA", False),
        ("adherence", True),
        ("attribute_judge", False),
    ]
    base, grpo, student = (column["sets"][FULL] for column in stages["columns"])
    assert base["lines"]["TA"]["mean"] == pytest.approx(0.215)
    assert grpo["lines"]["TA"]["vs_before"]["gsb"] == 1.0
    assert student["lines"]["reward"]["vs_before"]["difference"] == pytest.approx(-0.1)
    assert student["lines"]["reward"]["share_of_gain"]["value"] == pytest.approx(0.75)
    assert student["motion_share"]["value"] == pytest.approx(5 / 6)
    assert grpo["motion_share"] is None
    assert grpo["enhanced"]["rewritten"] == 1
    assert "enhanced" not in base
    assert [clip.get("enhanced_prompt") for clip in grpo["clips"]] == ["redder"]
    assert stage_lines(tree)[1] == (
        "stage grpo, full prompts: reward 0.6150, against base +0.4000 [+0.4000, +0.4000]"
    )


def test_the_report_has_a_column_and_a_clip_for_every_stage(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    shown = stages_data(tmp_path / "evaluation.json", tree)
    page = build_report(ReportData(title="a run", summary=[], rows=[], stages=shown))
    table = page[page.index("<h2>Stages</h2>") :]
    for column in ("base", "grpo", "few step"):
        assert f"<th>{column}" in table
    assert "<small>after grpo</small>" in table
    assert "GSB TA" in table
    assert "75%" in table
    assert "83% of" in table
    assert "redder" in table
    assert table.count("data:video/mp4;base64,") == 3
    assert stages_data(tmp_path / "evaluation.json", {"rows": []}) == []
