"""What the doctor reads from the kernel and from nvidia-smi."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from rlvid.launch import doctor_machine
from rlvid.launch.finding import Note

HEALTHY = "0, 41, 0, No, 3\n1, 43, 0, No, 3\n"


def test_a_port_is_open_when_more_than_this_machine_reaches_it() -> None:
    """Real sockets: one on the loopback, one on all addresses."""
    with socket.socket() as inner, socket.socket() as outer:
        inner.bind(("127.0.0.1", 0))
        inner.listen()
        outer.bind(("0.0.0.0", 0))
        outer.listen()
        found = set(doctor_machine._listening(Path("/proc/net/tcp")))
        assert outer.getsockname()[1] in found
        assert inner.getsockname()[1] not in found


def test_loopback_is_known_in_every_spelling(tmp_path: Path) -> None:
    table = tmp_path / "tcp6"
    mapped, loopback, any_address = "0" * 16 + "FFFF00000100007F", "0" * 24 + "01000000", "0" * 32
    rows = [
        f" {n}: {address}:{port:04X} 0:0000 0A 0:0 00:0 0 {os.getuid()} 0 1"
        for n, (address, port) in enumerate([(mapped, 1), (loopback, 2), (any_address, 8265)])
    ]
    table.write_text("\n".join(["  sl  local_address", *rows]))
    found = doctor_machine.check_ports([table])
    assert isinstance(found, Note)
    assert found.text == "reachable from other machines: 8265"
    assert doctor_machine.check_ports([tmp_path / "none"]) != found


def test_few_open_files_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def limits(what: int) -> tuple[int, int]:
        few = (1024, 4096) if what == resource.RLIMIT_NOFILE else (resource.RLIM_INFINITY,) * 2
        return (few[0], few[1])

    monkeypatch.setattr(resource, "getrlimit", limits)
    found = doctor_machine.check_limits()
    assert isinstance(found, Note)
    assert "4,096 open files, any number of processes" in found.text


def test_a_healthy_gpu_is_fine_and_a_hot_or_busy_one_noted() -> None:
    assert doctor_machine.judge_gpus(HEALTHY) == "2 without errors, cool, free"
    noted = doctor_machine.judge_gpus("0, 90, [N/A], [N/A], 30000\n")
    assert isinstance(noted, Note)
    assert noted.text == "GPU 0 at 90 degrees; 30000 MB of GPU 0 in use"


@pytest.mark.parametrize("line", ["1, 40, 2, No, 3", "1, 40, 0, Yes, 3"])
def test_a_gpu_with_uncorrected_errors_is_broken(line: str) -> None:
    with pytest.raises(ValueError, match="GPU 1"):
        doctor_machine.judge_gpus(HEALTHY + line)


def test_shared_memory_is_measured_where_it_is(tmp_path: Path) -> None:
    found = doctor_machine.check_shared_memory(tmp_path)
    assert str(tmp_path) in (found.text if isinstance(found, Note) else found)
