"""What the report says of a data set, from the files of one that was made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.data.engine.filters import REASONS
from rlvid.data.engine.manifest import write_manifest
from rlvid.data.engine.records import Cluster, Weakness
from rlvid.launch.data_engine.written import WrittenSet
from rlvid.launch.phases.base import Artifacts
from rlvid.launch.report_dataset import clips_rows, dataset_data
from rlvid.models.policy import Policy
from rlvid.observability.data_section import DataSetData
from rlvid.observability.report import ReportData, build_report
from tests.unit.launch.hand_made import recipe
from tests.unit.launch.test_shown import clip_record

WEAK = Weakness(
    dimension="motion",
    description="low in motion: hits wall",
    seed_prompts=("a <b>red</b> ball hits a wall", "a box falls"),
    seed_scores=(0.125, 0.25),
    mean=0.5,
    low=0.4,
    high=0.6,
    clusters=(Cluster(words=("hits", "wall"), num_prompts=7, mean=0.2),),
)
ROWS: list[dict[str, Any]] = [
    {"dimension": "motion", "mean": 0.5, "low": 0.4, "high": 0.6, "num_clips": 8},
    {"dimension": "camera", "mean": 0.9, "low": 0.8, "high": 1.0, "num_clips": 8},
]
RECORDS = [
    *(clip_record(0, n, 0.2 + n / 10) for n in range(3)),
    clip_record(1, 0, None, scores={"camera": 1.0}),
    clip_record(2, 0, 0.9, dimension="camera", scores={"camera": 1.0}),
    clip_record(3, 0, 0.7, dimension="", kind="recaption", scores={"motion": 0.5}),
    *(clip_record(9, n, None, dimension="", kind="real", scores={}) for n in range(4)),
]


def _counts(**some: int) -> dict[str, int]:
    return {"kept": 0, **dict.fromkeys(REASONS, 0), **some}


def _made(folder: Path, weakness: Weakness = WEAK, **prompts: Any) -> tuple[Recipe, Artifacts]:
    """Write what the phase leaves, and return the recipe and the artifacts of its run."""
    written = WrittenSet(
        weaknesses=(weakness,),
        prompts=(),
        counts={
            "base": _counts(kept=4, duplicate=2, implausible=3),
            "long": _counts(kept=4, not_judged=1),
            "llm": {"broken_plausible": 5},
        },
        dimension_scores=tuple(ROWS) if weakness.clusters else (),
    )
    written.save(folder / "written.json")
    made_by = {
        "policy": "abc",
        "real": {"seen": 9, "kept": 4, "dropped": {"low_aesthetic": 5}},
        "render": {"num_rendered": 6, "num_kept": 2, "num_quarantined": 3, "wall_s": 3.0},
    }
    write_manifest(folder / "mine", RECORDS, rows_per_part=4, made_by=made_by)
    (folder / "shown").mkdir()
    rows = []
    for side, record in (("best", RECORDS[4]), ("worst", RECORDS[0])):
        for ending in ("mp4", "png"):
            (folder / "shown" / f"{side}.{ending}").write_bytes(f"{side} {ending}".encode())
        rows.append({"side": side, "name": side, "clip": record.to_json()})
    (folder / "shown" / "shown.json").write_text(json.dumps(rows))
    policy = Policy(model_path="tiny")
    artifacts = Artifacts(
        base_policy=policy, policy=policy, datasets={"mine": str(folder / "mine")}
    )
    engine = {"name": "mine", "weakness": {"below": 0.7}, "prompts": prompts}
    return recipe(phases=["data_engine"], data_engine=engine), artifacts


def _data(folder: Path, weakness: Weakness = WEAK, **prompts: Any) -> DataSetData:
    found = dataset_data(*_made(folder, weakness, **prompts))
    assert found is not None
    return found


def _page(data: DataSetData) -> str:
    return build_report(ReportData(title="t", summary=[], rows=[], dataset=data))


def test_clips_are_counted_by_dimension_and_kind() -> None:
    motion, camera, nothing = clips_rows(RECORDS)
    assert (motion.name, motion.num_prompts, motion.num_missing) == ("motion", 2, 1)
    assert dict(motion.num_clips) == {"synthetic": 4}
    assert list(motion.rewards) == pytest.approx([0.2, 0.3, 0.4])
    assert motion.own_mean == pytest.approx(0.3)
    assert (camera.own_mean, camera.reward_mean) == (1.0, 0.9)
    assert dict(nothing.num_clips) == {"recaption": 1, "real": 4}
    assert (nothing.num_missing, nothing.own_mean) == (0, None), "a real clip needs no reward"


def test_everything_that_was_kept_or_dropped_is_there(tmp_path: Path) -> None:
    data = _data(tmp_path, plausibility="llm", llm={"url": "http://127.0.0.1:1"})
    assert [(row.name, list(row.numbers)) for row in data.prompts] == [
        ("written", [9, 5]),
        ("kept", [4, 4]),
        ("dropped: duplicate", [2, 0]),
        ("dropped: implausible", [3, 0]),
        ("dropped: not judged", [0, 1]),
    ]
    assert data.prompts_note.endswith("model that could not be read: broken plausible 5.")
    assert [(row.name, list(row.numbers)) for row in data.real] == [
        ("seen", [9]),
        ("kept", [4]),
        ("dropped: low aesthetic", [5]),
    ]
    assert data.summary.startswith("6 rendered clips of prompts for 1 weak dimension, ")
    facts = {name: (value, note) for name, value, note in data.facts}
    assert facts["manifest"] == ("10 rows", f"3 files in {tmp_path}/mine/manifest")
    assert facts["rendered"] == (
        "6 clips",
        "2.00 a second; 2 kept of an earlier attempt; 3 left out, whose prompts cost actors",
    )


def test_weak_dimensions_have_their_interval_words_and_prompts(tmp_path: Path) -> None:
    data = _data(tmp_path)
    assert [(row.name, row.is_weak) for row in data.dimensions] == [
        ("motion", True),
        ("camera", False),
    ]
    page = _page(data)
    assert "[0.400, 0.600]" in page
    assert "hits wall<small>7 prompts, 0.20</small>" in page
    assert "a &lt;b&gt;red&lt;/b&gt; ball hits a wall</dt><dd>0.12" in page
    assert page.count("data:video/mp4") == 2
    assert "Nobody judged whether a prompt could be filmed" in page


def test_shown_clips_stand_beside_their_own_scores(tmp_path: Path) -> None:
    best, worst = _data(tmp_path).shown
    assert (best.is_best, best.prompt, best.reward) == (True, "prompt 2", 0.9)
    assert (worst.is_best, worst.prompt, worst.dimension) == (False, "prompt 0", "motion")
    assert (best.video, best.strip, worst.video) == (b"best mp4", b"best png", b"worst mp4")


def test_a_dimension_that_the_user_named_has_no_interval(tmp_path: Path) -> None:
    named = Weakness(dimension="motion", description="about walls", seed_prompts=("a", "b"))
    data = _data(tmp_path, named)
    assert data.weak[0].lowest == [("a", None), ("b", None)]
    page = _page(data)
    assert "Named by the recipe" in page
    assert "about walls" in page


def test_a_run_that_made_no_data_set_shows_none(tmp_path: Path) -> None:
    made, artifacts = _made(tmp_path)
    other = made.model_copy(update={"phases": ("sft",)})
    assert dataset_data(other, artifacts) is None
    assert dataset_data(made, replace(artifacts, datasets={})) is None
    assert "Data set" not in build_report(ReportData(title="t", summary=[], rows=[]))
