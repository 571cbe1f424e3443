"""The router against real HTTP servers that misbehave."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any

import pytest

from rlvid.rewards.base import Endpoint, RewardError, RewardTimeoutError
from rlvid.rewards.breaker import BreakerSettings
from rlvid.rewards.judges.router import Answer, JudgeRequestError, Router, RouterSettings
from tests.unit.rewards.judges.fake_vllm import FakeVllm, running

BODY: Mapping[str, Any] = {"messages": [{"role": "user", "content": "Yes or No?"}]}
CHAT = "/v1/chat/completions"
QUICK = RouterSettings(timeout_s=20.0, deadline_s=60.0, backoff_s=0.01, max_backoff_s=0.05)
NOBODY = Endpoint(url="http://127.0.0.1:9", model="judge", model_digest="digest")


def ask(router: Router, *endpoints: Endpoint, count: int = 1) -> list[Answer | BaseException]:
    async def all_of_them() -> list[Answer | BaseException]:
        router.replace(endpoints)
        try:
            work = (router.post(CHAT, BODY) for _ in range(count))
            return await asyncio.gather(*work, return_exceptions=True)
        finally:
            await router.aclose()

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("fault", ["500", "garbage", "list", "huge"])
def test_a_passing_failure_is_asked_again(fault: str) -> None:
    with running(FakeVllm(faults=deque([fault]))) as (server,):
        [answer] = ask(Router(QUICK), server.endpoint)
        assert isinstance(answer, Answer)
        assert (answer.num_attempts, server.num_chats) == (2, 2)


def test_a_refused_request_is_not_asked_again_and_says_why() -> None:
    """A prompt that is too long stays too long."""
    with running(FakeVllm(faults=deque(["400"]))) as (server,):
        [answer] = ask(Router(QUICK), server.endpoint)
        assert isinstance(answer, JudgeRequestError)
        assert "400: the prompt is too long" in str(answer)
        assert server.num_chats == 1


def test_attempts_that_reach_a_server_are_counted() -> None:
    with running(FakeVllm(faults=deque(["500"] * 20))) as (server,):
        settings = RouterSettings(max_attempts=3, backoff_s=0.01, deadline_s=20.0)
        [answer] = ask(Router(settings), server.endpoint)
        assert isinstance(answer, RewardError)
        assert "3 attempts" in str(answer)
        assert "engine is dead" in str(answer)
        assert server.num_chats == 3


def test_a_hanging_replica_costs_one_timeout() -> None:
    """The second attempt goes to the other replica, whatever its load."""
    with running(FakeVllm(faults=deque(["hang"])), FakeVllm()) as (hanging, well):
        settings = RouterSettings(timeout_s=1.5, deadline_s=60.0, backoff_s=0.01)
        [answer] = ask(Router(settings), hanging.endpoint, well.endpoint)
        assert isinstance(answer, Answer)
        assert answer.endpoint == well.endpoint
        assert hanging.num_chats == 1


def test_a_replica_that_is_not_there_is_left_out() -> None:
    """Three refusals open its breaker; the others answer every request."""
    with running(FakeVllm()) as (server,):
        router = Router(QUICK)
        answers = ask(router, NOBODY, server.endpoint, count=40)
        assert all(isinstance(answer, Answer) for answer in answers)
        assert router.num_failed == 0
        assert server.num_chats == 40


def test_no_replica_at_all_ends_at_the_deadline() -> None:
    """Refusals alone are waited out, since a restart takes a minute, but not for ever."""
    settings = RouterSettings(deadline_s=0.6, backoff_s=0.01, max_backoff_s=0.05)
    [answer] = ask(Router(settings), NOBODY)
    assert isinstance(answer, RewardTimeoutError)
    assert "no connection" in str(answer)


def test_the_least_busy_replica_is_asked() -> None:
    """A replica ten times slower gets a small share."""
    with running(FakeVllm(delay_s=0.3), FakeVllm(delay_s=0.02)) as (slow, fast):

        async def in_turn() -> None:
            router = Router(QUICK)
            router.replace([slow.endpoint, fast.endpoint])
            room = asyncio.Semaphore(4)

            async def one() -> None:
                async with room:
                    await router.post(CHAT, BODY)

            await asyncio.gather(*(one() for _ in range(40)))
            await router.aclose()

        asyncio.run(in_turn())
        assert slow.num_chats + fast.num_chats == 40
        assert slow.num_chats < 14


def test_replicas_may_be_exchanged_while_requests_are_in_flight() -> None:
    """A request that hangs on a server that was given up is answered by its successor."""
    with running(FakeVllm(faults=deque(["500"] * 50)), FakeVllm()) as (old, new):

        async def exchange() -> Answer:
            router = Router(RouterSettings(max_attempts=50, backoff_s=0.05, deadline_s=10.0))
            router.replace([old.endpoint])
            request = asyncio.create_task(router.post(CHAT, BODY))
            await asyncio.sleep(0.3)
            router.replace([new.endpoint])
            answer = await request
            await router.aclose()
            return answer

        assert asyncio.run(exchange()).endpoint == new.endpoint


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would be handed keys and clips."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with running(FakeVllm()) as (server,):
        [answer] = ask(Router(QUICK), server.endpoint)
        assert isinstance(answer, Answer)
        assert server.keys == {"Bearer key"}


def test_slow_answers_open_a_breaker_while_others_are_quick() -> None:
    """A replica that answers after a minute is as good as dead while others are quick."""
    with running(FakeVllm(delay_s=0.3), FakeVllm()) as (slow, fast):
        once = BreakerSettings(max_failures=1, open_s=60.0)

        async def in_turn(*servers: FakeVllm) -> None:
            router = Router(dataclasses.replace(QUICK, slow_s=0.2, breaker=once))
            router.replace([server.endpoint for server in servers])
            for _ in range(4):
                await router.post(CHAT, BODY)
            await router.aclose()

        asyncio.run(in_turn(slow, fast))
        assert (slow.num_chats, fast.num_chats) == (1, 3)
        asyncio.run(in_turn(slow))
        assert slow.num_chats == 5, "where there is nobody quicker, it is asked all the same"
