"""`rlvid serve-rewards` from start to signal, with a client of another process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from rlvid.rewards.service.remote import RemoteConfig, RemoteReward
from rlvid.testing import check_reward

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_service_of_a_recipe_scores_and_ends_cleanly(tmp_path: Path) -> None:
    """The pool's own processes, a client that keeps the contract, and exit status 0 on SIGTERM."""
    service = subprocess.Popen(
        [
            *(sys.executable, "-m", "rlvid.launch.cli", "serve-rewards", "quickstart_cpu"),
            *("rewards.scorers=[{use: realism}, {use: physics}]", "--port", "0"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert service.stdout is not None
        token_file = service.stdout.readline().removeprefix("token file: ").strip()
        found = re.search(r"http://[\d.]+:\d+", service.stdout.readline())
        assert found is not None
        url = found.group()
        assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        config = RemoteConfig(url=url, fps=8, token_file=token_file, scorers={"realism": 1.0})
        check_reward(RemoteReward(config))
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=60) == 0
        assert not Path(token_file).exists()
    finally:
        if service.poll() is None:
            service.kill()
