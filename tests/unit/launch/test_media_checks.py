"""What a phase cannot tell the model is refused before any process starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rlvid.config import ModelConfig, PromptsConfig, Recipe
from rlvid.config.loader import check
from rlvid.data.engine.manifest import SUMMARY
from rlvid.data.pairs import PAIRS_FILE
from rlvid.data.prompts import load_prompts
from rlvid.data.video_files import write_mp4
from rlvid.launch.media_checks import check_phase_media, check_prompts_media


def recipe(*phases: str, use: str = "wan_i2v", **sections: Any) -> Recipe:
    return check({"name": "media", "phases": phases, "model": {"use": use}, **sections})


@pytest.mark.parametrize(
    ("phase", "sections"),
    [
        ("data_engine", {}),
        ("distillation", {}),
        ("reward_model", {"reward_model": {"pairs": {"weak": {"ladder_pairs": 2}}}}),
    ],
)
def test_phase_that_samples_by_text_refuses_a_family_that_needs_a_picture(
    phase: str, sections: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=rf"phases: {phase} samples .* needs \['first_frame'\]"):
        check_phase_media(recipe(phase, **sections))
    check_phase_media(recipe(phase, use="wan", **sections))
    check_phase_media(recipe(phase, use="wan_ti2v", **sections))


def test_reward_model_that_samples_nothing_takes_any_family() -> None:
    check_phase_media(recipe("reward_model", reward_model={"pairs": {"weak": {"ladder_pairs": 0}}}))


def test_data_set_of_texts_is_no_training_set_of_pictures(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text("{}")
    sections: dict[str, Any] = {"sft": {"clips": str(tmp_path)}, "dpo": {"pairs": str(tmp_path)}}
    for phase, section in sections.items():
        with pytest.raises(ValueError, match=rf"{phase}\.\w+: the data set .* of texts alone"):
            check_phase_media(recipe(phase, **{phase: section}))
    check_phase_media(recipe("sft"))  # the tiny world's clips have frames of their own


def test_few_step_student_is_told_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    line = {"text": "a dog", "media": {"first_frame": "a.png"}}
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    given = {"source": str(tmp_path / "p.jsonl"), "split": "all"}
    few = {"stages": ["few_step"]}
    check_phase_media(recipe("distillation", distillation=few, prompts=given))
    with pytest.raises(ValueError, match=r"distillation\.prompts: prompt .* has media \[\]"):
        check_phase_media(recipe("distillation", distillation=few))
    judged = {**few, "few_step": {"gan": {"weight": 0.1}}}
    with pytest.raises(ValueError, match=r"phases: distillation samples by texts alone"):
        check_phase_media(recipe("distillation", distillation=judged, prompts=given))


def test_control_clip_of_another_length_is_refused(tmp_path: Path) -> None:
    """An actor finds it too, when the prompt's turn comes."""
    write_mp4(tmp_path / "a.mp4", torch.rand(5, 3, 16, 16), 8)
    line = {"text": "a dog", "media": {"control": "a.mp4"}}
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    prompts = load_prompts(PromptsConfig(source=str(tmp_path / "p.jsonl"), split="all"))
    fits, differs = (
        recipe("grpo", use="wan_vace").model_copy(
            update={"model": ModelConfig(use="wan_vace", num_frames=num_frames)}
        )
        for num_frames in (5, 17)
    )
    check_prompts_media(fits, prompts, "prompts")
    with pytest.raises(ValueError, match=r"^prompts: prompt 'a dog': media\.control: .* 5 frames"):
        check_prompts_media(differs, prompts, "prompts")


def test_media_that_distillation_would_drop_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    line = {"text": "a dog", "media": {"first_frame": "a.png"}}
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    given = {"source": str(tmp_path / "p.jsonl"), "split": "all"}
    with pytest.raises(ValueError, match=r"distillation\.prompts: .* expected texts alone"):
        check_phase_media(recipe("distillation", use="wan_ti2v", prompts=given))


def test_pairs_are_held_against_the_family(tmp_path: Path) -> None:
    line = {"text": "a dog", "chosen": "a.mp4", "rejected": "b.mp4"}
    (tmp_path / PAIRS_FILE).write_text(json.dumps(line))
    pairs = {"pairs": str(tmp_path)}
    with pytest.raises(ValueError, match=r"dpo\.pairs: prompt 'a dog' has media \[\]: .*wan_i2v"):
        check_phase_media(recipe("dpo", dpo=pairs))
    check_phase_media(recipe("dpo", use="wan", dpo=pairs))
