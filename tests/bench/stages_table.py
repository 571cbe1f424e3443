"""What each stage of the whole pipeline is worth, on the tiny default. Prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.stages_table --keep FOLDER

The recipe is run once a seed: fine-tuning, GRPO, prompt enhancement, a few-step and a causal
student, evaluation. Everything is on held-out prompts from the same noise, in captions (full) and
in a user's words (vague). Changes are against the stage before; shares are a student's of its
teacher's gain over the base, over sft, and of its motion. `undistilled` is the teacher in as few
steps as the student. Intervals are Student's t over the seeds; with one seed the evaluation's own,
over its prompts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlvid.launch.run import artifacts_of
from tests.bench.marked_cpu import recipe_minutes
from tests.bench.timing import environment, t_interval

RECIPE = "post_train_tiny_cpu"
RESULT = "stages.json"
FIRST_SEED = 1
"""The reward model that ships was trained from seed 0; a run trains another, to judge."""
BASE = "base"
BEFORE_RL = "sft"
"""The stage from which the gain of RL is counted."""
Tree = Mapping[str, Any]
"""The key `stages` of an evaluation.json."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder for the runs; else a temporary one")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="of the recipe, for all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stages_") as name:
        folder = arguments.keep or Path(name)
        runs = [
            run_pipeline(
                folder / f"stages-{seed}",
                arguments.recipe,
                [f"seed={seed}", *arguments.changes],
            )
            | {"seed": seed}
            for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds)
        ]
    result = {
        "environment": environment(torch.device("cpu")),
        "recipe": arguments.recipe,
        "changes": arguments.changes,
        "costs": [{key: run[key] for key in ("seed", "cpu_minutes", "wall_s")} for run in runs],
        "stages": summary([run["stages"] for run in runs]),
    }
    print(json.dumps(result, indent=1))


def run_pipeline(run: Path, recipe: str, changes: Sequence[str]) -> dict[str, Any]:
    """Run the recipe, unless the folder has it finished; return what came of it."""
    written = run / RESULT
    if not written.exists():
        minutes = recipe_minutes(run, recipe, changes)
        artifacts = artifacts_of(run)
        assert artifacts.evaluation is not None, f"{recipe} does not evaluate"
        found = {
            "cpu_minutes": round(minutes, 2),
            "wall_s": {name: round(value, 1) for name, value in artifacts.timings_s.items()},
            "stages": json.loads(Path(artifacts.evaluation).read_text())["stages"],
        }
        written.write_text(json.dumps(found))
    loaded: dict[str, Any] = json.loads(written.read_text())
    return loaded


def summary(trees: Sequence[Tree]) -> list[dict[str, Any]]:
    """Return a line for each stage and set of prompts, over the seeds."""
    found = []
    for place, column in enumerate(trees[0]["columns"]):
        for prompts in trees[0]["sets"]:
            cells = [tree["columns"][place]["sets"][prompts] for tree in trees]
            found.append(
                {
                    "stage": column["name"],
                    "before": column["before"],
                    "prompts": prompts,
                    "lines": {
                        line["name"]: line_of([cell["lines"][line["name"]] for cell in cells])
                        | {"trained": line["trained"]}
                        for line in trees[0]["lines"]
                    },
                    **shares_of(trees, place, prompts),
                    "num_function_evaluations": column["num_function_evaluations"],
                    "seconds_per_clip": mean([cell["seconds_per_clip"] for cell in cells]),
                }
            )
    return found


def line_of(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a mean, the gain over the base, and change and GSB against the stage before."""
    line: dict[str, Any] = {"mean": mean([cell["mean"] for cell in cells])}
    changes = [cell["vs_before"] for cell in cells if cell["vs_before"] is not None]
    if changes:
        line["gain"] = over_seeds([cell["vs_base"] for cell in cells], "difference", "low", "high")
        line["change"] = over_seeds(changes, "difference", "low", "high")
        line["gsb"] = over_seeds(changes, "gsb", "gsb_low", "gsb_high")
    return line


def shares_of(trees: Sequence[Tree], place: int, prompts: str) -> dict[str, Any]:
    """Return what a student keeps of its teacher: of its reward gains and of its motion."""
    if not trees[0]["columns"][place]["teacher"]:
        return {}
    motions = [tree["columns"][place]["sets"][prompts]["motion_share"] for tree in trees]
    return {
        "share_of_gain": share_of_gain(trees, place, prompts, BASE),
        "share_of_gain_over_sft": share_of_gain(trees, place, prompts, BEFORE_RL),
        "motion_share": None if None in motions else over_seeds(motions, "value", "low", "high"),
    }


def share_of_gain(
    trees: Sequence[Tree], place: int, prompts: str, start: str
) -> dict[str, Any] | None:
    """Return the student's mean gain in reward over its teacher's, both over the stage `start`.

    The teacher is the stage it was distilled from, which is shown the same rewrites; on vague
    prompts they are part of the gain. None where the teacher's gain is not surely above 0 over the
    seeds, since a share of what may be nothing says nothing, and where the run has no `start`.
    """
    if start not in {column["name"] for column in trees[0]["columns"]}:
        return None
    parts, wholes = [], []
    for tree in trees:
        column = tree["columns"][place]
        rewards = {
            one["name"]: one["sets"][prompts]["lines"]["reward"]["mean"] for one in tree["columns"]
        }
        parts.append(rewards[column["name"]] - rewards[start])
        wholes.append(rewards[column["teacher"]] - rewards[start])
    surely = t_interval(wholes)[0] if len(wholes) > 1 else wholes[0]
    if surely <= 0.0:
        return None
    shares = [part / whole for part, whole in zip(parts, wholes, strict=True)]
    return {
        "value": round(sum(parts) / sum(wholes), 4),
        "interval": rounded(*t_interval(shares)) if len(shares) > 1 else None,
        "seeds": rounded(*shares),
    }


def over_seeds(
    values: Sequence[Mapping[str, float]], name: str, low: str, high: str
) -> dict[str, Any]:
    """Return the mean of a figure and its interval, that of the evaluation for one seed."""
    figures = [value[name] for value in values]
    interval = t_interval(figures) if len(figures) > 1 else (values[0][low], values[0][high])
    return {
        "value": mean(figures),
        "interval": rounded(*interval),
        "seeds": rounded(*figures),
    }


def mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 4)


def rounded(*values: float) -> list[float]:
    return [round(value, 4) for value in values]


if __name__ == "__main__":
    main()
