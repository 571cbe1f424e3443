"""The key check in front of a model server, as an ASGI application calls it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rlvid.rewards.vllm.command import FRONT, KEY_CHECK
from rlvid.rewards.vllm.front.rlvid_require_key import RequireKey


def statuses(monkeypatch: pytest.MonkeyPatch, scope: dict[str, Any]) -> list[Any]:
    """What is sent to a client; the application itself answers 200."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append(200)

    async def receive() -> Any:
        raise AssertionError("nothing of a request that is refused is read")

    async def send(message: Any) -> None:
        sent.append(message.get("status") or message.get("code"))

    asyncio.run(RequireKey(app)(scope, receive, send))
    return [one for one in sent if one is not None]


def scope_of(path: str, key: str = "", kind: str = "http") -> dict[str, Any]:
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    return {"type": kind, "path": path, "headers": headers}


@pytest.mark.parametrize("path", ["/v1/models", "/adapters", "/invocations", "/metrics", "/"])
def test_no_path_but_health_is_answered_without_the_key(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    assert statuses(monkeypatch, scope_of(path)) == [401]
    assert statuses(monkeypatch, scope_of(path, "another")) == [401]
    assert statuses(monkeypatch, scope_of(path, "secret")) == [200]


def test_health_and_the_start_of_the_server_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert statuses(monkeypatch, scope_of("/health")) == [200]
    assert statuses(monkeypatch, {"type": "lifespan"}) == [200]


def test_a_websocket_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert statuses(monkeypatch, scope_of("/v1/realtime", kind="websocket")) == [1008]


def test_the_server_finds_it_by_its_name() -> None:
    module, name = KEY_CHECK.rsplit(".", 1)
    assert (FRONT / f"{module}.py").is_file()
    assert name == RequireKey.__name__
