"""Whether two finished runs are the same run, bit for bit, in all but their times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from rlvid.launch.ledger import open_ledger
from rlvid.observability.recorder import read_rows

OF_ONE_START = ("learner.json", "ledger.sqlite", "manifest.json")
"""Files of a checkpoint that also say how often the learner was started, and when."""


def policy_tensors(run: Path) -> dict[str, Any]:
    """Return the exported policy's tensors, the averaged ones too, by file and name."""
    tensors: dict[str, Any] = {}
    for folder in sorted(run.glob("phases/*_grpo/policy*")):
        for file in sorted(folder.rglob("*.safetensors")):
            place = file.relative_to(folder.parent)
            tensors |= {f"{place}:{name}": value for name, value in load_file(file).items()}
    assert tensors, f"no weights under {run}"
    return tensors


def checkpoint_digests(run: Path) -> dict[str, str]:
    """Return the digests of the newest checkpoint's files: parameters, optimiser, average, RNG."""
    folder = max(run.glob("phases/*_grpo/checkpoints/step-*"))
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return {
        f"{folder.name}/{name}": entry["xxh3_128"]
        for name, entry in files.items()
        if name not in OF_ONE_START
    }


def ledger_account(run: Path) -> list[tuple[object, ...]]:
    """Return what became of every group, evaluations included."""
    [path] = run.glob("phases/*_grpo/ledger.sqlite")
    ledger = open_ledger(path)
    try:
        return list(ledger.account())
    finally:
        ledger.close()


OF_THE_RECIPE = (
    "learner/", "heldout/", "correlation/", "guards/", "alarms/", "rollout/reward/",
    "rollout/groups/consumed", "rollout/groups/uniform", "rollout/staleness/", "rollout/forwards/",
)  # fmt: skip
"""Metrics that are functions of the recipe: no times, no counts of the pool."""


def metric_rows(run: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the steps of the run's GRPO phase, each with what is a function of the recipe."""
    return [
        (
            row["step"],
            {
                name: value
                for name, value in row["metrics"].items()
                if (name.startswith(OF_THE_RECIPE) and not name.endswith(("peak_mb", "/seconds")))
                or (name.startswith("rewards/") and name.endswith(("/mean", "/weight")))
            },
        )
        for row in read_rows(run / "metrics.jsonl")
        if row["phase"].endswith("_grpo")
    ]


def differences(first: Path, second: Path) -> list[str]:
    """Return what differs between two runs; [] when they are the same."""
    one, two = policy_tensors(first), policy_tensors(second)
    found = [f"policy {name}" for name in sorted(one.keys() ^ two.keys())]
    found += [
        f"policy {name}" for name in one.keys() & two.keys() if not one[name].equal(two[name])
    ]
    saved, saved_too = checkpoint_digests(first), checkpoint_digests(second)
    found += [
        f"checkpoint {name}"
        for name in sorted(saved.keys() | saved_too.keys())
        if saved.get(name) != saved_too.get(name)
    ]
    if ledger_account(first) != ledger_account(second):
        found.append("ledger")
    if metric_rows(first) != metric_rows(second):
        found.append("metrics")
    return found
