"""Owns a model server that is to outlive its driver: ends it when nobody renews its lease.

    python -I -S keeper.py FOLDER NONCE GRACE_S RECORD COMMAND...

It leaves its parent (two forks, a session of its own), so that neither the end of the Ray actor
that started it nor a signal to that actor's group reaches it, and runs COMMAND under `guard.py`,
whose pipe it holds. FOLDER/NONCE.lease is the lease: whoever supervises the server touches it every
few seconds. The server ends

    - so many seconds after the last touch as the lease says, by the clock of this process
    - when the lease file is gone, or this process gets SIGTERM
    - when this process is killed: the pipe closes, and the guard ends the group

FOLDER/server.json tells the next driver what runs: RECORD, this process and the guard's.

Standard library only, and no import of ours: it runs under the interpreter of the supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LOOK_EVERY_S = 0.2
RECORD_FILE = "server.json"
TOKEN_FILE = "token"


def main() -> None:
    folder, nonce, grace_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    record, command = json.loads(sys.argv[4]), sys.argv[5:]
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        # The supervisor goes on once the record is written, and learns if it never was.
        os._exit(0 if os.read(told, 1) else 1)
    os.setsid()
    os.close(told)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), str(grace_s)]
        + command,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        write_record(folder, {**record, "nonce": nonce, **identity(guard.pid)})
        os.write(tell, b"1")
        os.close(tell)
        reason = watch(folder / f"{nonce}.lease", guard)
        print(f"[keeper] ends: {reason}", file=sys.stderr, flush=True)
    finally:
        end(guard, grace_s)
        clear(folder, nonce)


def watch(lease: Path, guard: subprocess.Popen[bytes]) -> str:
    """Return, when the server is to end, why."""
    is_told = False

    def stop(number: int, frame: object) -> None:
        nonlocal is_told
        is_told = True

    signal.signal(signal.SIGTERM, stop)
    touched, since, keep_s = -1, time.monotonic(), 0.0
    while not is_told:
        if guard.poll() is not None:
            return "the server ended"
        try:
            last = lease.stat().st_mtime_ns
            if last != touched:
                touched, since, keep_s = last, time.monotonic(), float(lease.read_text())
        except FileNotFoundError:
            return "its lease was taken away"
        if time.monotonic() - since > keep_s:
            return f"its lease was not renewed for {keep_s:g} s"
        time.sleep(LOOK_EVERY_S)
    return "it was told to"


def end(guard: subprocess.Popen[bytes], grace_s: float) -> None:
    """Have the guard end its group; after its grace and some more do it here."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert guard.stdin is not None, "opened as a pipe"
    with contextlib.suppress(BrokenPipeError):
        guard.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        guard.wait(timeout=grace_s + 5.0)
    # The guard is the group's leader; what a killed one has left behind still has its number.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(guard.pid, signal.SIGKILL)


def clear(folder: Path, nonce: str) -> None:
    """Take away what says that it runs, if it is still about this server."""
    (folder / f"{nonce}.lease").unlink(missing_ok=True)
    (folder / f"{nonce}.ready").unlink(missing_ok=True)
    with contextlib.suppress(OSError, ValueError):
        if json.loads((folder / RECORD_FILE).read_text())["nonce"] == nonce:
            (folder / RECORD_FILE).unlink()
            (folder / TOKEN_FILE).unlink(missing_ok=True)


def identity(guard: int) -> dict[str, object]:
    """Return what tells these two processes from later ones with the same numbers."""
    return {
        "pid": os.getpid(),
        "pid_started": started(os.getpid()),
        "guard": guard,
        "guard_started": started(guard),
        "boot_id": boot_id(),
    }


def started(pid: int) -> int:
    """Return when a process started, in clock ticks since the boot: field 22 of its stat."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_record(folder: Path, record: dict[str, object]) -> None:
    temporary = folder / f"{RECORD_FILE}.part"
    with temporary.open("w") as file:
        json.dump(record, file)
    temporary.replace(folder / RECORD_FILE)


if __name__ == "__main__":
    main()
