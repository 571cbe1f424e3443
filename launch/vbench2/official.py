"""The official package `vbench2` as back end: its own models judge, our table counts.

    pip install vbench2==0.1.1        # in an environment of its own, with its models and a GPU

It pins some hundred packages (deepspeed 0.12, diffusers 0.32) that rlvid cannot live with. So this
module needs nothing that Python does not bring, and `vbench2` only when a run is asked for: in its
environment put rlvid's checkout on PYTHONPATH and call `run_official`, or run the benchmark's own
evaluate.sh there and read its files here with `rlvid vbench2 read`.

Written from the code of release 0.1.1 and of the repository's main branch; never run with the
models, which need a GPU and some 40 GB. What is tested is the reading of result files of their
form. Release 0.1.1 (April 2025) counts instances for Instance_Preservation; the branch has the
detector that published figures come from, so install from there to compare with them.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rlvid.evaluation.vbench2.dimensions import DIMENSIONS, known
from rlvid.launch.vbench2.table import Row

PACKAGE = "vbench2"
RESULTS = "_eval_results.json"
"""End of the names of the files that it writes."""
EXCLUDED = -1
"""Its value of a video that the rule excludes."""


def run_official(
    videos: Path,
    items: Path,
    out: Path,
    *,
    dimensions: Sequence[str] = (),
    device: str = "cuda",
    local: bool = False,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Have the official package judge a folder, one dimension after the other; return its files.

    A dimension whose file is there already is not judged again. Videos lie in a folder named after
    the dimension, as its evaluate.sh wants them, or all in one.

    Args:
        local: use models that were downloaded before.

    Raises:
        ValueError: the package is not installed, or an unknown dimension.
    """
    wanted = [known(name).name for name in dimensions or DIMENSIONS]
    package = load_package()
    written = []
    for name in wanted:
        path = out / f"{name}{RESULTS}"
        if not path.is_file():
            say(f"{name}: judged by {PACKAGE}")
            folder = videos / name if (videos / name).is_dir() else videos
            benchmark = package.VBench2(device, str(items), str(out))
            # The list is always given: the one built in misspells Complex_Landscape in 0.1.1.
            benchmark.evaluate(
                videos_path=str(folder), name=name, dimension_list=[name], local=local
            )
        written.append(path)
    return written


def load_package() -> ModuleType:
    """Import the official package; ValueError says how to get it where it is not installed."""
    try:
        package = importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        missing = f"it is installed without {error.name!r}" if error.name != PACKAGE else "missing"
        raise ValueError(
            f"vbench2 official: the package {PACKAGE!r} cannot be imported ({missing}). Install it "
            "in an environment of its own (pip install vbench2==0.1.1; it pins packages that rlvid "
            "cannot use), run its evaluate.sh there, and give the *_eval_results.json files to "
            "rlvid vbench2 read; or judge with served models: rlvid vbench2 judge."
        ) from error
    if not hasattr(package, "VBench2"):
        raise ValueError(
            f"vbench2 official: {package!r} has no class VBench2: a folder or another package of "
            "that name. Start rlvid elsewhere, or install the package."
        )
    return package


def read_results(paths: Sequence[Path]) -> list[Row]:
    """Return the rows of result files, in the benchmark's order; files may hold any dimensions.

    A value is the package's own, so that it can be compared with published ones.

    Raises:
        ValueError: no such file, another form, a dimension that is unknown or given twice.
    """
    rows: dict[str, Row] = {}
    for path in paths:
        for name, told in _tree(path).items():
            row = _row(_dimension(name, where=str(path)), told, where=f"{path}: {name}")
            if row.name in rows:
                raise ValueError(f"{path}: {name}: is in another file too; give it once.")
            rows[row.name] = row
    return [rows[name] for name in DIMENSIONS if name in rows]


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"vbench2 read: {path}: cannot be read: {error}.") from error
    if not isinstance(tree, dict) or not tree:
        raise ValueError(
            f"vbench2 read: {path}: expected {{dimension: [value, videos]}}, as in the package's "
            f"files that end in {RESULTS}."
        )
    return tree


def _dimension(name: str, *, where: str) -> str:
    """Return our name; the package itself varies in case, "_", "-" and blanks."""
    plain = {_plain(one): one for one in DIMENSIONS}
    if _plain(name) not in plain:
        raise ValueError(f"{where}: unknown dimension {name!r}.")
    return plain[_plain(name)]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def _row(name: str, told: Any, *, where: str) -> Row:
    """Read [value, [{video_path, video_results}, ...]]; a video's -1 is one that is excluded."""
    if not isinstance(told, list) or len(told) != 2 or not isinstance(told[1], list):
        raise ValueError(f"{where}: expected [value, list of videos], got {str(told)[:80]}.")
    value = _number(told[0], where)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{where}: expected a value in [0, 1], got {value}.")
    videos = []
    for number, video in enumerate(told[1]):
        if not isinstance(video, dict) or "video_results" not in video:
            raise ValueError(f"{where}: video {number}: expected video_results, got {video!r}.")
        videos.append(_number(video["video_results"], f"{where}: video {number}"))
    excluded = sum(one == EXCLUDED for one in videos)
    if excluded == len(videos) and not DIMENSIONS[name].scores_mostly_excluded_as_zero:
        raise ValueError(
            f"{where}: expected a video with a value, got {len(videos)} videos, all excluded."
        )
    return Row(
        name=name,
        value=value,
        num_judged=len(videos) - excluded,
        num_excluded=excluded,
        by=PACKAGE,
    )


def _number(value: Any, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ValueError(f"{where}: expected a number, got {value!r}.")
    return float(value)
