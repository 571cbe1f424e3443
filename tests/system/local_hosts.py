"""Hosts on this machine for launchers: namespaces with an address, processes and a /dev/shm each.

A host is a process namespace whose first process sleeps: killing that one ends the host as a power
cut does. The hosts hang on a bridge in a network namespace of its own, so the machine sees nothing
of them. `LocalHosts.ssh` is a command that reaches them in place of ssh. Linux, as root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

TOOLS = ("unshare", "nsenter", "ip", "mount")
START_DEADLINE_S = 20.0
NODE_TMP = "/mnt"
"""Each host has a folder of its own there."""
BOOT = """
set -e
hostname {name}
mount --bind {own} /mnt
mount --bind {own}/hosts /etc/hosts
mount -t tmpfs tmpfs /dev/shm
mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray
ip link set lo up
touch {own}/booted
exec sleep infinity
"""
SSH = """#!/bin/bash
# Reaches a host as ssh does: a new environment, and 255 when it is gone.
while [[ "$1" == -* ]]; do shift 2; done
pid="$(cat {folder}/"$1".pid)"
[ -d "/proc/$pid" ] || exit 255
shift
env -i HOME="$HOME" PATH=/usr/sbin:/usr/bin:/sbin:/bin nsenter --target "$pid" --all bash -c "$*"
status=$?
[ -d "/proc/$pid" ] || exit 255
exit $status
"""


def why_not() -> str:
    """Return why this machine can have no such hosts; "" when it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (util-linux, iproute2)"
    try:
        _run("unshare", "--net", "--mount", "--pid", "--fork", "true")
    except subprocess.CalledProcessError as error:
        return f"may make no namespaces: {error.stderr.strip()}"
    return ""


class LocalHosts:
    """Hosts node1, node2, ... with the addresses 10.77.0.1, ...; a context manager."""

    def __init__(self, folder: Path, num_hosts: int) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self.names = [f"node{number}" for number in range(1, num_hosts + 1)]
        self.ssh = folder / "ssh"
        self.hostfile = folder / "hostfile"

    def __enter__(self) -> LocalHosts:
        """Start them all."""
        self._folder.mkdir(parents=True)
        self.ssh.write_text(SSH.format(folder=self._folder))
        self.ssh.chmod(0o755)
        try:
            bridge = self._spawn("--net", "sleep", "infinity")
            in_bridge = ("nsenter", "--target", str(bridge), "--net")
            _run(*in_bridge, "ip", "link", "add", "bridge", "type", "bridge")
            _run(*in_bridge, "ip", "link", "set", "bridge", "up")
            for number, name in enumerate(self.names, start=1):
                self._boot(name, number, in_bridge)
        except BaseException:
            self.__exit__()
            raise
        lines = [f"{name} {address_of(number)}" for number, name in enumerate(self.names, start=1)]
        self.hostfile.write_text("\n".join(lines) + "\n")
        return self

    def __exit__(self, *_: object) -> None:
        """End them all, with everything that runs on them."""
        for process in self._started:
            process.kill()  # unshare --kill-child: its child goes with it
            process.wait()

    def kill(self, name: str) -> None:
        """Cut the power of a host."""
        os.kill(self._pid(name), signal.SIGKILL)

    def processes(self, name: str) -> list[str]:
        """Return the command lines of what runs on a host, but for the first process and zombies.

        The first process only sleeps, so it collects no dead ones.
        """
        ps = ("ps", "-eo", "pid,stat,args")
        done = _run("nsenter", "--target", str(self._pid(name)), "--all", *ps)
        rows = [line.split(maxsplit=2) for line in done.splitlines()[1:]]
        return [
            args
            for pid, state, args in rows
            if pid != "1" and not state.startswith("Z") and args != " ".join(ps)
        ]

    def own_files(self, name: str) -> list[str]:
        """Return what lies in the host's own temporary folder."""
        there = (self._folder / name).iterdir()
        return sorted(path.name for path in there if path.name not in ("hosts", "booted"))

    def _pid(self, name: str) -> int:
        return int((self._folder / f"{name}.pid").read_text())

    def _boot(self, name: str, number: int, in_bridge: tuple[str, ...]) -> None:
        own = self._folder / name
        own.mkdir()
        known = [f"{address_of(n)} {other}" for n, other in enumerate(self.names, start=1)]
        (own / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known]) + "\n")
        pid = self._spawn(
            *("--net", "--mount", "--pid", "--uts", "--ipc", "--mount-proc"),
            *("bash", "-c", BOOT.format(name=name, own=own)),
        )
        _await(own / "booted")
        _run(
            *in_bridge, "ip", "link", "add", name, "type", "veth",
            "peer", "name", "eth0", "netns", str(pid),
        )  # fmt: skip
        _run(*in_bridge, "ip", "link", "set", name, "master", "bridge", "up")
        on_host = ("nsenter", "--target", str(pid), "--net", "ip")
        _run(*on_host, "address", "add", f"{address_of(number)}/24", "dev", "eth0")
        _run(*on_host, "link", "set", "eth0", "up")
        (self._folder / f"{name}.pid").write_text(str(pid))

    def _spawn(self, *arguments: str) -> int:
        """Start a process in new namespaces and return its number, as the machine sees it."""
        process = subprocess.Popen(
            ["unshare", "--fork", "--kill-child", *arguments], stdin=subprocess.DEVNULL
        )
        self._started.append(process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        end = time.monotonic() + START_DEADLINE_S
        while not (found := children.read_text().split()):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"unshare {' '.join(arguments[:3])} did not start")
            time.sleep(0.02)
        return int(found[0])


def address_of(number: int) -> str:
    """Return the address of host `number`, from 1."""
    return f"10.77.0.{number}"


def _await(path: Path) -> None:
    end = time.monotonic() + START_DEADLINE_S
    while not path.exists():
        if time.monotonic() > end:
            raise RuntimeError(f"{path} did not come within {START_DEADLINE_S:g} s")
        time.sleep(0.02)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30.0)
    return done.stdout
