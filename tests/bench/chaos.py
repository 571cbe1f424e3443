"""A GRPO run under fire, and the same run in peace; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.chaos --blows 34 --steps 190

Real Ray, DeepSpeed and the tiny model, two overlapping steps (`max_staleness: 1`). Rollout actors,
the scorers' process, the learner rank and the driver are killed (SIGKILL) and stopped (SIGSTOP) in
a seeded order, each kind at least twice; every recovery is witnessed from outside. Afterwards:
issued = consumed + dropped, nothing consumed twice, nothing in flight, and the held-out reward of
the last step lies inside the interval of the undisturbed runs with other seeds.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from rlvid.config.loader import load_recipe
from rlvid.launch.ledger import open_ledger
from rlvid.launch.replay_log import read_replay_log
from rlvid.observability.recorder import read_rows
from tests.bench.timing import environment, t_interval
from tests.system.chaos import KINDS, Chaos, run_command, schedule
from tests.system.conftest import SMALL, merged

OVERLAPPED: dict[str, Any] = {"rollout": {"max_staleness": 1}}
HASTY: dict[str, Any] = {
    "phases": ["grpo"],
    "rollout": {
        "heartbeat_s": 1.0,
        "stall_s": 15.0,
        "deadline_s": 60.0,
        "crash_budget": 100,
        "max_deaths_per_prompt": 5,
    },
    "rewards": {"heartbeat_s": 1.0, "stall_s": 15.0, "max_lost_in_a_row": 50},
    "learner": {"stall_s": 15.0, "deadline_s": 120.0, "crash_budget": 100},
    "grpo": {"checkpoint": {"every": 2, "keep": 2}},
}
"""Deadlines of seconds, so that what is stopped is found soon; nothing that is learned depends on
them."""
SMALLEST: dict[str, Any] = {
    "rollout": {"num_actors": 2, "groups_per_step": 4},
    "rewards": {"colocate": True},
    "grpo": {"evaluate_prompts": 16},
}
STALL_S = 20.0
RECOVER_S = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blows", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", help="name or file; without it the smallest that trains")
    parser.add_argument("--steps", type=int, default=60, help="of the smallest recipe")
    parser.add_argument("--undisturbed", type=int, default=3, help="runs to compare with")
    parser.add_argument(
        "--compare", type=Path, nargs="+", help="finished undisturbed runs, instead of making some"
    )
    parser.add_argument("--keep", type=Path, help="folder for the runs; else a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos_") as name:
        folder = arguments.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(tree_of(arguments.recipe, arguments.steps)))
        found = under_fire(recipe, folder / "chaos", arguments.blows, arguments.seed)
        numbers = () if arguments.compare else range(arguments.undisturbed)
        peaceful = [heldout_of(run) for run in arguments.compare or ()]
        peaceful += [in_peace(recipe, folder / f"peace-{n}", n) for n in numbers]
    if len(peaceful) > 1 and found["heldout"] is not None:
        found["interval"] = low, high = interval(peaceful)
        if not low <= found["heldout"] <= high:
            found["problems"].append("the held-out reward lies outside the undisturbed runs'")
    result = {
        "environment": environment(torch.device("cpu")),
        "recipe": arguments.recipe or "the smallest",
        **found,
        "undisturbed_heldout": peaceful,
    }
    print(json.dumps(result, indent=1))
    sys.exit(0 if found["problems"] == [] else 1)


def tree_of(recipe: str | None, num_steps: int) -> dict[str, Any]:
    """Return the recipe that is run, overlapped and with short deadlines."""
    if recipe is not None:
        return merged(load_recipe(recipe).model_dump(mode="json"), OVERLAPPED, HASTY)
    length = {"grpo": {"num_steps": num_steps, "evaluate_every": num_steps}}
    return merged(SMALL, SMALLEST, OVERLAPPED, HASTY, length)


def interval(values: list[float]) -> tuple[float, float]:
    """Return where one more run lies: two-sided 95 % of Student's t with n - 1 degrees."""
    low, high = t_interval(values, of_one_more=True)
    return round(low, 4), round(high, 4)


def under_fire(recipe: Path, run: Path, num_blows: int, seed: int) -> dict[str, Any]:
    """Run once under fire; return what was hit, what recovered, and what is wrong at the end."""
    started = time.monotonic()
    restarts = num_blows + 2
    chaos = Chaos(run_command(recipe, run, restarts=restarts, stall_s=STALL_S), run, seed=seed)
    try:
        chaos.strike(schedule(num_blows, seed=seed), recover_s=RECOVER_S)
        status = chaos.finish(timeout_s=3600.0)
    finally:
        chaos.stop()
    summary = chaos.summary()
    return {
        "exit_status": status,
        "seconds": round(time.monotonic() - started, 1),
        "heldout": heldout_of(run) if status == 0 else None,
        **summary,
        "ledger": account_of(run),
        "problems": problems_of(run, status, summary),
    }


def problems_of(run: Path, status: int, summary: dict[str, Any]) -> list[str]:
    """Return what must not be; [] is a pass. A run that was hardly hit fails as vacuous."""
    account, found = account_of(run), []
    if status != 0:
        found.append(f"the run ended with status {status}")
    if account["issued"] != account["consumed"] + account["dropped"] or account["in_flight"]:
        found.append(f"groups are unaccounted for: {account}")
    if account["consumed_twice"]:
        found.append(f"consumed twice: {account['consumed_twice']}")
    for role, number in KINDS:
        kind = f"{role} {signal.Signals(number).name}"
        recovered = summary["by_kind"].get(kind, {}).get("recovered", 0)
        if recovered < 2:
            found.append(f"vacuous: {recovered} recoveries of {kind} were witnessed, expected 2")
    return found


def account_of(run: Path) -> dict[str, Any]:
    """Return the ledger's counts, and the groups that the learner took more than once."""
    [path] = run.glob("phases/*_grpo/ledger.sqlite")
    ledger = open_ledger(path)
    counts, reasons = ledger.counts(), ledger.drop_reasons()
    ledger.close()
    learned = [record.group_id for record in read_replay_log(path.parent / "replay.log")]
    return {
        "issued": counts.issued,
        "consumed": counts.consumed,
        "dropped": counts.dropped,
        "in_flight": counts.in_flight,
        "drop_reasons": reasons,
        "consumed_twice": sorted({group for group in learned if learned.count(group) > 1}),
    }


def in_peace(recipe: Path, run: Path, seed: int) -> float:
    """Run undisturbed and return the last held-out reward."""
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", str(recipe), f"seed={seed}"]
    subprocess.run(
        [*command, "--run-folder", str(run)],
        check=True, timeout=3600, stdout=sys.stderr, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return heldout_of(run)


def heldout_of(run: Path) -> float:
    """Return the held-out reward after the last step."""
    rows = [row["metrics"] for row in read_rows(run / "metrics.jsonl")]
    return next(
        round(float(row["heldout/reward/mean"]), 4)
        for row in reversed(rows)
        if "heldout/reward/mean" in row
    )


if __name__ == "__main__":
    main()
