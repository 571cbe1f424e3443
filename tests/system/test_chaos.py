"""A run whose processes are killed and stopped one after another ends as if nothing had been."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import yaml

from tests.bench.chaos import account_of
from tests.system.chaos import Chaos, run_command
from tests.system.conftest import merged
from tests.system.sleeping_run import SLEEPING

NUM_STEPS = 72
"""A blow, with the pause before it and the recovery, takes about five of them."""
HASTY = {
    "rollout": {
        "num_actors": 2,
        "groups_per_step": 4,
        "max_staleness": 1,
        "heartbeat_s": 0.5,
        "stall_s": 3.0,
        "deadline_s": 20.0,
        "crash_budget": 50,
    },
    "rewards": {"heartbeat_s": 0.5, "stall_s": 3.0, "max_lost_in_a_row": 20},
    "learner": {
        "stall_s": 3.0,
        "deadline_s": 20.0,
        "crash_budget": 50,
        "sleeping": {"train_s": 0.3},
    },
    "grpo": {"num_steps": NUM_STEPS, "checkpoint": {"every": 1}},
}
"""Deadlines of a few seconds, so that what is stopped is found soon."""
BLOWS = (
    ("rollout", signal.SIGKILL),
    ("learner", signal.SIGSTOP),
    ("reward", signal.SIGKILL),
    ("driver", signal.SIGKILL),
    ("rollout", signal.SIGSTOP),
    ("learner", signal.SIGKILL),
    ("reward", signal.SIGSTOP),
    ("driver", signal.SIGSTOP),
)
"""Every role twice. The long form, with the real model, is `tests/bench/chaos.py`."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_under_fire_accounts_for_every_group(tmp_path: Path) -> None:
    """Eight blows, two for each role: the run ends, and every group was consumed or dropped once.

    Vacuous unless a recovery from every blow is witnessed.
    """
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(merged(SLEEPING, HASTY)))
    chaos = Chaos(run_command(recipe, run, restarts=4, stall_s=6.0), run, seed=0)
    try:
        chaos.strike(BLOWS, recover_s=90.0)
        status = chaos.finish(timeout_s=300.0)
    finally:
        chaos.stop()
    log = (tmp_path / "run.log").read_text()
    assert status == 0, log[-4000:]
    unwitnessed = [blow for blow in chaos.blows if blow.recovered_s is None]
    assert (len(chaos.blows), unwitnessed) == (len(BLOWS), []), log[-4000:]
    account = account_of(run)
    assert account["issued"] == NUM_STEPS * 4
    assert account["consumed"] + account["dropped"] == account["issued"]
    assert account["in_flight"] == 0
    assert account["consumed_twice"] == []
