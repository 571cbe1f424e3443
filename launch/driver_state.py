"""What the driver remembers between steps and a resume must find again: small numbers, as JSON.

It lies in the learner's checkpoint, so both are of the same step. Floats are written so that they
read back the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlvid.algorithms.aggregation import State
from rlvid.algorithms.running_stats import RunningStats
from rlvid.evaluation.monitor import Memory

FILE = "driver.json"


@dataclass(slots=True)
class DriverState:
    """Held by the loop; replaced part by part as steps are done."""

    running: State = field(default_factory=dict)
    """Running statistics of the scorers, where the recipe normalises by them."""
    memory: Memory = field(default_factory=Memory)
    """Of the monitor: what the run began with, alarms that are on, the best step."""
    unmeasured: dict[str, float] | None = None
    """Metrics of the last step while its evaluation is still to be made."""

    def to_json(self) -> dict[str, Any]:
        running = {name: asdict(stats) for name, stats in self.running.items()}
        return {
            "running": running,
            "monitor": self.memory.to_json(),
            "unmeasured": self.unmeasured,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> DriverState:
        return cls(
            running={name: RunningStats(**stats) for name, stats in tree["running"].items()},
            memory=Memory.from_json(tree["monitor"]),
            unmeasured=tree["unmeasured"],
        )


def load_driver_state(checkpoint: Path) -> DriverState:
    """Return the state that a checkpoint holds.

    Raises:
        ValueError: it holds none, or not one of this version.
    """
    path = checkpoint / FILE
    try:
        return DriverState.from_json(json.loads(path.read_text()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the driver's state, got {type(error).__name__}: {error}. The "
            "checkpoint is of another version of rlvid; start a new run folder"
        ) from error
