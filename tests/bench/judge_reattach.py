"""Measures what a kept judge saves a driver that starts again; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.judge_reattach

One real vLLM server of the embedded judge is started, then let go and attached to five times, each
by a new supervisor, and asked for one token after each. `attach_s` is from the supervisor's start
to "ready", checks of model files, command, health and key included; `start_s` is what the same
takes when the model has to be loaded. At last its lease runs out: `end_s` is from the last renewal
to the end of its last process.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.vllm.probe import Probe
from rlvid.rewards.vllm.server import VllmServer
from tests.bench.timing import environment

NUM_ATTACHED = 5
KEEP_S = 60.0
LAST_KEEP_S = 5.0
START_LIMIT_S = 600.0


def supervisor(folder: Path, keep_s: float) -> VllmServer:
    return VllmServer(
        ServerConfig(keep_s=keep_s),
        name="judge",
        api_key="of-the-benchmark",
        log_folder=folder,
        slot_folder=folder / "slot",
    )


def until_ready(server: VllmServer) -> float:
    """Start it, or attach to it; return the seconds until one request was answered."""
    started = time.monotonic()
    server.start()
    while server.status.state != "ready":
        assert time.monotonic() - started < START_LIMIT_S, server.status
        assert server.status.state == "starting", server.status
        server.check()
        time.sleep(0.1)
    return time.monotonic() - started


def measure(folder: Path) -> dict[str, Any]:
    server = supervisor(folder, KEEP_S)
    start_s = until_ready(server)
    group = server.process_group
    attach_s = []
    for number in range(NUM_ATTACHED):
        server.let_go()
        server = supervisor(folder, KEEP_S if number + 1 < NUM_ATTACHED else LAST_KEEP_S)
        attach_s.append(until_ready(server))
        assert server.status.is_reattached
        assert server.process_group == group
        probe = Probe(server.status.url, model="judge", api_key=server.status.api_key)
        assert probe.ask() == ""
    guard = psutil.Process(group)
    keeper = guard.parent()
    assert keeper is not None
    processes = [keeper, guard, *guard.children(recursive=True)]
    server.let_go()
    released = time.monotonic()
    _, alive = psutil.wait_procs(processes, timeout=60.0)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    return {
        "start_s": round(start_s, 2),
        "attach_s": [round(seconds, 3) for seconds in attach_s],
        "keep_s": LAST_KEEP_S,
        "end_s": round(time.monotonic() - released, 2),
        "num_processes": len(processes),
    }


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rlvid-reattach-") as folder:
        found = measure(Path(folder))
    print(json.dumps({**environment(torch.device("cpu")), **found}, indent=1))


if __name__ == "__main__":
    main()
