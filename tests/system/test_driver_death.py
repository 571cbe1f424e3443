"""A driver that is killed leaves nothing behind, and the next one can start at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from rlvid.launch.cluster_guard import marked

pytestmark = pytest.mark.slow

LIMIT_S = 15.0
DRIVER = """
import os, sys, time
import ray
from rlvid.config import Recipe
from rlvid.launch.cluster import open_cluster
from rlvid.launch.cluster_guard import VARIABLE, marked

@ray.remote(num_cpus=0)
class Actor:
    def process_id(self):
        return os.getpid()

recipe = Recipe.model_validate({"name": "x", "cluster": {"object_store_mb": 100}})
with open_cluster(recipe):
    actors = [Actor.remote() for _ in range(2)]
    processes = ray.get([actor.process_id.remote() for actor in actors], timeout=120)
    if sys.argv[1] == "first":
        os.kill(processes[0], 19)
        # Ray's agents come last, and stay longest; how many there are is Ray's business.
        seen, since = 0, time.monotonic()
        while time.monotonic() - since < 3.0:
            found = len(marked(os.environ[VARIABLE]))
            if found > seen:
                seen, since = found, time.monotonic()
            time.sleep(0.1)
    print(os.environ[VARIABLE], flush=True)
    sys.stdin.read()
"""


def start(name: str) -> tuple[subprocess.Popen[str], str]:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert driver.stdout is not None
    mark = driver.stdout.readline().strip()
    assert mark, f"the driver ended with {driver.wait(timeout=60.0)}"
    return driver, mark


def test_a_killed_driver_leaves_no_process_and_the_next_one_starts_at_once() -> None:
    """One actor is stopped, as in a chaos test; Ray's own agents would stay for a minute."""
    driver, mark = start("first")
    assert len(marked(mark)) >= 4  # two servers of Ray and two actors at the least
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(timeout=10.0)
    killed = time.monotonic()
    second, second_mark = start("second")
    while marked(mark):
        assert time.monotonic() - killed < LIMIT_S, f"left: {marked(mark)}"
        time.sleep(0.1)
    second.communicate(timeout=60.0)
    assert second.returncode == 0
    assert marked(second_mark) == []
