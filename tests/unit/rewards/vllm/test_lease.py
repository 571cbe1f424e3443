"""Servers that outlive their supervisor under a lease; a small script stands in for vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.base import RewardError
from rlvid.rewards.vllm import keeper, lease
from rlvid.rewards.vllm.lease import Slot, slot_folder
from rlvid.rewards.vllm.server import VllmServer
from tests.unit.rewards.vllm.stand_in import write_stand_in
from tests.unit.rewards.vllm.test_server import is_alive, pid_of, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_stand_in(tmp_path)
    return tmp_path


def server_of(folder: Path, *, key: str = "second", **settings: Any) -> VllmServer:
    values = {"model": str(folder / "model"), "python": str(folder / "python"), "keep_s": 30.0}
    return VllmServer(
        ServerConfig.model_validate({**values, **settings}),
        name="judge",
        api_key=key,
        log_folder=folder / "logs",
        slot_folder=folder / "slot",
    )


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[VllmServer]:
    """Have a server that was started, or attached to; all ends with the block."""
    server = server_of(folder, **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def wait_for(holds: Callable[[], bool], limit_s: float = 30.0) -> None:
    give_up = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < give_up, f"it did not come true in {limit_s:g} s"
        time.sleep(0.02)


def is_ready(server: VllmServer) -> bool:
    return server.status.state == "ready"


DRIVER = """
import sys, time
from pathlib import Path
from tests.unit.rewards.vllm.test_lease import is_ready, server_of, until
server = server_of(Path(sys.argv[1]), key="first", keep_s=float(sys.argv[2]))
server.start()
until(server, lambda: is_ready(server))
print("ready", flush=True)
while True:
    server.check()
    time.sleep(0.1)
"""


def run_a_driver_and_kill_it(folder: Path, keep_s: float = 30.0) -> list[int]:
    """Return the processes of the server that it leaves."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), str(keep_s)], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        pids = [pid_of(folder, "leader"), pid_of(folder, "engine")]
        driver.kill()
    return pids


def leave_a_server(folder: Path, keep_s: float = 30.0) -> list[int]:
    """Return the processes of a ready server whose supervisor let go of it, as death does."""
    server = server_of(folder, key="first", keep_s=keep_s)
    server.start()
    until(server, lambda: is_ready(server))
    server.let_go()
    return [pid_of(folder, "leader"), pid_of(folder, "engine")]


def test_a_new_driver_attaches_to_the_server_of_a_killed_one(folder: Path) -> None:
    """The model is not loaded again: same process, same URL, and the key it was started with."""
    pids = run_a_driver_and_kill_it(folder)
    assert [is_alive(pid) for pid in pids] == [True, True]
    started = time.monotonic()
    with opened(folder) as server:
        assert time.monotonic() - started < 5.0
        assert is_ready(server)
        assert server.status.is_reattached
        assert server.status.api_key == "first"
        assert "first" not in repr(server.status)
        assert [pid_of(folder, "leader"), pid_of(folder, "engine")] == pids
        server.check()
        assert server.status.num_restarts == 0
    assert [is_alive(pid) for pid in pids] == [False, False]
    assert sorted(f.name for f in (folder / "slot").iterdir()) == ["owner.lock"]


def test_without_a_driver_the_server_ends_with_its_lease(folder: Path) -> None:
    """Never an orphan: nobody may come back, and the GPU is somebody else's by then."""
    pids = leave_a_server(folder, keep_s=1.0)
    time.sleep(0.4)
    assert is_alive(pids[0])
    wait_for(lambda: not any(is_alive(pid) for pid in pids))
    wait_for(lambda: [file.name for file in (folder / "slot").iterdir()] == ["owner.lock"])


@pytest.mark.slow
def test_a_lease_is_renewed_while_its_supervisor_waits_for_something_else(folder: Path) -> None:
    with opened(folder, keep_s=2.0) as server:
        until(server, lambda: is_ready(server))
        time.sleep(3.0)
        server.check()
        assert server.status.num_restarts == 0


@pytest.mark.parametrize("change", ["settings", "model", "health", "key"])
def test_a_server_that_is_not_what_is_wanted_is_ended_first(folder: Path, change: str) -> None:
    """Two of them would not fit on a GPU; a wrong one would score with other weights."""
    before = leave_a_server(folder)
    settings = {"max_model_len": 128} if change == "settings" else {}
    if change == "model":
        (folder / "model" / "weights").write_text("new")
    if change == "health":
        (folder / "ill").touch()
    if change == "key":
        (folder / "slot" / "token").write_text("another")
    with opened(folder, **settings) as server:
        assert [is_alive(pid) for pid in before] == [False, False]
        (folder / "ill").unlink(missing_ok=True)
        until(server, lambda: is_ready(server))
        assert not server.status.is_reattached
        assert server.status.api_key == "second"
        assert pid_of(folder, "leader") != before[0]


def test_a_server_that_was_still_loading_is_not_started_twice(folder: Path) -> None:
    (folder / "ill").touch()
    first = server_of(folder)
    first.start()
    wait_for((folder / "leader").exists)
    before = pid_of(folder, "leader")
    first.let_go()
    with opened(folder) as server:
        assert server.status.state == "starting"
        (folder / "ill").unlink()
        until(server, lambda: is_ready(server))
        assert pid_of(folder, "leader") == before


def test_a_server_with_the_keeper_killed_ends(folder: Path) -> None:
    """And the supervisor, where there is one, starts another."""
    pids = leave_a_server(folder)
    record = json.loads((folder / "slot" / "server.json").read_text())
    os.kill(record["pid"], signal.SIGKILL)
    wait_for(lambda: not any(is_alive(pid) for pid in (*pids, record["guard"])))
    with opened(folder) as server:
        until(server, lambda: is_ready(server))
        assert not server.status.is_reattached


@pytest.mark.slow
@pytest.mark.parametrize("who", ["pid", "guard"])
def test_a_stopped_keeper_or_guard_is_replaced_with_its_server(folder: Path, who: str) -> None:
    """It would end nothing when the lease runs out."""
    pids = leave_a_server(folder)
    record = json.loads((folder / "slot" / "server.json").read_text())
    os.kill(record[who], signal.SIGSTOP)
    wait_for(lambda: lease.is_stopped(record[who]))
    with opened(folder) as server:
        ended = (*pids, record["pid"], record["guard"])
        wait_for(lambda: not any(is_alive(pid) for pid in ended))
        until(server, lambda: is_ready(server))


def test_a_record_of_before_a_reboot_is_not_believed(folder: Path) -> None:
    """Its numbers may be those of anybody's processes now."""
    with subprocess.Popen(["sleep", "60"]) as other:
        slot = folder / "slot"
        slot.mkdir(mode=0o700)
        record = {"pid": other.pid, "guard": other.pid, "boot_id": "another boot", "nonce": "0"}
        record |= {"pid_started": keeper.started(other.pid), "guard_started": 0}
        record |= {"host": "127.0.0.1", "port": 1, "digest": "", "log": ""}
        (slot / "server.json").write_text(json.dumps(record))
        with opened(folder) as server:
            until(server, lambda: is_ready(server))
            assert is_alive(other.pid)
        # Nor one whose numbers are in use again in this boot.
        (slot / "server.json").write_text(
            json.dumps({**record, "boot_id": keeper.boot_id(), "pid_started": 1})
        )
        with opened(folder) as server:
            until(server, lambda: is_ready(server))
            assert is_alive(other.pid)
        other.kill()


def test_a_keeper_whose_record_was_never_written_ends(folder: Path) -> None:
    """The supervisor died in between; nobody could ever find that server again."""
    pids = leave_a_server(folder)
    (folder / "slot" / "server.json").unlink()
    with opened(folder) as server:
        wait_for(lambda: not any(is_alive(pid) for pid in pids))
        until(server, lambda: is_ready(server))


def test_two_drivers_of_one_run_do_not_share_a_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to end would take it away from the other."""
    monkeypatch.setattr(lease, "ATTACH_WAIT_S", 0.3)
    with opened(folder) as server:
        until(server, lambda: is_ready(server))
        with pytest.raises(RewardError, match=rf"judge: process {os.getpid()} has supervised"):
            server_of(folder).start()
        assert is_ready(server)


def test_a_state_folder_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / "slot").mkdir(mode=0o755)
    with pytest.raises(ValueError, match=r"mode 700\), got mode 755"):
        Slot(folder / "slot", keep_s=1.0, where="rewards.servers.judge").open()


def test_replicas_runs_and_machines_have_places_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = {
        slot_folder(tmp_path / run, name, index)
        for run in ("a", "b")
        for name in ("judge", "other")
        for index in (0, 1)
    }
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    found.add(slot_folder(tmp_path / "a", "judge", 0))
    assert len(found) == 9
    assert all(path.is_relative_to(tmp_path / "cache" / "rlvid" / "servers") for path in found)
