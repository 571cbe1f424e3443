"""What becomes of 1,000 scores when one in twenty exchanges fails; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.reward_faults > tests/bench/results/reward_faults.json

Two ways to a score: the HTTP client against a real server that is made to fail at the level of
HTTP and the socket, and RewardPool on Ray with a scorer that fails. Every clip holds its number in
its pixels and the reward reads it back, so a score given to another clip is seen.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, RewardError
from rlvid.rewards.scoring import ScoreItem, ScorerWorker
from rlvid.rewards.service import remote, remote_client
from tests.bench.timing import environment
from tests.system.served import TOKEN, ReadsId, numbered_clips, numbered_videos, score_of, served

PROMPT = Prompt(prompt_id="p", text="a red ball")
NUM_REQUESTS = 1000
CONCURRENCY = 32
FAULT_FRAC = 0.05
CLIENT_TIMEOUT_S = 6.0
OVERSIZED_BYTES = 8 * 2**20

Scope = dict[str, Any]
Send = Callable[[Scope], Any]


def _with_first_score(body: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """Return the answer with `change` made to the list of its first group's scores."""
    answer = msgpack.unpackb(body)
    change(answer["groups"][0]["scores"])
    return bytes(msgpack.packb(answer))


def _swap_ids(body: bytes) -> bytes:
    answer = msgpack.unpackb(body)
    first, second = (group["scores"][0] for group in answer["groups"])
    for key in ("value", "digest"):
        first[key], second[key] = second[key], first[key]
    return bytes(msgpack.packb(answer))


BODIES: dict[str, Callable[[bytes], bytes]] = {
    "garbage": lambda body: random.Random(len(body)).randbytes(200),
    "nan": lambda body: _with_first_score(body, lambda s: s[0].update(value=float("nan"))),
    "wrong_length": lambda body: _with_first_score(body, lambda s: s.pop()),
    "truncated": lambda body: body[: len(body) * 2 // 3],
    "oversized": lambda body: b"\x00" * OVERSIZED_BYTES,
    "swapped_ids": _swap_ids,
}
"""Faults of a body that arrives whole, with status 200."""
KINDS = ("timeout", "status_500", "reset", "half_body", *BODIES)


class Faulty:
    """Wraps the service's ASGI application; a share of its answers goes wrong on the way out.

    The request was scored by then, but for half of the 500s: the worse case, since a client that
    asks again must get the same scores and not have the clips scored twice.
    """

    def __init__(self, app: Any, seed: int = 0) -> None:
        self._app = app
        self._random = random.Random(seed)
        self.injected: Counter[str] = Counter()
        self.num_exchanges = 0

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope.get("path") != "/v1/score":
            await self._app(scope, receive, send)
            return
        self.num_exchanges += 1
        if self._random.random() >= FAULT_FRAC:
            await self._app(scope, receive, send)
            return
        kind = KINDS[sum(self.injected.values()) % len(KINDS)]
        self.injected[kind] += 1
        if kind == "status_500" and self.injected[kind] % 2:
            await _answer(send, 500, b"injected")
            return
        sent: list[Scope] = []

        async def keep(message: Scope) -> None:
            sent.append(message)

        await self._app(scope, receive, keep)
        body = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
        if sent[0]["status"] != 200:  # a 429: nothing to spoil
            self.injected[kind] -= 1
            for message in sent:
                await send(message)
            return
        await self._spoil(kind, body, send)

    async def _spoil(self, kind: str, body: bytes, send: Send) -> None:
        if kind == "timeout":
            await asyncio.sleep(1.5 * CLIENT_TIMEOUT_S)
            await _answer(send, 200, body)
        elif kind == "status_500":
            await _answer(send, 500, b"injected")
        elif kind in ("reset", "half_body"):
            part = body[: len(body) // 2] if kind == "half_body" else b""
            await _answer(send, 200, part, length=len(body))
        else:
            await _answer(send, 200, BODIES[kind](body))


async def _answer(send: Send, status: int, body: bytes, length: int | None = None) -> None:
    """Send a response; one whose `length` is more than its body is broken off by the server."""
    size = str(len(body) if length is None else length).encode()
    headers = [(b"content-type", b"application/msgpack"), (b"content-length", size)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the clips."""

    right: int
    """Scored, and by the number in their own pixels."""
    masked: int
    """NaN, or the whole call raised: counted as missing."""
    zero: int
    swapped: int
    lost: int
    """Neither a score nor a failure."""


def judge(scores: dict[int, float], numbers: Sequence[int]) -> Outcome:
    """Compare each score with the one that its clip's number stands for."""
    counts: Counter[str] = Counter()
    for number in numbers:
        value = scores.get(number)
        if value is None:
            counts["lost"] += 1
        elif value != value:
            counts["masked"] += 1
        elif value == 0.0:
            counts["zero"] += 1
        else:
            counts["right" if value == score_of(number) else "swapped"] += 1
    return Outcome(**{name: counts[name] for name in Outcome.__dataclass_fields__})


def through_http(num_requests: int = NUM_REQUESTS) -> dict[str, Any]:
    """Score two clips in each request, 32 requests at a time."""
    reads = ReadsId()
    wrappers: list[Faulty] = []

    def around(app: Any) -> Faulty:
        wrappers.append(Faulty(app))
        return wrappers[0]

    scores: dict[int, float] = {}
    with served({"reads": reads}, around=around) as url, tempfile.TemporaryDirectory() as folder:
        token_file = Path(folder) / "token"
        token_file.write_text(TOKEN)
        config = remote.RemoteConfig(
            url=url, fps=8, token_file=str(token_file), timeout_s=CLIENT_TIMEOUT_S, max_attempts=8
        )
        reward = remote.RemoteReward(config)

        def ask(number: int) -> None:
            numbers = [number, number + num_requests]
            try:
                values = reward.score(numbered_videos(numbers), [PROMPT] * 2).tolist()
            except RewardError:
                values = [float("nan")] * 2
            scores.update(zip(numbers, values, strict=True))

        began = time.perf_counter()
        with ThreadPoolExecutor(CONCURRENCY) as threads:
            list(threads.map(ask, range(num_requests)))
        seconds = time.perf_counter() - began
    numbers = range(2 * num_requests)
    return {
        "requests": num_requests,
        "concurrency": CONCURRENCY,
        "clips": len(numbers),
        "exchanges": wrappers[0].num_exchanges,
        "injected": {kind: wrappers[0].injected[kind] for kind in KINDS},
        "outcome": outcome_row(judge(scores, numbers)),
        "scored_more_than_once": sum(n > 1 for n in reads.times_scored.values()),
        "seconds": round(seconds, 2),
    }


class FailsAtTimes:
    """Reads the clip's number, but one call in twenty goes wrong; another attempt may do better."""

    clip_spec = ClipSpec()

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        num_hangs: int = 2
        """Calls that never return; each costs a deadline and a process, so there are few."""
        folder: str
        """Where what was injected is noted; processes come and go."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._folder = Path(config.folder)
        self._random = random.Random(len(list(self._folder.iterdir())) + 1)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        scores = ReadsId().score(videos, prompts)
        if self._random.random() >= FAULT_FRAC:
            return scores
        hangs = len(list(self._folder.glob("hang-*")))
        kinds = ["exception", "nan"] + ["hang"] * (hangs < self._config.num_hangs)
        kind = self._random.choice(kinds)
        (self._folder / f"{kind}-{time.time_ns()}").touch()
        if kind == "hang":
            time.sleep(3600.0)
        if kind == "exception":
            raise OSError("injected")
        scores[0] = torch.nan
        return scores


def through_pool(num_groups: int = 500, deadline_s: float = 4.0) -> dict[str, Any]:
    """Score groups of two clips on two replicas of a scorer that fails."""
    import ray

    from rlvid.config import ClusterConfig, RewardsConfig
    from rlvid.rewards.pool import RewardPool

    with tempfile.TemporaryDirectory() as folder:
        entry = {
            "use": "tests.bench.reward_faults:FailsAtTimes", "name": "reads",
            "config": {"folder": folder}, "num_replicas": 2, "batch_size": 2, "num_cpus": 0.5,
            "deadline_s": deadline_s,
        }  # fmt: skip
        rewards = RewardsConfig.model_validate(
            {"scorers": [entry], "deadline_s": 60.0, "max_attempts": 4, "cache_entries": 0}
        )
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20)
        pool = RewardPool(rewards, None, ClusterConfig(start_deadline_s=120.0))
        try:
            pool.start()
            pool.health_check(120.0)
            began = time.perf_counter()
            tickets = {}
            for number in range(num_groups):
                numbers = [number, number + num_groups]
                ticket = pool.submit_clips(
                    numbered_clips(numbers), PROMPT, fps=8, group_id=f"g{number}"
                )
                tickets[ticket] = numbers
            scores = _collect(pool, tickets)
            seconds = time.perf_counter() - began
            replaced = pool.num_replaced
        finally:
            pool.shutdown()
            ray.shutdown()
        injected = Counter(path.name.split("-")[0] for path in Path(folder).iterdir())
    return {
        "groups": num_groups,
        "clips": 2 * num_groups,
        "injected": dict(sorted(injected.items())),
        "outcome": outcome_row(judge(scores, range(2 * num_groups))),
        "replicas_replaced": replaced,
        "seconds": round(seconds, 2),
    }


def _collect(pool: Any, tickets: dict[int, list[int]]) -> dict[int, float]:
    scores: dict[int, float] = {}
    give_up = time.monotonic() + 120.0
    while tickets and time.monotonic() < give_up:
        for ticket, answer in pool.collect(5.0):
            numbers = tickets.pop(ticket)
            for score in answer.scores:
                value = float("nan") if score.value is None else score.value
                scores[numbers[score.index]] = value
    return scores


class OneTooFew:
    """Wrong: leaves out the last clip, so no number can be given to a clip."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.ones(len(videos) - 1)


def wrong_length() -> str:
    """Return what a scorer of the wrong length ends the run with; it is no fault to live with."""
    worker = ScorerWorker(OneTooFew(), label="reads")
    items = [ScoreItem(item_id=(1, row), prompt=PROMPT, source=0, row=row) for row in range(2)]
    try:
        worker.score(items, [numbered_clips([1, 2])], fps=8)
    except RewardError as error:
        return str(error)
    return "it was taken"


def outcome_row(outcome: Outcome) -> dict[str, int]:
    return {name: getattr(outcome, name) for name in Outcome.__dataclass_fields__}


def main() -> None:
    torch.set_num_threads(1)
    remote_client.MAX_ANSWER_BYTES = OVERSIZED_BYTES // 2
    result = {
        "http": through_http(),
        "pool": through_pool(),
        "pool_wrong_length_ends_the_run": wrong_length(),
        "environment": environment(torch.device("cpu")),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
