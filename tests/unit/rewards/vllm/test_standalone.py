"""A server for the length of a block; a small script stands in for the interpreter of vLLM."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.base import Endpoint, RewardError
from rlvid.rewards.vllm.command import model_digest
from rlvid.rewards.vllm.standalone import own_server
from tests.unit.rewards.vllm.stand_in import write_stand_in


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    write_stand_in(tmp_path)
    return ServerConfig(
        model=str(tmp_path / "model"), python=str(tmp_path / "python"), start_deadline_s=60.0
    )


def test_it_answers_within_the_block_and_ends_with_it(config: ServerConfig, tmp_path: Path) -> None:
    with own_server(config, key="secret") as endpoint:
        assert endpoint == Endpoint(
            url=endpoint.url,
            model="judge",
            model_digest=model_digest(tmp_path / "model"),
            api_key="secret",
        )
        url = f"{endpoint.url}/health"
        assert httpx.get(url, timeout=30.0, trust_env=False).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=30.0, trust_env=False)


def test_a_server_that_cannot_start_is_an_error_with_its_log(
    config: ServerConfig, tmp_path: Path
) -> None:
    (tmp_path / "breaks").touch()
    with (
        pytest.raises(RewardError, match=r"(?s)judge: the server did not come up: .*no memory"),
        own_server(config),
    ):
        pass
