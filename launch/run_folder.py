"""The folder of a run: resolved recipe, versions, one folder a phase, metrics, report.

<run>/recipe.yaml  versions.json  metrics.jsonl  tensorboard/  report.html
<run>/phases/00_grpo/{began.json, artifacts.json, checkpoints/, policy/, ledger.sqlite}
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from rlvid.config import Recipe
from rlvid.config.loader import dump_recipe
from rlvid.durable import is_temporary, write_file

PACKAGES = (
    "rlvid", "torch", "diffusers", "transformers", "deepspeed", "ray", "peft", "vllm", "numpy",
    "pymunk", "opencv-python-headless",
)  # fmt: skip

BUILT_FROM = Path(__file__).with_name("built_from.txt")
"""In a wheel of launch/wheel.sh: its commit, with "-dirty" where the checkout was edited."""
MAY_CHANGE = (
    ("cluster",),
    ("rollout", "num_actors", "autoscale", "sequence_parallel", "node_group"),
    ("rewards", "node_group"),
    (
        *("learner", "num_ranks", "sequence_parallel", "zero_stage", "offload"),
        *("num_cpus", "num_gpus", "node_group", "deadline_s", "stall_s"),
    ),
)
"""Where a run runs and on how much, a section or keys of one: a job that is queued again gets other
machines."""


class RunFolderError(ValueError):
    """The run folder cannot be used as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def phase(self, index: int, name: str) -> Path:
        """Folder of a phase; a plugin's name is shortened to its class."""
        return self.path / "phases" / f"{index:02d}_{name.rpartition(':')[2].lower()}"


def began_at(phase: Path) -> float:
    """Return when the phase in this folder was first started, in seconds since the epoch.

    Noted for later drivers: their own time is not what a run took that was killed or made room.
    """
    note = phase / "began.json"
    if not note.exists():
        write_file(note, [json.dumps({"began_s": time.time()}).encode()])
    return float(json.loads(note.read_text())["began_s"])


def open_run_folder(path: Path, recipe: Recipe, *, resume: bool) -> RunFolder:
    """Create the folder and write recipe and versions, or check that a resume fits.

    Raises:
        RunFolderError: the folder is in use and `resume` is off, cannot be written, holds no run to
            resume, or holds a run of another recipe.
    """
    folder = RunFolder(path=path)
    if resume:
        _check_resume(folder, recipe)
        return folder
    # What a driver that was killed here was just writing is no run.
    if path.exists() and (
        not path.is_dir() or any(not is_temporary(file) for file in path.iterdir())
    ):
        raise RunFolderError(
            f"run folder {str(path)!r}: already in use; "
            "add --resume to continue that run, or name another with --run-folder"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_file(folder.recipe, [dump_recipe(recipe).encode()])  # whole, or not there at all
        (path / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n")
    except OSError as error:
        raise RunFolderError(
            f"run folder {str(path)!r}: cannot be written ({error.strerror}); "
            "name a folder you may write with --run-folder"
        ) from error
    return folder


def _check_resume(folder: RunFolder, recipe: Recipe) -> None:
    if not folder.recipe.is_file():
        raise RunFolderError(
            f"run folder {str(folder.path)!r}: nothing to resume, it has no recipe.yaml; "
            "leave out --resume to start a run there"
        )
    before = _bound_lines(folder.recipe.read_text())
    now = _bound_lines(dump_recipe(recipe))
    changed = sorted({line.strip() for line in set(before) ^ set(now)})
    if changed:
        raise RunFolderError(
            f"run folder {str(folder.path)!r}: holds a run of another recipe, "
            f"these lines differ: {'; '.join(changed[:6])}. "
            f"Resume with {str(folder.recipe)!r} and no overrides, or start a new folder"
        )
    if not os.access(folder.path, os.W_OK):
        raise RunFolderError(
            f"run folder {str(folder.path)!r}: cannot be written; check its owner and mode"
        )


def _bound_lines(recipe: str) -> list[str]:
    """Return the lines of a recipe that a resume must not change."""
    tree = yaml.safe_load(recipe)
    for section, *keys in MAY_CHANGE:
        for key in keys or [""]:
            (tree.get(section, {}) if key else tree).pop(key or section, None)
    return yaml.safe_dump(tree, sort_keys=False, width=100).splitlines()


def versions() -> dict[str, str]:
    """Package versions, Python, platform and the commit of the code, for reproduction."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["commit"] = _commit()
    return found


def _commit() -> str:
    """The commit of the checkout, or that a wheel says; else "not a checkout"."""
    if BUILT_FROM.is_file():
        return BUILT_FROM.read_text().strip()
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).resolve().parent, capture_output=True, text=True, timeout=10,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "not a checkout"
    return answer.stdout.strip()
