"""A job under a memory cap: the kernel ends it there, and the result says so."""

from __future__ import annotations

import os
import sys

import pytest

from rlvid.config import LearnerConfig
from tests.bench.memory_cap import JOBS, describe, job_settings, parse_arguments
from tests.bench.memory_cap_job import Job
from tests.bench.memory_group import CappedRun, Version, find_version, own_peak_bytes, run_capped

MIB = 2**20
TAKES = "taken = bytearray({} * 2**20); print(taken.count(1))"


def capped(mib_taken: int, version: Version | None) -> CappedRun:
    return run_capped(
        [sys.executable, "-c", TAKES.format(mib_taken)],
        100 * MIB,
        environment=dict(os.environ),
        timeout_s=60.0,
        version=version,
    )


def group_version() -> Version:
    version = find_version()
    if version is None:
        pytest.skip("no control group can be made here: needs root and the memory controller")
    return version


def test_kernel_kills_at_the_cap_and_not_below() -> None:
    version = group_version()
    below, above = capped(50, version), capped(200, version)
    assert (below.returncode, below.oom_kills) == (0, 0)
    assert below.peak_bytes is not None
    assert 50 * MIB < below.peak_bytes < 100 * MIB
    assert (above.returncode, above.oom_kills) == (-9, 1)
    assert above.peak_bytes == 100 * MIB


def test_without_groups_the_kernel_refuses_the_memory() -> None:
    below, above = capped(50, None), capped(200, None)
    assert (below.returncode, below.peak_bytes, below.oom_kills) == (0, None, None)
    assert above.returncode == 1
    assert "MemoryError" in above.errors


def test_peak_is_of_this_process() -> None:
    before = own_peak_bytes()
    taken = bytearray(2 * before)
    taken[::4096] = b"\x01" * len(taken[::4096])
    assert own_peak_bytes() >= 2 * before


def test_result_tells_a_killed_job_from_one_that_failed() -> None:
    """A job that the cap ends has published nothing that could be compared."""
    lines = [{"num_parameters": 5, "dtypes": [], "opened_s": 1.0, "peak_rss_bytes": 2**30}]
    killed = CappedRun(
        enforced_by="cgroup v2 memory.max",
        returncode=-9,
        peak_bytes=2**31,
        oom_kills=1,
        seconds=2.0,
        errors="",
    )
    told = describe(killed, lines, 2**31)
    assert (told["ended"], told["steps_done"]) == ("killed at the cap", 0)
    assert (told["process_peak_gib"], told["group_peak_gib"]) == (1.0, 2.0)
    failed = CappedRun(
        enforced_by="RLIMIT_DATA",
        returncode=1,
        peak_bytes=None,
        oom_kills=None,
        seconds=2.0,
        errors="no memory",
    )
    assert describe(failed, [], 2**31)["error"] == "no memory"


@pytest.mark.parametrize("name", list(JOBS))
def test_settings_of_every_job_are_those_of_a_learner(name: str) -> None:
    settings = job_settings(parse_arguments([]), name)
    LearnerConfig.model_validate({"mode": "full", **settings["learner"]})
    assert Job(**settings).size == "wan-300m"
