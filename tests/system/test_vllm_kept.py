"""A real vLLM server outlives a killed driver, and ends when no driver comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KEEP_S = 120.0
"""More than a driver takes to start on a busy machine."""
LAST_KEEP_S = 3.0
DRIVER = """
import json, sys, time
from pathlib import Path
import httpx
from rlvid.config import Recipe
from rlvid.config.rewards import ServerConfig
from rlvid.launch.cluster import open_cluster
from rlvid.rewards.vllm.pool import ServerPool

config = ServerConfig(keep_s=float(sys.argv[2]))
recipe = Recipe.model_validate({"name": "kept", "cluster": {"num_cpus": 8, "object_store_mb": 100}})
with open_cluster(recipe):
    pool = ServerPool({"judge": config}, recipe.cluster, run_folder=sys.argv[1])
    started = time.monotonic()
    pool.start()
    pool.wait_ready()
    [endpoint] = pool.endpoints("judge")
    body = {"model": "judge", "messages": [{"role": "user", "content": "Yes?"}], "max_tokens": 1}
    answer = httpx.post(
        endpoint.url + "/v1/chat/completions", json=body, timeout=60.0,
        headers={"Authorization": "Bearer " + endpoint.api_key}, trust_env=False,
    )
    print(json.dumps({
        "url": endpoint.url,
        "status": answer.status_code,
        "start_s": pool.metrics()["servers/judge/start_s"],
        "ready_s": time.monotonic() - started,
        "reattached": pool.metrics()["servers/judge/reattached"],
    }), flush=True)
    sys.stdin.read()
    pool.shutdown(keeps_servers=True)
"""


def start(folder: Path, keep_s: float) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder / "run"), str(keep_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip
    assert driver.stdout is not None
    line = driver.stdout.readline()
    assert line, f"the driver ended with {driver.wait(timeout=60.0)}"
    return driver, json.loads(line)


def test_a_judge_outlives_a_killed_driver_and_no_driver_at_all(tmp_path: Path) -> None:
    """The second driver has it in a second, where loading took tens; then its lease runs out."""
    driver, first = start(tmp_path, KEEP_S)
    assert (first["status"], first["reattached"]) == (200, 0.0)
    [record] = tmp_path.glob("cache/rlvid/servers/*/*/judge-0/server.json")
    known = json.loads(record.read_text())
    keeper = psutil.Process(known["pid"])
    processes = [keeper, *keeper.children(recursive=True)]
    assert len(processes) >= 4, "keeper, guard, API server, engine"
    os.killpg(driver.pid, signal.SIGKILL)  # and whatever is in its group
    driver.wait(timeout=10.0)

    driver, second = start(tmp_path, LAST_KEEP_S)
    assert (second["status"], second["reattached"]) == (200, 1.0)
    assert second["url"] == first["url"]
    assert json.loads(record.read_text()) == known
    print(f"first start {first['start_s']:.1f} s, second {second['start_s']:.2f} s")
    assert second["start_s"] < 0.1 * first["start_s"]

    driver.communicate(timeout=60.0)  # it ends in good order and leaves the server to its lease
    _, alive = psutil.wait_procs(processes, timeout=LAST_KEEP_S + 20.0)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert not record.exists()
