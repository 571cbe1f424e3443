"""Checks of `rlvid doctor` that look at the machine itself: limits, shared memory, ports, GPUs."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlvid.launch.finding import Note

SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MEMORY_GB = 1.0
MIN_OPEN_FILES = 65_536
"""What Ray's documentation asks of a node of a large cluster; a small one needs a tenth."""
MIN_PROCESSES = 16_384
HOT_CELSIUS = 85
GPU_FIELDS = (
    "index",
    "temperature.gpu",
    "ecc.errors.uncorrected.volatile.total",
    "remapped_rows.failure",
    "memory.used",
)
"""Of `nvidia-smi --query-gpu`; "[N/A]" where a GPU does not have it."""
GPU_DEADLINE_S = 30.0
USED_BY_OTHERS_MB = 2048
SOCKET_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LISTENS = "0A"
LOOPBACK = re.compile("(0{16}FFFF0000)?[0-9A-F]{6}7F|0{24}01000000")
"""127.*, also as an IPv6 address, and ::1, as the kernel prints words of little-endian machines."""
MAX_PORTS = 12
SIZE = 1024
"""Rows of the product that each GPU computes and the CPU checks."""


def check_limits() -> str | Note:
    """How many files and processes the shell allows; Ray raises the soft limit to the hard one."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    text = f"{_limit(files)} open files, {_limit(processes)} processes"
    few_files = files != resource.RLIM_INFINITY and files < MIN_OPEN_FILES
    if few_files or (processes != resource.RLIM_INFINITY and processes < MIN_PROCESSES):
        return Note(f"{text}; a large cluster wants {MIN_OPEN_FILES} and {MIN_PROCESSES}: ulimit")
    return text


def _limit(number: int) -> str:
    return "any number of" if number == resource.RLIM_INFINITY else f"{number:,}"


def check_shared_memory(folder: Path = SHARED_MEMORY) -> str | Note:
    """Room for Ray's object store, which goes to the disk where shared memory is too small."""
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free in {folder}"
    if usage.free / 1e9 < MIN_SHARED_MEMORY_GB:
        return Note(f"{text}: Ray's object store goes to the disk; containers: --shm-size")
    return text


def check_ports(tables: Sequence[Path] = SOCKET_TABLES) -> str | Note:
    """Ports of this user that other machines can reach."""
    found = sorted({port for table in tables for port in _listening(table)})
    if not found:
        return "nothing of this user listens beyond this machine"
    more = f" and {len(found) - MAX_PORTS} more" if len(found) > MAX_PORTS else ""
    return Note(f"reachable from other machines: {', '.join(map(str, found[:MAX_PORTS]))}{more}")


def _listening(table: Path) -> Iterator[int]:
    """Yield the ports of this user's sockets that wait for more than this machine.

    A line is: number, local address and port in hexadecimal, remote ones, state, ..., user.
    """
    for line in table.read_text().splitlines()[1:] if table.exists() else ():
        fields = line.split()
        address, _, port = fields[1].partition(":")
        is_ours = fields[3] == LISTENS and int(fields[7]) == os.getuid()
        if is_ours and not LOOPBACK.fullmatch(address):
            yield int(port, 16)


def check_gpu_health() -> str | Note:
    """Errors that the driver counted, temperature, and a product on each GPU against the CPU's.

    Raises:
        ValueError: a GPU has uncorrected errors, or computes something else.
    """
    import torch

    if not torch.cuda.device_count():
        return Note("no GPU")
    if shutil.which("nvidia-smi") is None:
        multiply_on_each()
        return Note("every GPU multiplies as the CPU does; no nvidia-smi to ask for errors")
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, timeout=GPU_DEADLINE_S, check=True,
    )  # fmt: skip
    text = judge_gpus(done.stdout)
    multiply_on_each()
    return text


def judge_gpus(answer: str) -> str | Note:
    """Return what nvidia-smi's lines of `GPU_FIELDS` mean.

    Raises:
        ValueError: uncorrected errors, or rows of memory that could not be replaced.
    """
    notes, num_gpus = [], 0
    for line in filter(None, map(str.strip, answer.splitlines())):
        index, celsius, errors, rows, used_mb = (field.strip() for field in line.split(","))
        num_gpus += 1
        if _number(errors) or rows == "Yes" or _number(rows):
            raise ValueError(
                f"GPU {index}: {errors} uncorrected memory errors since the driver started, "
                f"failed row replacement: {rows}. Reset it, or leave the node out"
            )
        if _number(celsius) >= HOT_CELSIUS:
            notes.append(f"GPU {index} at {celsius} degrees")
        if _number(used_mb) > USED_BY_OTHERS_MB:
            notes.append(f"{used_mb} MB of GPU {index} in use")
    return Note("; ".join(notes)) if notes else f"{num_gpus} without errors, cool, free"


def _number(text: str) -> float:
    """Return the number, 0 for what the GPU does not have."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def multiply_on_each() -> None:
    """Compare a product of each GPU with the CPU's; ValueError where they differ."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIZE, SIZE, generator=generator) for _ in range(2))
    wanted = left @ right
    for index in range(torch.cuda.device_count()):
        got = (left.to(f"cuda:{index}") @ right.to(f"cuda:{index}")).cpu()
        worst = (got - wanted).abs().max().item()
        # TF32 has 10 bits of mantissa: entries of about 32, sums of 1,024 terms.
        if not worst < 1.0:
            raise ValueError(f"GPU {index}: a product is off by {worst:g}. Leave the node out")
