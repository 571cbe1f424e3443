"""Draws answers from a vLLM server that holds the learner's adapter; tokens in, tokens out.

    use(adapter) --> sample() --> every replica holds the adapter --> one request an answer
                                        ^                                  |
                                        +-- 404: it has started again -----+

Nothing is tokenised or read back from text. A request that a dying server broke off is sent again
with its seed, to whichever replica there is, until `deadline_s`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from rlvid.config.enhancement import RewriteSamplerConfig
from rlvid.enhancement.adapter import PublishedAdapter
from rlvid.enhancement.sampling import SampledAnswer, SampleRequest
from rlvid.rewards.base import Endpoint, RewardError, RewardTimeoutError
from rlvid.rewards.judges.loop_thread import LoopThread
from rlvid.rewards.judges.router import JudgeRequestError, Router, RouterSettings
from rlvid.rewards.vllm.adapters import serve_adapter

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""For replicas that have moved, and between two tries of one that has lost its adapter."""
MAX_ATTEMPTS = 20
"""Of one request that reached a server: an engine that has died answers 500 until it is seen."""


class ServedSampler:
    """An `AnswerSampler`; `use` says which weights it draws from."""

    def __init__(
        self,
        config: RewriteSamplerConfig,
        endpoints: Callable[[], Sequence[Endpoint]],
        *,
        end_ids: Sequence[int],
    ) -> None:
        """`endpoints` is asked again and again: a replica that dies may come back elsewhere."""
        self._config = config
        self._endpoints = endpoints
        self._end_ids = frozenset(end_ids)
        self._adapter: PublishedAdapter | None = None
        self._router = Router(
            RouterSettings(
                timeout_s=config.timeout_s,
                deadline_s=config.deadline_s,
                max_attempts=MAX_ATTEMPTS,
                max_connections=config.concurrency,
            )
        )
        self._loop = LoopThread()
        self._loading = asyncio.Lock()
        self._num_lost = 0

    @property
    def num_asked_again(self) -> int:
        """Requests that were sent again, since the start."""
        return self._router.num_retries + self._num_lost

    def use(self, adapter: PublishedAdapter) -> None:
        """Draw with this adapter from now on."""
        self._adapter = adapter

    def sample(
        self, requests: Sequence[SampleRequest], *, temperature: float, max_new_tokens: int
    ) -> list[SampledAnswer]:
        """Return one answer a request, in order.

        Raises:
            RewardTimeoutError: not all were answered within `deadline_s`.
            RewardError: a server refused an adapter or a request, or answered what cannot be read.
        """
        assert self._adapter is not None, "use() says with which weights"
        options = {
            "temperature": temperature,
            "max_tokens": max_new_tokens,
            "logprobs": 0,
            "return_token_ids": True,
            # Our end tokens and no others, as the sampler of transformers has them.
            "ignore_eos": True,
            "stop_token_ids": sorted(self._end_ids),
            # All of softmax(logits / temperature).
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
        }
        deadline_s = self._config.deadline_s
        try:
            return self._loop.run(self._draw(requests, options, self._adapter), deadline_s)
        except TimeoutError as error:
            raise RewardTimeoutError(
                f"prompt_enhancement: {len(requests)} rewrites were not drawn within "
                f"sampler.deadline_s {deadline_s:g}. See the log of server 'rewriter', or raise it."
            ) from error

    def close(self) -> None:
        self._loop.run(self._router.aclose(), 10.0)
        self._loop.close()

    async def _draw(
        self,
        requests: Sequence[SampleRequest],
        options: Mapping[str, Any],
        adapter: PublishedAdapter,
    ) -> list[SampledAnswer]:
        room = asyncio.Semaphore(self._config.concurrency)

        async def one(request: SampleRequest) -> SampledAnswer:
            async with room:
                return await self._one(request, options, adapter)

        await self._load(adapter)
        following = asyncio.create_task(self._follow(adapter))
        tasks = [asyncio.create_task(one(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in (following, *tasks):
                task.cancel()

    async def _one(
        self, request: SampleRequest, options: Mapping[str, Any], adapter: PublishedAdapter
    ) -> SampledAnswer:
        body = {**options, "prompt": list(request.prompt_ids), "seed": request.seed}
        while True:
            try:
                answer = await self._router.post("/v1/completions", body)
            except JudgeRequestError as error:
                if error.status != 404:
                    raise
                logger.warning("server has lost its adapter adapter=%s", adapter.name)
                self._num_lost += 1
                await self._load(adapter)
                await asyncio.sleep(LOOK_EVERY_S)
            else:
                return read_answer(answer.body, request, self._end_ids, adapter=adapter.name)

    async def _follow(self, adapter: PublishedAdapter) -> None:
        """Tell the router of replicas that come and go, while requests are in flight."""
        while True:
            self._replace(adapter)
            await asyncio.sleep(LOOK_EVERY_S)

    def _replace(self, adapter: PublishedAdapter) -> None:
        self._router.replace([replace(one, model=adapter.name) for one in self._endpoints()])

    async def _load(self, adapter: PublishedAdapter) -> None:
        """Have every replica that is there hold the adapter; one that is not answers 404 later."""
        async with (
            self._loading,
            httpx.AsyncClient(trust_env=False, timeout=self._config.timeout_s) as http,
        ):
            for endpoint in self._endpoints():
                try:
                    await serve_adapter(http, endpoint, name=adapter.name, folder=adapter.folder)
                except httpx.HTTPError as error:
                    logger.warning(
                        "server takes no adapter now url=%s reason=%s", endpoint.url, repr(error)
                    )
        self._replace(adapter)


def read_answer(
    body: Mapping[str, Any], request: SampleRequest, end_ids: frozenset[int], *, adapter: str
) -> SampledAnswer:
    """Return the answer in a body of /v1/completions.

    Raises:
        RewardError: it has no tokens, is of another prompt or of other weights.
    """
    try:
        [choice] = body["choices"]
        found = choice["token_ids"], choice["prompt_token_ids"], body["model"]
        log_prob = tuple(float(one) for one in choice["logprobs"]["token_logprobs"])
        answer_ids = tuple(int(token) for token in found[0])
        prompt_ids = tuple(int(token) for token in found[1])
    except (KeyError, TypeError, ValueError) as error:
        raise RewardError(
            f"prompt_enhancement: the server's answer cannot be read ({type(error).__name__} "
            f"{error}): expected token ids and log-probabilities, got {str(dict(body))[:200]}. "
            "vLLM gives them from 0.10.2 on"
        ) from error
    if prompt_ids != request.prompt_ids or found[2] != adapter:
        raise RewardError(
            f"prompt_enhancement: the server answered as {found[2]!r} to {len(prompt_ids)} tokens: "
            f"expected {adapter!r} and the {len(request.prompt_ids)} that were asked"
        )
    if not answer_ids or len(log_prob) != len(answer_ids) or not all(map(math.isfinite, log_prob)):
        raise RewardError(
            f"prompt_enhancement: expected a finite log-probability of each token and at least one "
            f"token, got {len(answer_ids)} tokens and {log_prob[:4]}"
        )
    return SampledAnswer(
        prompt_ids=prompt_ids,
        answer_ids=answer_ids,
        log_prob=log_prob,
        is_finished=answer_ids[-1] in end_ids,
    )
