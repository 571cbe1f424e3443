"""Two drivers in one run folder would give every group two lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlvid.launch.run_folder import RunFolderError
from rlvid.launch.run_lock import held

HOLDER = """
import sys, time
from pathlib import Path
from rlvid.launch.run_lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_stopped_driver_keeps_its_run_until_it_is_killed(tmp_path: Path) -> None:
    """It would go on where it was; the message says whom to kill."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        os.kill(holder.pid, signal.SIGSTOP)
        whom = f":{holder.pid} .* kill it if it is stopped"
        with pytest.raises(RunFolderError, match=whom), held(tmp_path):
            pass
        holder.kill()
        holder.wait(timeout=30)
    with held(tmp_path):
        pass


def test_a_run_is_free_again_when_its_driver_is_done(tmp_path: Path) -> None:
    with held(tmp_path):
        pass
    with held(tmp_path):
        pass
