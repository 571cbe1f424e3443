"""What flows from phase to phase, and how a recipe names a phase."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rlvid.launch.phases.base import (
    Artifacts,
    PhaseContext,
    RunStage,
    load_artifacts,
    open_phase,
    save_artifacts,
    trained_policy,
)
from rlvid.launch.phases.sft import CHUNK_STEPS, Sft, next_stop
from rlvid.launch.run import artifacts_of
from rlvid.models.policy import Policy

TINY = Policy(model_path="tiny")


class Idle:
    """A phase of one's own."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        return artifacts


def not_a_phase(context: PhaseContext) -> None:
    raise AssertionError("opening a phase must not call a function")


def _artifacts(run: Path) -> Artifacts:
    phases = run / "phases"
    return Artifacts(
        base_policy=TINY,
        policy=Policy(model_path="tiny", lora_path=str(phases / "00_grpo" / "policy")),
        ema_policy=Policy(model_path=str(phases / "00_grpo" / "policy_ema")),
        evaluation=str(phases / "01_evaluate" / "evaluation.json"),
        timings_s={"00_grpo": 1.5},
        stages=(
            RunStage(name="grpo", policy=Policy(model_path=str(phases / "00_grpo" / "policy"))),
            RunStage(name="student", policy=TINY, enhancer=str(phases / "e"), teacher="grpo"),
        ),
    )


def _phase_folder(run: Path, name: str) -> Path:
    folder = run / "phases" / name
    folder.mkdir(parents=True)
    return folder


def test_artifacts_come_back_as_they_were_saved(tmp_path: Path) -> None:
    folder = _phase_folder(tmp_path, "01_evaluate")
    assert load_artifacts(folder) is None
    save_artifacts(folder, _artifacts(tmp_path))
    assert load_artifacts(folder) == _artifacts(tmp_path)
    least = Artifacts(base_policy=TINY, policy=TINY)
    save_artifacts(folder, least)
    assert load_artifacts(folder) == least


def test_artifacts_follow_a_run_folder_that_moved(tmp_path: Path) -> None:
    """Trained on a cluster, looked at on a laptop: paths in the folder are the new folder's."""
    save_artifacts(_phase_folder(tmp_path / "old", "01_evaluate"), _artifacts(tmp_path / "old"))
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert artifacts_of(tmp_path / "new") == _artifacts(tmp_path / "new")


def test_run_of_before_there_were_stages_has_none(tmp_path: Path) -> None:
    folder = _phase_folder(tmp_path, "00_grpo")
    save_artifacts(folder, _artifacts(tmp_path))
    path = folder / "artifacts.json"
    tree = json.loads(path.read_text())
    del tree["stages"]
    path.write_text(json.dumps(tree))
    loaded = load_artifacts(folder)
    assert loaded is not None
    assert loaded.stages == ()
    assert loaded.newest_stage == "base"


def test_what_a_phase_left_is_remembered_once() -> None:
    """Another policy or an enhancer is a stage; what a phase notes itself is not noted again."""
    start = Artifacts(base_policy=TINY, policy=TINY)
    grpo = replace(start, policy=Policy(model_path="g")).remembering(start, "grpo")
    measured = replace(grpo, evaluation="e.json").remembering(grpo, "evaluate")
    enhanced = replace(measured, enhancer="e").remembering(measured, "prompt_enhancement")
    student = Policy(model_path="s")
    distilled = enhanced.with_stage("few_step", student, teacher=enhanced.newest_stage)
    assert distilled.remembering(enhanced, "distillation") == distilled
    again = replace(distilled, policy=Policy(model_path="h")).remembering(distilled, "mine:grpo")
    assert [(stage.name, stage.policy.model_path, stage.enhancer) for stage in again.stages] == [
        ("grpo", "g", None),
        ("prompt_enhancement", "g", "e"),
        ("few_step", "s", "e"),
        ("grpo_2", "h", "e"),
    ]
    assert again.stages[2].teacher == "prompt_enhancement"


def test_a_phase_that_makes_the_base_leaves_no_stage() -> None:
    made = Policy(model_path="made")
    start = Artifacts(base_policy=TINY, policy=TINY)
    assert Artifacts(base_policy=made, policy=made).remembering(start, "tiny_base").stages == ()


def test_unfinished_write_is_no_artifact(tmp_path: Path) -> None:
    """A crash while saving leaves the temporary file; the phase then has not finished."""
    folder = _phase_folder(tmp_path, "00_grpo")
    (folder / "artifacts.json.part").write_text(json.dumps({"policy": None}))
    assert load_artifacts(folder) is None


def test_newest_finished_phase_counts(tmp_path: Path) -> None:
    """The second phase was interrupted, so the first one's policy is the run's."""
    save_artifacts(_phase_folder(tmp_path, "00_sft"), Artifacts(base_policy=TINY, policy=TINY))
    _phase_folder(tmp_path, "01_grpo")
    assert artifacts_of(tmp_path).policy == TINY
    with pytest.raises(ValueError, match="no finished phase in it"):
        artifacts_of(tmp_path / "nothing")


def test_phase_is_named_short_or_by_its_class() -> None:
    assert isinstance(open_phase("sft", 0), Sft)
    assert type(open_phase(f"{__name__}:Idle", 1)).__name__ == "Idle"


@pytest.mark.parametrize("name", ["not_a_phase", "TINY", "Path"])
def test_what_has_no_run_is_refused_by_its_place(name: str) -> None:
    with pytest.raises(ValueError, match=rf"phases\[2\]: '.*:{name}' is not a phase"):
        open_phase(f"{__name__}:{name}", 2)


def test_misspelt_phase_gets_a_hint() -> None:
    with pytest.raises(ValueError, match=r"phases\[0\]: unknown name 'gpro'; did you mean 'grpo'"):
        open_phase("gpro", 0)


def test_lora_goes_on_its_base_and_full_weights_stand_alone(tmp_path: Path) -> None:
    exported = tmp_path / "policy"
    assert trained_policy(TINY, exported, "lora") == (
        Policy(model_path="tiny", lora_path=str(exported)),
        None,
    )
    (tmp_path / "policy_ema").mkdir()
    assert trained_policy(TINY, exported, "full") == (
        Policy(model_path=str(exported)),
        Policy(model_path=str(tmp_path / "policy_ema")),
    )
    with pytest.raises(ValueError, match="LoRA on top of a LoRA"):
        trained_policy(Policy(model_path="tiny", lora_path="x"), exported, "lora")


@pytest.mark.parametrize(
    ("step", "every", "expected"),
    [
        (0, 500, CHUNK_STEPS),
        (495, 500, 500),  # a checkpoint cuts the chunk
        (500, 500, 500 + CHUNK_STEPS),
        (7, 3, 9),
        (990, 500, 1000),  # and so does the end
        (999, 7, 1000),
    ],
)
def test_sft_stops_at_chunks_checkpoints_and_the_end(step: int, every: int, expected: int) -> None:
    assert next_stop(step, 1000, every) == expected
