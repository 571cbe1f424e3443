"""Measures what the parts of the shipped reward model see: every breakage of the tiny world.

OMP_NUM_THREADS=1 python -m tests.bench.reward_model_auc > tests/bench/results/reward_model.json
python -m tests.bench.reward_model_auc --table tests/bench/results/reward_model.json

Held-out captions and seeds, claimed kinds or not. The second line prints the table of
rlvid/reward_models/README.md from a result.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlvid.config.rewards import ScorerConfig
from rlvid.models import digest_folder
from rlvid.models.tiny import reward_model_folder
from rlvid.reward_models import PARTS
from rlvid.reward_models.folder import CONFIG_FILE
from rlvid.rewards.calibration.calibrate import calibrate
from rlvid.rewards.calibration.report import CalibrationRow
from rlvid.rewards.registry import open_scorer
from tests.bench.timing import environment

COLUMNS = (*PARTS, "overall")


def measured(num_clips: int, seed: int) -> dict[str, Any]:
    """Return the AUC of every part on every breakage, `num_clips` true and as many broken clips."""
    started = time.perf_counter()
    scorers = {
        part: open_scorer(ScorerConfig(use="trained_reward", config={"part": part}), "bench")
        for part in COLUMNS
    }
    report = calibrate(scorers, num_clips=num_clips, seed=seed, unclaimed=True)
    model = json.loads((reward_model_folder() / CONFIG_FILE).read_text())
    return {
        "command": " ".join(["python -m tests.bench.reward_model_auc", *sys.argv[1:]]),
        "intervals": "[AUC, low, high], 95 % bootstrap",
        "model_digest": digest_folder(reward_model_folder()),
        "num_clips_a_side": num_clips,
        "seed": seed,
        "heldout_pairs": [
            {key: value for key, value in part.items() if key != "reliability"}
            for part in model["measured"]
        ],
        "breakages": _breakages(report.rows),
        "seconds": round(time.perf_counter() - started, 1),
        "environment": environment(torch.device("cpu")),
    }


def _breakages(rows: tuple[CalibrationRow, ...]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row.breakage, {})[row.scorer] = {
            "auc": [round(value, 4) for value in (row.auc, row.low, row.high)],
            "is_claimed": row.is_claimed,
            "num_missing": row.num_missing,
        }
    return found


def table(result: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table; what the scorer claims to see is in bold."""
    lines = [f"| breakage | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for breakage, parts in result["breakages"].items():
        cells = (_cell(parts[part]) for part in COLUMNS)
        lines.append(f"| {breakage.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(part: Mapping[str, Any]) -> str:
    value, low, high = part["auc"]
    shown = f"**{value:.3f}**" if part["is_claimed"] else f"{value:.3f}"
    return f"{shown} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200, help="a side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="print this result's table, measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
    else:
        print(json.dumps(measured(options.clips, options.seed), indent=1))


if __name__ == "__main__":
    main()
