"""The data engine on real Ray and the tiny model: killed in the middle, it ends with the same set,
and fine-tuning trains on it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvid.config.loader import dump_recipe, load_recipe
from rlvid.data.engine.manifest import read_manifest, read_summary
from rlvid.data.tiny_world.grammar import parse, split_of
from rlvid.data.video_files import read_mp4
from rlvid.launch.run import artifacts_of, run_recipe
from rlvid.observability.recorder import read_rows
from tests.system.conftest import SMALL, merged
from tests.system.interrupted import run_and_copy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ENGINE: dict[str, Any] = {
    "phases": ["data_engine", "sft"],
    "rewards": {
        "scorers": [
            {"use": "physics"},
            {"use": "adherence", "weight": 2.0},
            {"use": "realism", "weight": 0.0},
        ]
    },
    "data_engine": {
        "name": "mine",
        "weakness": {"num_prompts": 6, "seeds_per_prompt": 1, "below": 1.0, "num_clusters": 2},
        "prompts": {"num_prompts": 20, "plausibility": "grammar"},
        "clips_per_prompt": 3,
        "groups_in_flight": 4,
        "groups_per_shard": 8,
        "num_denoising_steps": 8,
        "real": {"num_clips": 8, "num_recaptions": 2},
    },
    "sft": {
        "clips": "artifact:mine",
        "num_steps": 3,
        "batch_size": 4,
        "weighting": {"kind": "exponential"},
        "anchor": {"beta": 0.5, "batch_size": 2},
    },
}
KILLED_AFTER = 5
"""Files on the disk."""


def _files(run: Path) -> dict[str, int]:
    """Return every finished file of the data set and when it was written, ns."""
    clips = run / "phases" / "00_data_engine" / "mine" / "clips"
    return {str(path): path.stat().st_mtime_ns for path in clips.glob("*/[0-9]*.safetensors")}


def _dataset(run: Path) -> Path:
    return Path(artifacts_of(run).datasets["mine"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An uninterrupted run, and its folder as a kill in the middle of rendering leaves it."""
    folder = tmp_path_factory.mktemp("whole")
    recipe, run, killed = folder / "recipe.yaml", folder / "run", folder / "killed"
    recipe.write_text(yaml.safe_dump(merged(SMALL, ENGINE)))
    run_and_copy(recipe, run, killed, lambda: len(_files(run)) >= KILLED_AFTER, within_s=300.0)
    return run, killed


@pytest.fixture(scope="module")
def whole(runs: tuple[Path, Path]) -> Path:
    return runs[0]


def test_every_clip_has_a_row_with_its_origin_and_scores(whole: Path) -> None:
    dataset = _dataset(whole)
    rows = list(read_manifest(dataset))
    assert Counter(row.kind for row in rows) == {"synthetic": 60, "recaption": 2, "real": 8}
    assert len({row.clip_id for row in rows}) == len(rows)
    for row in rows:
        facts = parse(row.text)
        assert facts is not None
        assert split_of(facts) == "train"
        if row.kind == "real":
            assert row.reward is None
            continue
        assert row.origin.startswith("policy:")
        assert set(row.scores) == {"physics", "adherence", "realism"}
        assert row.reward == pytest.approx(
            (row.scores["physics"] + 2 * row.scores["adherence"]) / 3
        )
    synthetic = [row for row in rows if row.kind == "synthetic"]
    assert set(Counter(row.prompt_id for row in synthetic).values()) == {3}
    assert len({row.content for row in synthetic}) == 60, "no two clips are the same"


def test_what_was_weak_is_written_down(whole: Path) -> None:
    written = json.loads((whole / "phases" / "00_data_engine" / "written.json").read_text())
    assert {row["dimension"] for row in written["dimension_scores"]} == {"physics", "adherence"}
    for weakness in written["weaknesses"]:
        assert weakness["low"] <= weakness["mean"] <= weakness["high"] < 1.0
        assert weakness["clusters"]
    dimensions = Counter(prompt["dimension"] for prompt in written["prompts"])
    assert dimensions == {row["dimension"]: 10 for row in written["weaknesses"]}
    assert written["counts"]["base"]["kept"] == 20


def test_metrics_say_what_was_kept_and_dropped(whole: Path) -> None:
    rows = [row for row in read_rows(whole / "metrics.jsonl") if row["phase"] == "00_data_engine"]
    found = {name: value for row in rows for name, value in row["metrics"].items()}
    assert found["data_engine/prompts_base/kept"] == found["data_engine/prompts_long/kept"] == 20
    assert found["data_engine/prompts_base/written"] >= 20
    assert (found["intake/clips/seen"], found["intake/clips/kept"]) == (8, 8)
    assert found["data_engine/clips/rendered"] == 62


def test_the_report_shows_the_set_and_its_ends(whole: Path) -> None:
    shown = whole / "phases" / "00_data_engine" / "shown"
    rows = json.loads((shown / "shown.json").read_text())
    assert [row["side"] for row in rows] == ["best"] * 6 + ["worst"] * 6
    rewards = [row["clip"]["reward"] for row in rows]
    kept = [row.reward for row in read_manifest(_dataset(whole)) if row.reward is not None]
    assert (rewards[0], rewards[6]) == (max(kept), min(kept))
    assert read_mp4(shown / f"{rows[0]['name']}.mp4")[0].shape[0] > 1
    page = (whole / "report.html").read_text()
    assert str(read_summary(_dataset(whole))["digest"]) in page
    assert page.count("data:video/mp4") == 12


def test_fine_tuning_trained_on_it(whole: Path) -> None:
    rows = [row for row in read_rows(whole / "metrics.jsonl") if row["phase"] == "01_sft"]
    assert len(rows) == 3
    assert all(row["metrics"]["sft/grad_norm/total"] > 0 for row in rows)
    policy = artifacts_of(whole).policy
    assert policy.lora_path or policy.model_path != artifacts_of(whole).base_policy.model_path


def test_killed_in_the_middle_it_ends_with_the_same_set(runs: tuple[Path, Path]) -> None:
    """No clip rendered twice, none lost, the same digest as of the run that nobody killed."""
    whole, run = runs
    before = _files(run)
    assert KILLED_AFTER <= len(before) < 22
    # The phase after it has nothing to resume.
    recipe = load_recipe(str(run / "recipe.yaml")).model_copy(update={"phases": ("data_engine",)})
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    run_recipe(recipe, run, resume=True)
    after = _files(run)
    assert {path: after[path] for path in before} == before, "files of before were left alone"
    assert len(after) == 22
    ours, theirs = read_summary(_dataset(run)), read_summary(_dataset(whole))
    assert ours["digest"] == theirs["digest"]
    kept = sum(3 if int(Path(path).stem) < 20 else 1 for path in before)
    assert ours["render"]["num_kept"] == kept
    assert ours["render"]["num_rendered"] == 62 - kept
