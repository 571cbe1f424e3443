"""Runs one command as the leader of its own process group and lets nothing of it outlive us.

    python -I -S guard.py GRACE_S COMMAND...

Standard input is a pipe that only the supervisor holds open: when the supervisor ends, however it
ends, the pipe closes and the whole group is ended, first with SIGTERM, after GRACE_S seconds with
SIGKILL. PR_SET_PDEATHSIG alone would not do: it fires when the *thread* that started the child
ends, and it does not reach the grandchildren, which is where vLLM holds the model.

Standard library only, and no import of ours: it runs under the interpreter of the server.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1


def die_with_guard() -> None:
    """Called in the child: a guard killed with SIGKILL must take its server along."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    stopping = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_guard)
    while child.poll() is None and not stopping:
        ready, _, _ = select.select([sys.stdin], [], [], 0.2)
        stopping = stopping or bool(ready)
    if child.poll() is None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        give_up = time.monotonic() + grace_s
        while child.poll() is None and time.monotonic() < give_up:
            time.sleep(0.05)
    else:
        print(f"[guard] the server ended with code {child.returncode}", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)  # what is left of the group, this process with it


if __name__ == "__main__":
    main()
