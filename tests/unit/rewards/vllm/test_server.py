"""The supervisor against real processes; a small script stands in for the interpreter of vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.vllm import probe
from rlvid.rewards.vllm.command import (
    FRONT,
    KEY_CHECK,
    cpu_kv_cache_bytes,
    model_digest,
    server_command,
    server_environment,
)
from rlvid.rewards.vllm.server import VllmServer
from tests.unit.rewards.vllm.stand_in import write_stand_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds the stand-in, a model folder and what both write."""
    write_stand_in(tmp_path)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[VllmServer]:
    config = ServerConfig(
        model=str(folder / "model"), python=str(folder / "python"), start_deadline_s=60.0
    )
    one = VllmServer(config, name="judge", api_key="secret", log_folder=folder / "logs")
    yield one
    one.stop()


def until(server: VllmServer, is_true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Look after the server until it is so."""
    give_up = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < give_up, server.status
        server.check()
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pid_of(folder: Path, name: str) -> int:
    return int((folder / name).read_text())


def test_it_is_ready_when_a_request_went_through(server: VllmServer, folder: Path) -> None:
    server.start()
    assert server.status.state == "starting"
    until(server, lambda: server.status.state == "ready")
    assert server.status.model_digest == model_digest(folder / "model")
    assert server.log_path.stat().st_mode & 0o077 == 0


def test_a_killed_server_comes_back_under_its_url(server: VllmServer, folder: Path) -> None:
    """And what it had started is ended first: two engines would not fit on a GPU."""
    server.start()
    until(server, lambda: server.status.state == "ready")
    url, engine = server.status.url, pid_of(folder, "engine")
    os.kill(pid_of(folder, "leader"), signal.SIGKILL)
    until(server, lambda: server.status.num_restarts == 1)
    until(server, lambda: server.status.state == "ready")
    assert server.status.url == url
    assert not is_alive(engine)


def test_a_server_whose_health_fails_is_restarted(server: VllmServer, folder: Path) -> None:
    """It runs, it listens, and it will never answer again."""
    server.start()
    until(server, lambda: server.status.state == "ready")
    (folder / "ill").touch()
    until(server, lambda: server.status.num_restarts == 1)
    (folder / "ill").unlink()
    until(server, lambda: server.status.state == "ready")


def test_a_first_start_that_fails_shows_the_end_of_the_log(
    server: VllmServer, folder: Path
) -> None:
    """Trying it five times more would only take five times as long."""
    (folder / "breaks").touch()
    server.start()
    until(server, lambda: server.status.state == "failed")
    assert "no memory left on the device" in server.status.detail
    assert str(server.log_path) in server.status.detail


def test_restarts_are_limited(folder: Path) -> None:
    config = ServerConfig(
        model=str(folder / "model"), python=str(folder / "python"), max_restarts=1
    )
    server = VllmServer(config, name="judge", api_key="secret", log_folder=folder)
    server.start()
    until(server, lambda: server.status.state == "ready")
    (folder / "breaks").touch()
    os.kill(pid_of(folder, "leader"), signal.SIGKILL)
    until(server, lambda: server.status.state == "failed")
    assert "1 of max_restarts 1" in server.status.detail


def test_stop_ends_every_process(server: VllmServer, folder: Path) -> None:
    server.start()
    until(server, lambda: server.status.state == "ready")
    pids = [pid_of(folder, "leader"), pid_of(folder, "engine"), server.process_group]
    server.stop()
    assert [pid for pid in pids if is_alive(pid)] == []


SUPERVISOR = """
import os, sys, time
from rlvid.config.rewards import ServerConfig
from rlvid.rewards.vllm.server import VllmServer
folder = sys.argv[1]
config = ServerConfig(model=folder + "/model", python=folder + "/python")
server = VllmServer(config, name="judge", api_key="secret", log_folder=folder)
server.start()
while server.status.state != "ready":
    server.check()
    time.sleep(0.05)
print("ready", flush=True)
time.sleep(600)
"""


def test_nothing_outlives_a_supervisor_that_is_killed(folder: Path) -> None:
    """SIGKILL lets it clean up nothing; a GPU would stay occupied until somebody finds out."""
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(folder)], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline().strip() == "ready"
        pids = [pid_of(folder, "leader"), pid_of(folder, "engine")]
        supervisor.kill()
    give_up = time.monotonic() + 60.0
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < give_up, "processes of the server are left"
        time.sleep(0.05)


def test_a_model_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Before vLLM takes a minute to say so, or asks a hub for it."""
    config = ServerConfig(model=str(tmp_path / "nowhere"))
    server = VllmServer(config, name="judge", api_key="secret", log_folder=tmp_path)
    with pytest.raises(
        ValueError, match=r"^rewards\.servers\.judge\.model: no model at '.*nowhere'.*got no folder"
    ):
        server.start()


def test_an_interpreter_without_vllm_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_VLLM", "3")
    python = folder / "python"
    config = ServerConfig(model=str(folder / "model"), python=str(python.rename(folder / "other")))
    server = VllmServer(config, name="judge", api_key="secret", log_folder=folder)
    with pytest.raises(ValueError, match=r"judge\.python: .* has no vllm"):
        server.start()


def test_command_hides_the_key_and_fetches_nothing() -> None:
    config = ServerConfig(clip_fps=8, engine_args={"seed": 3, "enforce_eager": False})
    command = server_command(config, name="judge", host="127.0.0.1", port=8111)
    joined = " ".join(command)
    assert '--media-io-kwargs {"video": {"fps": 8}}' in joined
    assert "--allowed-media-domains no-media-from-urls.invalid" in joined
    assert "--allowed-local-media-path" not in joined
    assert "--dtype float32" in joined  # no GPU
    assert "--no-enforce-eager" in joined
    assert "--seed 3" in joined
    assert f"--middleware {KEY_CHECK}" in joined
    assert "secret" not in joined


def test_a_server_gets_listed_variables_and_no_others() -> None:
    """Its code comes from others, and nobody can list every name that a secret may have."""
    secrets = {
        name: "mine"
        for name in ("HF_TOKEN", "OPENAI_API_KEY", "GITHUB_TOKEN", "DATABASE_URL", "VLLM_S3_TOKEN")
    }
    passed = {"PATH": "/bin", "LD_PRELOAD": "/lib/a.so", "NCCL_DEBUG": "INFO", "TORCH_HOME": "/t"}
    inherited = {**secrets, **passed, "PYTHONPATH": "/ours", "VLLM_API_KEY": "theirs"}
    env = server_environment(ServerConfig(), "secret", inherited)
    assert not set(secrets) & set(env)
    assert passed.items() <= env.items()
    assert (env["VLLM_API_KEY"], env["HF_HUB_OFFLINE"]) == ("secret", "1")
    assert env["PYTHONPATH"] == f"{FRONT}{os.pathsep}/ours"
    other = server_environment(ServerConfig(python="x"), "secret", inherited)
    assert other["PYTHONPATH"] == str(FRONT), "of ours it sees one file of the standard library"


def test_the_entry_adds_variables_but_not_the_key() -> None:
    config = ServerConfig(env={"MY_FLAG": "1", "OMP_NUM_THREADS": "7", "VLLM_API_KEY": "another"})
    env = server_environment(config, "secret", {})
    assert (env["MY_FLAG"], env["OMP_NUM_THREADS"], env["VLLM_API_KEY"]) == ("1", "7", "secret")


def test_a_gpu_server_takes_its_devices_together() -> None:
    config = ServerConfig(num_gpus=2.0)
    command = server_command(config, name="judge", host="127.0.0.1", port=8111)
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert "--enforce-eager" not in command
    assert command[command.index("--dtype") + 1] == "auto"


def test_the_cache_on_a_cpu_holds_a_request_of_full_length(tmp_path: Path) -> None:
    """vLLM refuses to start otherwise. 2 * 28 layers * 4 heads * 128 * 4 bytes a token."""
    shape = {"num_hidden_layers": 28, "num_attention_heads": 28, "hidden_size": 3584}
    text = {"text_config": {**shape, "num_key_value_heads": 4}}
    (tmp_path / "config.json").write_text(json.dumps(text))
    config = ServerConfig(model=str(tmp_path), max_model_len=16384)
    assert cpu_kv_cache_bytes(config) == 2 * 16384 * 114688
    assert cpu_kv_cache_bytes(ServerConfig()) == 64 * 2**20


def test_model_digest_is_of_the_content(tmp_path: Path) -> None:
    """Two checkpoints in turn in one folder must not share cached scores."""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    one = model_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert model_digest(tmp_path) != one


def test_a_stopped_server_is_killed_and_started_again(
    server: VllmServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither ends nor answers; a kill works on it all the same."""
    monkeypatch.setattr(probe, "HEALTH_TIMEOUT_S", 0.3)
    server.start()
    until(server, lambda: server.status.state == "ready")
    before = pid_of(folder, "leader")
    os.kill(before, signal.SIGSTOP)
    until(server, lambda: server.status.num_restarts == 1, timeout_s=20.0)
    until(server, lambda: server.status.state == "ready")
    assert not is_alive(before)


def test_a_server_with_its_guard_stopped_is_started_again(server: VllmServer, folder: Path) -> None:
    """The server works, but would stay for good if its supervisor died."""
    server.start()
    until(server, lambda: server.status.state == "ready")
    before = pid_of(folder, "leader")
    os.kill(server.process_group, signal.SIGSTOP)
    until(server, lambda: server.status.num_restarts == 1, timeout_s=20.0)
    until(server, lambda: server.status.state == "ready")
    assert not is_alive(before)


def test_a_healthy_server_that_answers_nothing_is_started_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front says that all is well while the engine behind it is stopped."""
    monkeypatch.setattr(probe, "ASK_EVERY_S", 0.2)
    config = ServerConfig(
        model=str(folder / "model"), python=str(folder / "python"), answer_deadline_s=0.5
    )
    server = VllmServer(config, name="judge", api_key="secret", log_folder=folder / "logs")
    try:
        server.start()
        until(server, lambda: server.status.state == "ready")
        time.sleep(0.5)
        server.check()
        assert server.status.num_restarts == 0
        (folder / "hung").touch()
        until(server, lambda: server.status.num_restarts == 1, timeout_s=20.0)
        assert "no answer in 0.5 s" in server.status.detail
        (folder / "hung").unlink()
        until(server, lambda: server.status.state == "ready")
    finally:
        server.stop()
