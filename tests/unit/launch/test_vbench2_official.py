"""The official package's result files, of hand-made figures in their true form; and its absence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlvid.evaluation.vbench2.dimensions import DIMENSIONS
from rlvid.launch.vbench2 import table
from rlvid.launch.vbench2.official import read_results, run_official
from tests.unit.launch.test_cli import rlvid


def told(value: float, *videos: float) -> list[Any]:
    """[value, videos], as `compute_<dimension>` returns it and json.dump writes the tuple."""
    return [
        value,
        [{"video_path": f"v/a man-{n}.mp4", "video_results": one} for n, one in enumerate(videos)],
    ]


def write(path: Path, tree: Any) -> Path:
    path.write_text(json.dumps(tree, indent=4))
    return path


def test_files_of_all_dimensions_become_one_table(tmp_path: Path) -> None:
    """One file for a dimension, as evaluate.sh writes them."""
    files = [
        write(tmp_path / f"{name}_eval_results.json", {name: told(0.5, 1, 0)})
        for name in DIMENSIONS
        if name != "Mechanics"
    ]
    files.append(write(tmp_path / "m_eval_results.json", {"Mechanics": told(1.0, 1, -1, 1)}))
    rows = read_results(files)
    assert [row.name for row in rows] == list(DIMENSIONS)
    [mechanics] = [row for row in rows if row.name == "Mechanics"]
    assert (mechanics.num_judged, mechanics.num_excluded) == (2, 1)
    tree = table.result(rows, source={"back_end": "vbench2"})
    assert tree["groups"]["Physics"] == pytest.approx(0.625)
    assert tree["total"] == pytest.approx((4 * 0.5 + 0.625) / 5)
    assert tree["missing"] == []


def test_the_name_that_its_own_list_misspells_is_known(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", {"Complex_LandScape": told(0.2, 0.2)})
    assert [row.name for row in read_results([path])] == ["Complex_Landscape"]


def test_motion_order_may_be_zero_with_every_video_excluded(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", {"Motion_Order_Understanding": told(0, -1, -1)})
    [row] = read_results([path])
    assert (row.value, row.num_judged, row.num_excluded) == (0.0, 0, 2)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "expected {dimension"),
        ({"Mechanic": told(1.0, 1)}, "unknown dimension 'Mechanic'"),
        ({"Mechanics": 0.5}, "expected \\[value, list of videos\\]"),
        ({"Mechanics": told(70.0, 1)}, "expected a value in \\[0, 1\\], got 70"),
        ({"Mechanics": told(float("nan"), 1)}, "expected a number"),
        ({"Mechanics": told(1.0, -1)}, "got 1 videos, all excluded"),
        ({"Mechanics": [1.0, [{"video_path": "x"}]]}, "video 0: expected video_results"),
        ({"Mechanics": told(1.0, 1), "mechanics": told(1.0, 1)}, "give it once"),
    ],
)
def test_another_form_is_named(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_results([write(tmp_path / "x.json", tree)])


def test_without_the_package_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vbench2", None)
    with pytest.raises(ValueError, match="pip install vbench2.*rlvid vbench2 judge"):
        run_official(tmp_path, tmp_path / "info.json", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "vbench2", ModuleType("vbench2"))
    with pytest.raises(ValueError, match="no class VBench2"):
        run_official(tmp_path, tmp_path / "info.json", tmp_path / "out")


def test_each_dimension_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with the signature of release 0.1.1; the real one needs its models."""
    calls = []

    class VBench2:
        def __init__(self, device: str, full_info_dir: str, output_path: str) -> None:
            self.out = Path(output_path)
            self.out.mkdir(exist_ok=True)

        def evaluate(
            self,
            videos_path: str,
            name: str,
            prompt_list: list[str] | None = None,
            dimension_list: list[str] | None = None,
            local: bool = False,
            read_frame: bool = False,
            mode: str = "vbench_standard",
        ) -> None:
            calls.append((Path(videos_path).name, dimension_list))
            assert dimension_list is not None
            tree = {one: told(0.5, 1, 0) for one in dimension_list}
            write(self.out / f"{name}_eval_results.json", tree)

    package = ModuleType("vbench2")
    package.VBench2 = VBench2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vbench2", package)
    videos = tmp_path / "videos"
    (videos / "Mechanics").mkdir(parents=True)
    for _ in range(2):
        files = run_official(
            videos,
            tmp_path / "info.json",
            tmp_path / "out",
            dimensions=["Mechanics", "Material"],
            say=lambda text: None,
        )
    assert calls == [("Mechanics", ["Mechanics"]), ("videos", ["Material"])]
    assert [row.name for row in read_results(files)] == ["Mechanics", "Material"]


def test_the_command_shows_and_writes_the_table(tmp_path: Path) -> None:
    path = write(tmp_path / "x_eval_results.json", {"Mechanics": told(0.5, 1, 0)})
    answer = rlvid("vbench2", "read", str(path), "--out", str(tmp_path / "out"), folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "no value, and in no mean: Diversity" in answer.stdout
    tree = json.loads((tmp_path / "out" / "vbench2.json").read_text())
    assert (tree["total"], tree["mean"]) == (None, 0.5)


def test_the_command_says_that_the_package_is_missing(tmp_path: Path) -> None:
    answer = rlvid(
        "vbench2", "official", ".", "--items", "info.json", "--out", "out", folder=tmp_path
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: vbench2 official: the package 'vbench2'")
