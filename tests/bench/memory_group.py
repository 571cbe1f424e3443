"""A command under a memory cap that the kernel holds: a control group, or else `RLIMIT_DATA`.

A control group counts every page of the command and of its children once, page cache included, and
the kernel kills it where it can free no more at the cap. Making one takes root and the memory
controller, of version 1 or 2. Elsewhere RLIMIT_DATA refuses the allocation instead. It counts what
one process has reserved of writable memory, touched or not, and so is the stricter of the two.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
KILLED = -9
_JOIN = 'echo $$ > "$0" && exec "$@"'
"""For a shell: enter the group of the file $0, then become the command."""


@dataclass(frozen=True, slots=True)
class Version:
    """Files of the memory controller in a group."""

    name: str
    root: Path
    """Of the hierarchy that has the controller."""
    limit: str
    swap_limit: str
    """Version 1: of memory and swap together; version 2: of swap alone. Absent without swap."""
    peak: str
    events: str
    """Lines `name value`, with a count `oom_kill`."""


V1 = Version(
    name="cgroup v1",
    root=ROOT / "memory",
    limit="memory.limit_in_bytes",
    swap_limit="memory.memsw.limit_in_bytes",
    peak="memory.max_usage_in_bytes",
    events="memory.oom_control",
)
V2 = Version(
    name="cgroup v2",
    root=ROOT,
    limit="memory.max",
    swap_limit="memory.swap.max",
    peak="memory.peak",
    events="memory.events",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CappedRun:
    """How a command ended under a cap."""

    enforced_by: str
    returncode: int
    """Negative: the signal."""
    peak_bytes: int | None
    """Of the whole group, page cache included; None without a group."""
    oom_kills: int | None
    """Processes that the kernel killed at the cap; None without a group."""
    seconds: float
    errors: str
    """What it wrote to stderr."""


def run_capped(
    command: Sequence[str],
    cap_bytes: int,
    *,
    environment: Mapping[str, str],
    timeout_s: float,
    version: Version | None,
) -> CappedRun:
    """Run a command with at most so much memory; it may fail, be refused memory, or be killed.

    Args:
        version: of the control groups; None caps it by RLIMIT_DATA.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    started = time.monotonic()
    if version is None:
        done = subprocess.run(
            ["sh", "-c", f'ulimit -d {cap_bytes // 1024} && exec "$@"', "sh", *command],
            env=environment,
            timeout=timeout_s,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        peak = kills = None
    else:
        with _group(version, cap_bytes) as group:
            done = subprocess.run(
                ["sh", "-c", _JOIN, str(group / "cgroup.procs"), *command],
                env=environment,
                timeout=timeout_s,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            peak = int((group / version.peak).read_text())
            kills = _oom_kills(group / version.events)
    return CappedRun(
        enforced_by="RLIMIT_DATA" if version is None else f"{version.name} {version.limit}",
        returncode=done.returncode,
        peak_bytes=peak,
        oom_kills=kills,
        seconds=time.monotonic() - started,
        errors=done.stderr,
    )


def find_version() -> Version | None:
    """Return the version of control groups in which this process may cap memory, None for none."""
    for version in (V2, V1):
        try:
            with _group(version, 2**30):
                return version
        except OSError:
            continue
    return None


def own_peak_bytes() -> int:
    """Return the most memory this process had resident so far, of its own and of files."""
    peak = peak_bytes_of(Path("/proc/self"))
    assert peak is not None
    return peak


def peak_bytes_of(process: Path) -> int | None:
    """Return VmHWM of a process by its folder in /proc; None of one that is ending.

    `ru_maxrss` would not do: it starts at what the parent had when it forked.
    """
    lines = (process / "status").read_text().splitlines()
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peaks[0]) * 1024 if peaks else None


def data_limit_bytes() -> int | None:
    """Return this process's RLIMIT_DATA, None where it has none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if soft == resource.RLIM_INFINITY else soft


@contextmanager
def _group(version: Version, cap_bytes: int) -> Iterator[Path]:
    """Within the block there is a group of that cap, without swap."""
    group = version.root / f"rlvid-memory-cap-{os.getpid()}"
    group.mkdir()
    try:
        (group / version.limit).write_text(str(cap_bytes))
        swap = group / version.swap_limit
        if swap.exists():
            swap.write_text(str(cap_bytes if version is V1 else 0))
        yield group
    finally:
        group.rmdir()


def _oom_kills(events: Path) -> int:
    pairs = (line.split() for line in events.read_text().splitlines())
    return next(int(value) for name, value in pairs if name == "oom_kill")
