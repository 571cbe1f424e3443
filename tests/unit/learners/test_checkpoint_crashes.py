"""Checkpoint writing is killed, or finds no room, at each of its system calls, and loses power.

The kills need a C compiler for the library that strikes; where there is none the images after a
power loss still hold the state before each of Python's own calls.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.disk_faults.places import quick_folder
from tests.disk_faults.power_loss import run_power_losses
from tests.disk_faults.shim import build_shim, strike

SCENARIOS = "tests.disk_faults.scenarios:checkpoints"
NAMES = {"first", "next", "overwrite", "keep two", "recover"}


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = build_shim(tmp_path_factory.mktemp("shim"))
    if library is None:
        pytest.skip("no C compiler, or not Linux: calls cannot be struck at; power losses are run")
    return library


def assert_survived(results: dict[str, Any], names: set[str], counted: str, at_least: int) -> None:
    assert set(results) == names
    for name, result in results.items():
        assert result["failures"] == [], name
        # Striking nowhere would pass too.
        assert result[counted] >= at_least, name


@pytest.mark.slow
def test_killed_at_any_system_call_it_leaves_the_old_or_the_new_checkpoint(
    shim: Path, folder: Path
) -> None:
    """Each of some 380 calls in turn; a write is cut in the middle. The next write then works."""
    results = strike(shim, folder, f"{SCENARIOS}=kill")
    assert_survived(results, {f"{name}, kill" for name in NAMES}, "calls", 50)


@pytest.mark.slow
def test_disk_full_at_any_system_call_is_said_clearly_and_costs_nothing(
    shim: Path, folder: Path
) -> None:
    """Folder, bytes needed and free, and a way out; the half-written one is gone."""
    results = strike(shim, folder, f"{SCENARIOS}=full")
    assert_survived(results, {f"{name}, full" for name in NAMES}, "calls", 50)


@pytest.mark.slow
def test_power_loss_at_any_change_leaves_the_old_or_the_new_checkpoint(folder: Path) -> None:
    """What was not synced may be lost, in part or out of order; a committed one may not be."""
    assert_survived(run_power_losses(SCENARIOS, folder), NAMES, "images", 50)


@pytest.mark.parametrize("harness", ["kill", "power"])
def test_the_harness_finds_a_careless_writer(
    harness: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """One that renames without a sync loses power badly, one that writes in place is cut."""
    scenarios = f"tests.disk_faults.careless:{harness}"
    if harness == "kill":
        results = strike(request.getfixturevalue("shim"), folder, f"{scenarios}=kill")
        [result] = results.values()
    else:
        [result] = run_power_losses(scenarios, folder).values()
    assert result["failures"]


FULL_DISK = """
import sys
from pathlib import Path
from rlvid.durable import DiskFullError
from rlvid.learners import checkpoint

place = Path(sys.argv[1]) / "checkpoints"

def attempt(step, num_bytes):
    try:
        with checkpoint.writing(place, step=step, keep=1) as temporary:
            (temporary / "weights.bin").write_bytes(bytes(num_bytes))
        print("written", end="|")
    except DiskFullError as error:
        print(error, end="|")

attempt(1, 1_100_000)
attempt(2, 1_500_000)
(place.parent / "other").write_bytes(bytes(100_000))
attempt(3, 10)
latest = checkpoint.find_latest(place)
print(latest.step, sorted(path.name for path in place.iterdir()))
"""


def test_really_full_disk_is_seen_before_and_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """A file system of 2 MiB in memory, where the machine lets a user mount one."""
    mount = f"mount -t tmpfs -o size=2m tmpfs '{tmp_path}'"
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*enter, mount], capture_output=True, timeout=20).returncode != 0
    ):
        pytest.skip("this machine lets nobody mount a small file system")
    answer = subprocess.run(
        [*enter, f"{mount} && exec '{sys.executable}' -c \"$SCRIPT\" '{tmp_path}'"],
        env={**os.environ, "SCRIPT": FULL_DISK},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, during, before, left = answer.stdout.strip().split("|")
    assert first == "written"
    assert during.startswith(f"checkpoint 2: the disk of '{tmp_path}/checkpoints' is full: needs")
    # The last one took 1,100,000 bytes and less is left, so that nothing is tried.
    assert "needs at least 1,100,000 bytes" in before
    assert "0 are free" not in before
    assert left == "1 ['latest', 'step-00000001']"
