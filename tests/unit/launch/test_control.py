"""Orders reach a live driver once, and nobody else's; a dead driver is noticed at once."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlvid.launch.control.channel import ControlError, ControlInbox, open_inbox, send
from rlvid.launch.control.commands import DrainCommand, ScaleCommand
from rlvid.launch.control.status import (
    STALE_S,
    STATUS_FILE,
    ActorStatus,
    LearnerStatus,
    RunEvent,
    RunStatus,
    ScorerStatus,
    StatusWriter,
    live_driver,
    read_status,
)


def a_status(**changes: object) -> RunStatus:
    fields: dict[str, object] = {
        "run": "r", "phase": "grpo", "state": "running", "step": 3, "num_steps": 10, "version": 3,
    }  # fmt: skip
    return RunStatus(**(fields | changes))  # type: ignore[arg-type]


def write_status(folder: Path, **changes: object) -> None:
    StatusWriter(folder).write(a_status(**changes), now_s=0.0)


def eager(folder: Path) -> ControlInbox:
    """An inbox that looks at every poll."""
    ticks = iter(range(10**6))
    return open_inbox(folder, clock=lambda: float(next(ticks)))


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except ControlError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def poll_until(inbox: ControlInbox, count: int) -> list[object]:
    commands: list[object] = []
    deadline = time.monotonic() + 10
    while len(commands) < count and time.monotonic() < deadline:
        commands += inbox.poll()
        time.sleep(0.01)
    return commands


def test_command_arrives_once_and_its_answer_goes_back(tmp_path: Path) -> None:
    write_status(tmp_path)
    inbox = eager(tmp_path)
    asked = ScaleCommand(rollouts=6, scorers={"physics": 2})
    thread, found = in_thread(lambda: send(tmp_path, asked, timeout_s=10))
    (command,) = poll_until(inbox, 1)
    assert isinstance(command, ScaleCommand)
    assert (command.rollouts, command.scorers) == (6, {"physics": 2})
    assert inbox.poll() == []
    inbox.answer(command, ok=True, message="6 actors")
    thread.join(10)
    assert [(answer.ok, answer.message) for answer in found] == [(True, "6 actors")]  # type: ignore[attr-defined]
    assert list(inbox.folder.iterdir()) == []


def test_commands_are_taken_in_the_order_they_were_sent(tmp_path: Path) -> None:
    write_status(tmp_path)
    inbox = eager(tmp_path)
    threads = []
    for number in (1, 2, 3):
        threads.append(
            in_thread(lambda n=number: send(tmp_path, ScaleCommand(rollouts=n), 10))[0]  # type: ignore[misc]
        )
        while len(list(inbox.folder.glob("*.json"))) < number:
            time.sleep(0.005)
    commands = poll_until(inbox, 3)
    assert [command.rollouts for command in commands] == [1, 2, 3]  # type: ignore[attr-defined]
    for command in commands:
        inbox.answer(command, ok=True, message="")  # type: ignore[arg-type]
    for thread in threads:
        thread.join(10)


def test_inbox_looks_no_more_often_than_its_period(tmp_path: Path) -> None:
    """The loop polls thousands of times a second; a listing on a network share takes a while."""
    now = [0.0]
    inbox = open_inbox(tmp_path, clock=lambda: now[0])
    assert inbox.poll() == []
    (inbox.folder / "1.json").write_text(DrainCommand(id="1").model_dump_json())
    now[0] = 0.4
    assert inbox.poll() == []
    now[0] = 0.6
    assert [command.kind for command in inbox.poll()] == ["drain"]


def test_files_are_for_this_user_alone(tmp_path: Path) -> None:
    """Who may write there commands the cluster."""
    inbox = eager(tmp_path)
    inbox.answer(DrainCommand(id="1"), ok=True, message="")
    assert stat.S_IMODE(inbox.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((inbox.folder / "1.answer.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"kind": "scale", "id": "1", "rollouts": 3, "rollout": 4}', "rollout"),
        ('{"kind": "scale", "id": "1"}', "nothing is asked"),
        ('{"kind": "scale", "id": "1", "rollouts": 0}', "rollouts"),
        ('{"kind": "scale", "id": "1", "rollouts": "3"}', "rollouts"),
        ('{"kind": "explode", "id": "1"}', "kind"),
        ('{"kind": "drain", "id": "2"}', "id"),
        ('{"kind": "dra', "Invalid JSON"),
        ("", "Invalid JSON"),
    ],
)
def test_what_is_no_command_is_refused_and_answered(tmp_path: Path, text: str, names: str) -> None:
    """A typo must neither end the run nor be taken for the default."""
    inbox = eager(tmp_path)
    (inbox.folder / "1.json").write_text(text)
    assert inbox.poll() == []
    answer = json.loads((inbox.folder / "1.answer.json").read_text())
    assert answer["ok"] is False
    assert names in answer["message"]
    assert sorted(path.name for path in inbox.folder.iterdir()) == ["1.answer.json"]


def test_link_is_not_followed(tmp_path: Path) -> None:
    """Else whoever can plant a name could have any file of the user read out."""
    inbox = eager(tmp_path)
    (tmp_path / "secret").write_text(DrainCommand(id="1").model_dump_json())
    (inbox.folder / "1.json").symlink_to(tmp_path / "secret")
    assert inbox.poll() == []
    assert "cannot be read" in (inbox.folder / "1.answer.json").read_text()


def test_without_a_driver_nothing_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no run was started"):
        send(tmp_path, DrainCommand(), timeout_s=1)
    eager(tmp_path)
    with pytest.raises(ValueError, match="its loop has not started"):
        send(tmp_path, DrainCommand(), timeout_s=1)
    write_status(tmp_path)
    long_ago = time.time() - STALE_S - 20
    os.utime(tmp_path / STATUS_FILE, (long_ago, long_ago))
    with pytest.raises(ControlError, match=r"no live driver.*3\d s old.*--resume"):
        send(tmp_path, DrainCommand(), timeout_s=1)
    write_status(tmp_path, state="done")
    with pytest.raises(ControlError, match="the run is over"):
        send(tmp_path, DrainCommand(), timeout_s=1)
    assert list((tmp_path / "control").iterdir()) == []


def test_command_that_nobody_took_is_withdrawn(tmp_path: Path) -> None:
    """A driver that wakes up later must not act on what its sender gave up."""
    write_status(tmp_path)
    inbox = eager(tmp_path)
    with pytest.raises(ControlError, match=r"within 0.2 s and did not take the command"):
        send(tmp_path, DrainCommand(), timeout_s=0.2)
    assert inbox.poll() == []


def test_command_that_was_taken_is_not_said_to_be_withdrawn(tmp_path: Path) -> None:
    write_status(tmp_path)
    inbox = eager(tmp_path)
    thread, found = in_thread(lambda: send(tmp_path, DrainCommand(), timeout_s=0.5))
    assert len(poll_until(inbox, 1)) == 1
    thread.join(10)
    assert "may still carry it out" in str(found[0])


def test_new_driver_refuses_what_the_old_one_left(tmp_path: Path) -> None:
    """Also what the old one had claimed: nobody knows how far it got."""
    folder = eager(tmp_path).folder
    (folder / "1.json").write_text(DrainCommand(id="1").model_dump_json())
    (folder / "2.taken").write_text(DrainCommand(id="2").model_dump_json())
    (folder / "3.answer.json").write_text("{}")
    os.utime(folder / "3.answer.json", (1.0, 1.0))
    assert eager(tmp_path).poll() == []
    answers = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert sorted(answers) == ["1.answer.json", "2.answer.json"]
    assert all("restarted" in answer["message"] for answer in answers.values())


def test_status_reads_back_as_it_was_written(tmp_path: Path) -> None:
    status = a_status(
        actors=(ActorStatus(actor_id="actor-0.0", state="busy", doing="000012-0003", version=3),),
        scorers=(ScorerStatus(name="physics", replicas=2, queue=4, p95_s=0.2),),
        learner=LearnerStatus(state="idle", doing="scores of 000012-0003", idle_frac=0.04),
        staleness={0: 3, 1: 2},
        rates={"idle/learner/frac": 0.04, "mfu/learner/frac": None},
        rewards=(0.1, None, 0.3),
        events=(RunEvent(time_s=5.0, kind="lost", text="actor-1.0: its actor died"),),
    )
    writer = StatusWriter(tmp_path)
    assert writer.is_due(7.0)
    writer.write(status, now_s=7.0)
    assert read_status(tmp_path) == status
    assert not writer.is_due(7.9)
    assert writer.is_due(8.0)


def test_status_of_another_version_is_an_error(tmp_path: Path) -> None:
    text = a_status().to_json()
    (tmp_path / STATUS_FILE).write_text(text[:-1] + ',"colour":1}')
    with pytest.raises(ValueError, match="colour.*another version"):
        read_status(tmp_path)


def test_second_driver_in_a_folder_is_noticed_but_a_dead_one_is_not_waited_for(
    tmp_path: Path,
) -> None:
    assert live_driver(tmp_path) is None
    write_status(tmp_path)
    assert live_driver(tmp_path) is None  # it is this process
    write_status(tmp_path, pid=os.getppid())
    assert live_driver(tmp_path) is not None
    write_status(tmp_path, pid=os.getppid(), time_s=time.time() - 60)
    assert live_driver(tmp_path) is None
    write_status(tmp_path, pid=2**22 + 1)  # above Linux' largest process id
    assert live_driver(tmp_path) is None
