"""Groups, replay log, ledger and its snapshots under the faults that checkpoints stand.

See tests/unit/learners/test_checkpoint_crashes.py for what is done when there is no C compiler.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.disk_faults.places import quick_folder
from tests.disk_faults.power_loss import run_power_losses
from tests.disk_faults.shim import build_shim, strike

FILES = "tests.disk_faults.storage_scenarios:files"
LEDGER = "tests.disk_faults.storage_scenarios:ledger"


@pytest.mark.slow
def test_a_crash_or_a_full_disk_at_any_system_call_loses_nothing_that_was_finished(
    tmp_path: Path,
) -> None:
    """What was said to be written is there and whole; what was not is there or not, never half."""
    library = build_shim(tmp_path)
    if library is None:
        pytest.skip("no C compiler, or not Linux: calls cannot be struck at; power losses are run")
    with quick_folder() as folder:
        results = strike(library, folder, f"{FILES}=kill", f"{FILES}=full", f"{LEDGER}=kill")
    calls = {name: result["calls"] for name, result in results.items()}
    assert {name: result["failures"] for name, result in results.items()} == {
        name: [] for name in calls
    }
    # Striking nowhere would pass too.
    assert calls["groups, kill"] > 30
    assert calls["replay log, kill"] > 12
    assert calls["snapshot, kill"] > 5
    assert calls["ledger, kill"] > 60


@pytest.mark.slow
def test_power_loss_at_any_change_loses_nothing_that_was_finished() -> None:
    """The ledger's own file is SQLite's care, which syncs as it was told."""
    with quick_folder() as folder:
        results = run_power_losses(FILES, folder)
    assert set(results) == {"groups", "replay log", "snapshot"}
    for name, result in results.items():
        assert result["failures"] == [], name
        assert result["images"] > 5, name
