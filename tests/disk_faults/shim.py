"""Runs scenarios under the shim, in a child process for each system call at which it strikes.

python -m tests.disk_faults.shim FOLDER SCENARIOS=MODE ..., with LD_PRELOAD set by `strike`. Prints
JSON: scenario and mode to how many calls there were and what went wrong.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.disk_faults.scenarios import Scenario

MODES = {"kill": 1, "full": 2}
"""As in shim.c."""
SOURCE = Path(__file__).with_name("shim.c")
FULL_EXIT = 7
"""Of a child in which the full disk was reported as it should be."""


def build_shim(folder: Path) -> Path | None:
    """Compile the shim; None where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True, timeout=60
    )
    return library


def strike(library: Path, folder: Path, *jobs: str) -> dict[str, Any]:
    """Strike at every system call of every scenario.

    Args:
        jobs: "module:function=mode"; the function returns scenarios by name.
    """
    answer = subprocess.run(
        [sys.executable, "-m", "tests.disk_faults.shim", str(folder), *jobs],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def strike_everywhere(scenario: Scenario, place: Path, mode: int) -> dict[str, Any]:
    """Return how many calls there were, and a line for each after which something was wrong."""
    shim = ctypes.CDLL(None)
    prepared = place / "prepared"
    prepared.mkdir(parents=True)
    scenario.prepare(prepared)
    failures: list[str] = []
    at = 0
    while True:
        folder = place / f"{at}"
        shutil.copytree(prepared, folder)
        arm = partial(shim.shim_arm, mode, at, os.fsencode(folder))
        said, status = _in_child(scenario, folder, arm)
        is_struck = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        is_struck |= os.WIFEXITED(status) and os.WEXITSTATUS(status) == FULL_EXIT
        if not is_struck and status != 0:
            failures.append(f"call {at}: the act ended with status {status}, see stderr")
        try:
            if mode == MODES["full"] and is_struck:
                left = _temporaries(folder) - _temporaries(prepared)
                assert not left, f"left behind by a full disk: {left}"
            scenario.check(folder, said)
        except Exception as error:  # the harness reports whatever is wrong, call by call
            failures.append(f"call {at}, said {said}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
        if not is_struck:
            return {"calls": at, "failures": failures}
        at += 1


def _in_child(scenario: Scenario, folder: Path, arm: Callable[[], None]) -> tuple[list[str], int]:
    """Act in a child that may be killed; return what it said and how it ended."""
    reading, saying = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            arm()
            scenario.act(folder, lambda text: _say(saying, text))
            code = 0
        except RuntimeError as error:
            code = FULL_EXIT if _is_clear(error, folder) else 1
            if code == 1:
                traceback.print_exc()
        except BaseException:  # a child must end here, whatever happens in it
            traceback.print_exc()
        os._exit(code)
    os.close(saying)
    with os.fdopen(reading) as pipe:
        said = pipe.read().split()
    _, status = os.waitpid(child, 0)
    return said, status


def _temporaries(folder: Path) -> set[str]:
    return {p.name for p in folder.rglob("*") if "writing" in p.name}


def _say(pipe: int, text: str) -> None:
    os.write(pipe, f"{text}\n".encode())


def _is_clear(error: RuntimeError, folder: Path) -> bool:
    """True for a message that names the folder, the bytes needed and free, and a way out."""
    text = str(error)
    wanted = (str(folder), "is full", "needs", "are free", "Make room there", "resume the run")
    return type(error).__name__ == "DiskFullError" and all(part in text for part in wanted)


def main(folder: str, *jobs: str) -> None:
    results = {}
    for job in jobs:
        name, _, mode = job.partition("=")
        module, _, function = name.partition(":")
        scenarios: dict[str, Scenario] = getattr(importlib.import_module(module), function)()
        for label, scenario in scenarios.items():
            place = Path(folder) / f"{label}-{mode}".replace(" ", "_")
            results[f"{label}, {mode}"] = strike_everywhere(scenario, place, MODES[mode])
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
