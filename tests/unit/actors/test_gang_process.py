"""A peer as a process: it says why it ended, and is never there without its leader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlvid.actors.gang_process import GangError, PeerProcess

LEADER = """
import fcntl, struct, termios, time
from rlvid.actors.gang_process import PeerProcess
peer = PeerProcess(1, b"{", {})
while struct.unpack("i", fcntl.ioctl(peer._inbox, termios.FIONREAD, bytes(4)))[0]:
    time.sleep(0.01)
print(peer.pid, flush=True)
time.sleep(60)
"""
"""Says the peer's number once it reads its settings, which do not end."""
SOON_S = 30.0


def test_last_lines_of_a_peer_are_its_obituary() -> None:
    """Settings that are no JSON end it before it imports anything large."""
    peer = PeerProcess(3, b"no settings\n", {})
    said = peer.obituary(SOON_S)
    assert said.startswith(f"rank 3 (process {peer.pid}) ended by exit code 1; its last lines: ")
    assert said.endswith("JSONDecodeError: Expecting value: line 1 column 1 (char 0)")
    assert peer.ended_at is not None
    peer.wake()
    peer.end()


def test_killed_peer_is_named_with_its_signal() -> None:
    peer = PeerProcess(1, b"{", {})
    assert peer.is_alive
    assert peer.obituary(0.0) == ""
    peer.end()
    assert not peer.is_alive
    assert (
        peer.obituary(0.0) == f"rank 1 (process {peer.pid}) ended by signal 9; it printed nothing"
    )


def test_interpreter_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(GangError, match=r"rank 2: /no/such/python could not be started"):
        PeerProcess(2, b"{}\n", {})


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that ends orphans")
def test_even_a_stopped_peer_dies_with_its_leader() -> None:
    """SIGKILL leaves the leader no time to end anything, nor does a stopped peer read its pipe."""
    with subprocess.Popen([sys.executable, "-c", LEADER], stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        pid = int(leader.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        leader.kill()
    until = time.monotonic() + SOON_S
    while is_there(pid):
        assert time.monotonic() < until, "it outlives its leader"
        time.sleep(0.01)


def is_there(pid: int) -> bool:
    """Return whether a process runs or is stopped; one that nobody has reaped does not count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
