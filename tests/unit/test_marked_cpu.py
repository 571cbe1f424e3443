"""CPU seconds are counted of what leaves the process tree too."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bench.marked_cpu import run_marked

BUSY = "import time\nwhile time.process_time() < {seconds}: pass"


def test_daemon_that_outlives_its_parent_is_counted() -> None:
    """The parent works .3 s, then waits for a daemon in a session of its own that works 2 s."""
    daemon = BUSY.format(seconds=2.0)
    parent = (
        f"import subprocess, sys\n{BUSY.format(seconds=0.3)}\n"
        f"subprocess.Popen([sys.executable, '-c', {daemon!r}], start_new_session=True).wait()"
    )
    seconds = run_marked([sys.executable, "-c", parent])
    # At most half a second of each is missed at its end, and an interpreter starts in tenths.
    assert 1.4 < seconds < 4.0


def test_child_with_an_environment_of_its_own_is_counted() -> None:
    child = BUSY.format(seconds=2.0)
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}], env={{}})"
    assert 1.2 < run_marked([sys.executable, "-c", parent]) < 3.5


def test_failure_of_the_command_is_raised() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run_marked([sys.executable, "-c", "raise SystemExit(3)"])
