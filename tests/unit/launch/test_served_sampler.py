"""Rewrites asked of a real HTTP server on loopback, which keeps adapters and loses them."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from rlvid.config.enhancement import RewriteSamplerConfig
from rlvid.enhancement.adapter import PublishedAdapter
from rlvid.enhancement.sampling import SampledAnswer, SampleRequest
from rlvid.launch.enhancement import served_sampler
from rlvid.launch.enhancement.served_sampler import ServedSampler, read_answer
from rlvid.rewards.base import RewardError, RewardTimeoutError
from tests.unit.rewards.judges.fake_vllm import FakeVllm, running

END = 2
FIRST = PublishedAdapter(name="rewriter-000000-aa", folder=Path("/adapters/rewriter-000000-aa"))
SECOND = PublishedAdapter(name="rewriter-000001-bb", folder=Path("/adapters/rewriter-000001-bb"))
REQUESTS = tuple(SampleRequest(prompt_ids=(5, 6, n), seed=2**62 + n) for n in range(6))


@dataclass
class AdapterServer(FakeVllm):
    """Answers /v1/completions with tokens that are a function of adapter, prompt and seed."""

    adapters: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    """Adapters loaded and, with a minus, unloaded."""
    restarts: deque[int] = field(default_factory=deque)
    """Numbers of requests before which it forgets its adapters."""
    wrong: dict[str, Any] = field(default_factory=dict)
    """Fields of a choice that it answers instead."""
    refuses: bool = False

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            own = [
                {"id": name, "root": root, "parent": "m"} for name, root in self.adapters.items()
            ]
            return {"data": [{"id": "m", "root": "/m", "parent": None}, *own]}

        @app.post("/v1/load_lora_adapter")
        async def load(request: Request) -> Any:
            body = await request.json()
            if self.refuses:
                return JSONResponse({"error": {"message": "rank is above 8"}}, 400)
            self.adapters[body["lora_name"]] = body["lora_path"]
            self.history.append(body["lora_name"])
            return {}

        @app.post("/v1/unload_lora_adapter")
        async def unload(request: Request) -> Any:
            name = (await request.json())["lora_name"]
            del self.adapters[name]
            self.history.append(f"-{name}")
            return {}

        @app.post("/v1/completions")
        async def complete(request: Request) -> Any:
            body = await request.json()
            self.bodies.append(body)
            if self.restarts and len(self.bodies) == self.restarts[0]:
                self.restarts.popleft()
                self.adapters.clear()
            if body["model"] not in self.adapters:
                return JSONResponse({"error": {"message": "does not exist"}}, 404)
            return self.completion(body)

        return app

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        tokens = answer_of(body["model"], body["prompt"], body["seed"])
        choice = {
            "token_ids": tokens,
            "prompt_token_ids": body["prompt"],
            "logprobs": {"token_logprobs": [-0.5] * len(tokens)},
        }
        return {"model": body["model"], "choices": [{**choice, **self.wrong}]}


def answer_of(name: str, prompt: list[int], seed: int) -> list[int]:
    digest = hashlib.sha256(f"{name} {prompt} {seed}".encode()).digest()
    return [10 + digest[0], 10 + digest[1], END if digest[2] % 2 else 9]


@contextmanager
def sampling(*servers: AdapterServer, **config: Any) -> Iterator[ServedSampler]:
    sampler = ServedSampler(
        RewriteSamplerConfig(kind="vllm", **{"deadline_s": 30.0, **config}),
        lambda: [server.endpoint for server in servers if server.url],
        end_ids=(END,),
    )
    try:
        yield sampler
    finally:
        sampler.close()


def draw(sampler: ServedSampler) -> list[SampledAnswer]:
    return sampler.sample(REQUESTS, temperature=0.8, max_new_tokens=3)


def expected(adapter: PublishedAdapter) -> list[tuple[int, ...]]:
    return [tuple(answer_of(adapter.name, list(r.prompt_ids), r.seed)) for r in REQUESTS]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_sampler, "LOOK_EVERY_S", 0.05)


def test_answers_come_in_order_with_their_tokens_and_what_ends_them() -> None:
    server = AdapterServer()
    with running(server), sampling(server) as sampler:
        sampler.use(FIRST)
        found = draw(sampler)
    assert [answer.answer_ids for answer in found] == expected(FIRST)
    assert [answer.prompt_ids for answer in found] == [r.prompt_ids for r in REQUESTS]
    assert [a.is_finished for a in found] == [a.answer_ids[-1] == END for a in found]
    assert {a.is_finished for a in found} == {True, False}
    body = server.bodies[0]
    assert (body["temperature"], body["max_tokens"], body["stop_token_ids"]) == (0.8, 3, [END])
    assert (body["top_p"], body["top_k"], body["ignore_eos"]) == (1.0, 0, True)
    assert sorted(b["seed"] for b in server.bodies) == [r.seed for r in REQUESTS]


def test_new_weights_have_a_name_of_their_own_and_the_old_ones_go() -> None:
    """vLLM keeps what it has computed of a prompt by the adapter's name."""
    server = AdapterServer()
    with running(server), sampling(server) as sampler:
        for adapter in (FIRST, FIRST, SECOND):
            sampler.use(adapter)
            assert [answer.answer_ids for answer in draw(sampler)] == expected(adapter)
    assert server.history == [FIRST.name, SECOND.name, f"-{FIRST.name}"]
    assert server.adapters == {SECOND.name: str(SECOND.folder)}


def test_a_server_that_starts_again_is_given_the_adapter_and_asked_with_the_same_seeds() -> None:
    server = AdapterServer(restarts=deque([3]))
    with running(server), sampling(server, concurrency=2) as sampler:
        sampler.use(FIRST)
        assert [answer.answer_ids for answer in draw(sampler)] == expected(FIRST)
        assert sampler.num_asked_again >= 1
    assert server.history == [FIRST.name, FIRST.name]


def test_a_server_that_comes_back_elsewhere_is_found() -> None:
    """Its actor died: the pool gives another URL while the requests wait."""
    gone, back = AdapterServer(url="http://127.0.0.1:1"), AdapterServer()
    with sampling(gone, back) as sampler:
        sampler.use(FIRST)
        found: list[list[SampledAnswer]] = []
        work = threading.Thread(target=lambda: found.append(draw(sampler)))
        work.start()
        time.sleep(0.3)
        assert work.is_alive()
        with running(back):
            gone.url = ""
            work.join(timeout=20.0)
    assert [answer.answer_ids for answer in found[0]] == expected(FIRST)


def test_nobody_to_ask_ends_at_the_deadline() -> None:
    with sampling(AdapterServer(url="http://127.0.0.1:1"), deadline_s=0.5) as sampler:
        sampler.use(FIRST)
        with pytest.raises(RewardTimeoutError, match=r"deadline_s"):
            draw(sampler)


def test_a_refused_adapter_is_an_error_with_the_servers_words() -> None:
    server = AdapterServer(refuses=True)
    with running(server), sampling(server) as sampler:
        sampler.use(FIRST)
        with pytest.raises(RewardError, match="rank is above 8"):
            draw(sampler)


def test_an_adapter_of_somebody_elses_under_our_name_is_an_error() -> None:
    server = AdapterServer(adapters={FIRST.name: "/elsewhere"})
    with running(server), sampling(server) as sampler:
        sampler.use(FIRST)
        with pytest.raises(RewardError, match="Somebody else loads adapters"):
            draw(sampler)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token_ids": None}, "cannot be read"),
        ({"logprobs": None}, "cannot be read"),
        ({"prompt_token_ids": [5]}, "to 1 tokens: expected"),
        ({"logprobs": {"token_logprobs": [-0.5]}}, "a finite log-probability of each token"),
        ({"token_ids": [], "logprobs": {"token_logprobs": []}}, "at least one token"),
        (
            {"logprobs": {"token_logprobs": [-0.5, float("nan"), -0.5]}},
            "a finite log-probability of each token",
        ),
    ],
)
def test_an_answer_that_is_not_one_is_refused(wrong: dict[str, Any], message: str) -> None:
    """Text is never made into tokens again, and no log-probability is guessed."""
    request = REQUESTS[0]
    body = AdapterServer(wrong=wrong).completion(
        {"model": FIRST.name, "prompt": list(request.prompt_ids), "seed": request.seed}
    )
    with pytest.raises(RewardError, match=message):
        read_answer(body, request, frozenset({END}), adapter=FIRST.name)


def test_an_answer_of_other_weights_is_refused() -> None:
    request = REQUESTS[0]
    body = AdapterServer().completion(
        {"model": SECOND.name, "prompt": list(request.prompt_ids), "seed": request.seed}
    )
    with pytest.raises(RewardError, match=f"expected '{FIRST.name}'"):
        read_answer(body, request, frozenset({END}), adapter=FIRST.name)
