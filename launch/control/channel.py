"""Orders from a command line to the driver of a live run: files in <run>/control/, no sockets.

    <id>.json          written by the sender in one rename
    <id>.taken         the same file once the driver has claimed it, in one rename
    <id>.answer.json   written by the driver, read and removed by the sender

Ids sort by the time of sending. Everything is mode 0600 in a folder of mode 0700, so whoever may
give orders is who may write the run folder: the user of the run. It works where the folder does, on
a shared file system too. A sender that gives up removes an order that nobody claimed, so a driver
never acts on one that nobody waits for; a driver that starts refuses what its predecessor left.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from rlvid.launch.control.commands import Answer, Command, parse_command
from rlvid.launch.control.private_files import read_private, write_private
from rlvid.launch.control.status import OVER, STALE_S, STATUS_FILE, read_status

logger = logging.getLogger(__name__)

FOLDER = "control"
POLL_S = 0.5
"""The inbox is looked into no more often than this."""
MAX_TAKEN = 32
"""Commands handed to the loop in one turn."""
FORGET_ANSWERS_S = 600.0
"""Answers that nobody fetched in this time are removed."""


class ControlError(ValueError):
    """The order did not get through; the message says why and what to do."""


class ControlInbox:
    """The driver's end; made by `open_inbox`."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock = clock
        self._next_look = clock()

    def poll(self) -> list[Command]:
        """Return the commands that came since, oldest first; every one wants an `answer`.

        What is not a command is answered here. It costs one listing of a small folder every
        `POLL_S`, and nothing in between.
        """
        now = self._clock()
        if now < self._next_look:
            return []
        self._next_look = now + POLL_S
        ids = self._waiting(".json")[:MAX_TAKEN]
        return [command for command in map(self._take, ids) if command is not None]

    def answer(self, command: Command, *, ok: bool, message: str) -> None:
        """Tell the sender what became of it."""
        self._answer(command.id, ok=ok, message=message)

    def refuse_leftovers(self, reason: str) -> int:
        """Answer everything that lies there with a refusal, remove old answers; at the start."""
        ids = self._waiting(".json") + self._waiting(".taken")
        for command_id in ids:
            (self.folder / f"{command_id}.json").unlink(missing_ok=True)
            self._answer(command_id, ok=False, message=reason)
        for path in self.folder.glob("*.answer.json"):
            _remove_when_old(path)
        return len(ids)

    def close(self) -> None:
        """Refuse what came too late; at the end of the run."""
        self.refuse_leftovers("the run ended before it was done with this")

    def _waiting(self, ending: str) -> list[str]:
        with os.scandir(self.folder) as entries:
            names = [entry.name for entry in entries]
        return sorted(
            name.removesuffix(ending)
            for name in names
            if name.endswith(ending)
            and not name.startswith(".")
            and not name.endswith(".answer.json")
        )

    def _take(self, command_id: str) -> Command | None:
        taken = self.folder / f"{command_id}.taken"
        try:
            os.rename(self.folder / f"{command_id}.json", taken)
        except FileNotFoundError:  # its sender gave up
            return None
        try:
            command = parse_command(read_private(taken))
            if command.id != command_id:
                raise ValueError(
                    f"expected id {command_id!r} as the file's name, got {command.id!r}"
                )
        except ValueError as error:
            logger.warning("refused a command file=%s reason=%s", taken.name, error)
            self._answer(command_id, ok=False, message=f"not a command: {_first_line(error)}")
            return None
        logger.info("command %s from %s id=%s", command.kind, command.sender, command.id)
        return command

    def _answer(self, command_id: str, *, ok: bool, message: str) -> None:
        answer = Answer(id=command_id, ok=ok, message=message)
        write_private(self.folder / f"{command_id}.answer.json", answer.model_dump_json())
        (self.folder / f"{command_id}.taken").unlink(missing_ok=True)


def open_inbox(run_folder: Path, clock: Callable[[], float] = time.monotonic) -> ControlInbox:
    """Make <run>/control/ for this user alone and refuse what an earlier driver left in it.

    Raises:
        ControlError: it is a link or somebody else's.
    """
    folder = run_folder / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.geteuid():
        raise ControlError(
            f"{folder}: expected a folder of user {os.geteuid()}, got a link or one of user "
            f"{found.st_uid}; remove it"
        )
    folder.chmod(0o700)
    inbox = ControlInbox(folder, clock)
    inbox.refuse_leftovers("the driver was restarted before it was done with this; send it again")
    return inbox


def send(run_folder: Path, command: Command, timeout_s: float) -> Answer:
    """Give a command to the live driver of a run and return what it says.

    Raises:
        ControlError: there is no live driver, or it did not answer within `timeout_s`.
    """
    folder = run_folder / FOLDER
    if not folder.is_dir():
        raise ControlError(
            f"run folder {str(run_folder)!r}: no run was started in it that takes commands; "
            "name the folder that `rlvid run` printed"
        )
    command_id = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
    sender = f"{socket.gethostname()}:{os.getpid()}"
    command = command.model_copy(update={"id": command_id, "sender": sender})
    sent = folder / f"{command_id}.json"
    draft = folder / f"{command_id}.draft"
    try:
        try:
            write_private(draft, command.model_dump_json())
            _check_driver(run_folder, draft)
            os.rename(draft, sent)
        finally:
            draft.unlink(missing_ok=True)
        return _wait(folder, command_id, timeout_s)
    except PermissionError as error:
        raise ControlError(
            f"{folder}: cannot be written; only the user who runs it may give orders"
        ) from error
    finally:
        sent.unlink(missing_ok=True)


def _wait(folder: Path, command_id: str, timeout_s: float) -> Answer:
    path = folder / f"{command_id}.answer.json"
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            answer = Answer.model_validate_json(read_private(path), strict=True)
        except FileNotFoundError:
            pass
        except ValidationError as error:
            raise ControlError(f"{path}: not an answer: {_first_line(error)}") from error
        else:
            path.unlink(missing_ok=True)
            return answer
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    try:
        (folder / f"{command_id}.json").unlink()
        state = "and did not take the command, which is withdrawn"
    except FileNotFoundError:
        state = "but has the command and may still carry it out; see `rlvid top`"
    raise ControlError(
        f"run folder {str(folder.parent)!r}: the driver did not answer within {timeout_s:g} s "
        f"{state}"
    )


def _check_driver(run_folder: Path, just_written: Path) -> None:
    """Refuse when the run is over or status.json is old.

    Both times are the file system's, so clocks of two hosts that differ do not matter.
    """
    state = read_status(run_folder).state
    if state in OVER:
        raise ControlError(f"run folder {str(run_folder)!r}: the run is over ({state})")
    age_s = just_written.stat().st_mtime - (run_folder / STATUS_FILE).stat().st_mtime
    if age_s > STALE_S:
        raise ControlError(
            f"run folder {str(run_folder)!r}: no live driver, its last sign of life is "
            f"{age_s:.0f} s old (at most {STALE_S:g} s expected). Continue the run with "
            "`rlvid run RECIPE --run-folder ... --resume`"
        )


def _remove_when_old(path: Path) -> None:
    try:
        if time.time() - path.stat().st_mtime > FORGET_ANSWERS_S:
            path.unlink()
    except FileNotFoundError:  # its sender fetched it meanwhile
        pass


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "command"
        return f"{where}: {first['msg']}"
    return str(error).splitlines()[0]
