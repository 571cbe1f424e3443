"""The pool of model servers on real Ray, with a quick stand-in for vLLM."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rlvid.config import ClusterConfig
from rlvid.config.rewards import ServerConfig
from rlvid.rewards.base import Endpoint, RewardError, RewardTimeoutError
from rlvid.rewards.vllm.pool import ServerPool
from tests.system.conftest import local_ray
from tests.unit.rewards.judges.fake_vllm import FakeVllm, running
from tests.unit.rewards.vllm.stand_in import write_stand_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds the stand-in for vLLM; Ray runs meanwhile."""
    path = tmp_path_factory.mktemp("stand-in")
    write_stand_in(path)
    os.environ["XDG_CACHE_HOME"] = str(path / "cache")  # where kept servers are found again
    with local_ray(num_cpus=3, object_store_mb=100):
        yield path
    del os.environ["XDG_CACHE_HOME"]


def config(folder: Path, **changes: Any) -> ServerConfig:
    values = {"model": str(folder / "model"), "python": str(folder / "python")}
    return ServerConfig(**{**values, **changes})


def until(pool: ServerPool, is_true: Callable[[], bool], timeout_s: float = 60.0) -> set[str]:
    """Poll until it is so; return the names that changed meanwhile."""
    give_up, changed = time.monotonic() + timeout_s, set[str]()
    while True:
        changed |= pool.poll()
        if is_true():
            return changed
        assert time.monotonic() < give_up, pool.metrics()
        time.sleep(0.05)


def test_servers_start_together_and_have_keys_of_their_own(folder: Path) -> None:
    pool = ServerPool(
        {"one": config(folder), "two": config(folder, num_replicas=2)}, ClusterConfig()
    )
    try:
        pool.start()
        pool.wait_ready()
        endpoints = [*pool.endpoints("one"), *pool.endpoints("two")]
        assert len({endpoint.url for endpoint in endpoints}) == 3
        assert [endpoint.model for endpoint in endpoints] == ["one", "two", "two"]
        assert len({endpoint.api_key for endpoint in endpoints}) == 2
        assert endpoints[0].api_key not in repr(endpoints[0])
        assert pool.metrics()["servers/two/up"] == 2.0
    finally:
        pool.shutdown()


def test_a_killed_actor_is_replaced_and_its_server_goes_with_it(folder: Path) -> None:
    """Its node may be gone; if not, the old server must not keep the GPU."""
    pool = ServerPool({"judge": config(folder)}, ClusterConfig())
    try:
        pool.start()
        pool.wait_ready()
        [before] = pool.endpoints("judge")
        leader = int((folder / "leader").read_text())
        [replica] = pool._replicas
        ray.kill(replica.actor)
        changed = until(pool, lambda: pool.endpoints("judge") not in ((), (before,)))
        assert changed == {"judge"}
        assert pool.metrics()["servers/judge/restarts"] == 1.0
        stat = Path(f"/proc/{leader}/stat")
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
    finally:
        pool.shutdown()


def test_a_kept_server_outlives_its_actor_and_its_pool(folder: Path) -> None:
    """Neither a lost actor nor a driver that will be resumed costs another load of the model."""
    servers = {"judge": config(folder, keep_s=60.0)}
    pool = ServerPool(servers, ClusterConfig(), run_folder=folder / "run")
    try:
        pool.start()
        pool.wait_ready()
        before, leader = pool.endpoints("judge"), int((folder / "leader").read_text())
        assert pool.processes() == [("judge", 0, os.getpgid(leader))]
        ray.kill(pool._replicas[0].actor)
        until(pool, lambda: pool.metrics()["servers/judge/reattached"] == 1.0)
        assert pool.endpoints("judge") == before
    finally:
        pool.shutdown(keeps_servers=True)
    stat = Path(f"/proc/{leader}/stat")
    assert stat.read_text().rpartition(")")[2].split()[0] != "Z"
    pool = ServerPool(servers, ClusterConfig(), run_folder=folder / "run")
    try:
        pool.start()
        pool.wait_ready()
        assert pool.endpoints("judge") == before
        assert int((folder / "leader").read_text()) == leader
    finally:
        pool.shutdown()
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_restarting_server_keeps_its_endpoint(folder: Path) -> None:
    """Clients only have to ask again; telling them would change nothing."""
    pool = ServerPool({"judge": config(folder)}, ClusterConfig())
    try:
        pool.start()
        pool.wait_ready()
        os.kill(int((folder / "leader").read_text()), signal.SIGKILL)

        def has_restarted() -> bool:
            metrics = pool.metrics()
            return metrics["servers/judge/restarts"] == 1.0 and metrics["servers/judge/up"] == 1.0

        assert until(pool, has_restarted) == set()
    finally:
        pool.shutdown()


def test_a_server_that_cannot_start_shows_its_log(folder: Path) -> None:
    (folder / "breaks").touch()
    pool = ServerPool({"judge": config(folder)}, ClusterConfig())
    try:
        pool.start()
        with pytest.raises(RewardError, match=r"(?s)servers\.judge: .*no memory left"):
            pool.wait_ready()
    finally:
        (folder / "breaks").unlink()
        pool.shutdown()


def test_a_server_that_finds_no_room_is_an_error_and_no_hang(folder: Path) -> None:
    crowded = config(folder, num_cpus=64.0, start_deadline_s=3.0)
    pool = ServerPool({"judge": crowded}, ClusterConfig())
    try:
        pool.start()
        with pytest.raises(RewardTimeoutError, match="0 of 1 replicas .* found room"):
            pool.wait_ready()
    finally:
        pool.shutdown()


def test_a_folder_that_is_not_there_is_refused_before_anything_starts() -> None:
    pool = ServerPool({"judge": ServerConfig(model="nowhere")}, ClusterConfig())
    with pytest.raises(ValueError, match=r"rewards\.servers\.judge\.model: no model at"):
        pool.start()


def test_servers_of_others_are_found_by_what_they_serve(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", "key")
    with running(FakeVllm(), FakeVllm()) as servers:
        urls = tuple(f"{server.url}/v1" for server in servers)
        outside = ServerConfig(model="judge", urls=urls, api_key_env="THEIR_KEY")
        pool = ServerPool({"judge": outside}, ClusterConfig())
        pool.start()
        try:
            pool.wait_ready()
            assert pool.endpoints("judge") == tuple(
                Endpoint(url=s.url, model="judge", model_digest="judge@/weights", api_key="key")
                for s in servers
            )
            assert pool.metrics() == {"servers/judge/up": 2.0, "servers/judge/restarts": 0.0}
        finally:
            pool.shutdown()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "another"}, "does not serve 'another'; it serves judge"),
        ({"api_key_env": "WRONG_KEY"}, "refuses the key"),
    ],
)
def test_a_server_of_others_that_does_not_fit_is_refused_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("THEIR_KEY", "key")
    monkeypatch.setenv("WRONG_KEY", "another key")
    with running(FakeVllm()) as (server,):
        values: dict[str, Any] = {"model": "judge", "api_key_env": "THEIR_KEY"} | changes
        pool = ServerPool({"judge": ServerConfig(urls=(server.url,), **values)}, ClusterConfig())
        pool.start()
        try:
            with pytest.raises(RewardError, match=message):
                pool.wait_ready()
        finally:
            pool.shutdown()


def test_a_key_that_is_not_set_is_refused() -> None:
    outside = ServerConfig(urls=("http://127.0.0.1:9",), api_key_env="NOT_SET_ANYWHERE")
    with pytest.raises(ValueError, match="'NOT_SET_ANYWHERE' is not set"):
        ServerPool({"judge": outside}, ClusterConfig()).start()
