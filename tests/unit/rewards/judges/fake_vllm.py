"""A real HTTP server on loopback that answers like vLLM, or misbehaves as it is told."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from rlvid.rewards.base import Endpoint

IDS = {"Yes": 1, "No": 2, "yes": 3, " Yes": 4, "no": 5, "A": 6, "B": 7}
IDS |= {str(grade): 10 + grade for grade in range(1, 6)}
TOKENS_PER_IMAGE = 6


@dataclass
class FakeVllm:
    """One server; its fields may be changed while it runs."""

    masses: Callable[[str], dict[str, float]] = lambda text: {"Yes": 0.3, "No": 0.1}
    """Text of the request -> probability of tokens as its first answer token."""
    text: str = "Yes"
    """What it says when it is not asked for log-probabilities."""
    faults: deque[str] = field(default_factory=deque)
    """What the next chat requests meet, one each: 500, 400, garbage, list, hang, huge, none."""
    refuses_part: str = ""
    """A picture's URL; requests that show it meet `fault_of_part`."""
    fault_of_part: str = "none"
    delay_s: float = 0.0
    knows_ids: bool = True
    """Whether it knows logprob_token_ids."""
    refuses_ids: bool = False
    """Whether it answers a request with them by 400, as other servers do."""
    knows_tokenize: bool = True
    most_frames: int = 1000
    """Frames of a video that it looks at."""
    url: str = ""
    num_chats: int = 0
    num_at_once: int = 0
    most_at_once: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(url=self.url, model="judge", model_digest="digest", api_key="key")

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/tokenize")
        async def tokenize(request: Request) -> Response:
            if not self.knows_tokenize:
                return JSONResponse({"error": {"message": "Not Found"}}, status_code=404)
            body = await request.json()
            if "prompt" in body:
                word = body["prompt"]
                tokens = [IDS[word]] if word in IDS else [90, 91]
                return JSONResponse({"count": len(tokens), "tokens": tokens})
            return JSONResponse({"count": self._num_tokens(body["messages"]), "tokens": []})

        @app.get("/v1/models")
        async def models(request: Request) -> Response:
            if request.headers.get("authorization") != "Bearer key":
                return JSONResponse({"error": "Unauthorized"}, status_code=401)
            return JSONResponse({"data": [{"id": "judge", "root": "/weights", "created": 1}]})

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            self.num_chats += 1
            self.num_at_once += 1
            self.most_at_once = max(self.most_at_once, self.num_at_once)
            try:
                return await self._answer(request)
            finally:
                self.num_at_once -= 1

        return app

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization", ""))
        fault = self.faults.popleft() if self.faults else "none"
        if self.refuses_part and self.refuses_part in dumps(body):
            fault = self.fault_of_part
        if fault == "hang":
            await asyncio.sleep(30.0)
        await asyncio.sleep(self.delay_s)
        if fault == "500":
            return JSONResponse({"error": {"message": "engine is dead"}}, status_code=500)
        if fault == "400" or (self.refuses_ids and "logprob_token_ids" in body):
            text = "the prompt is too long" if fault == "400" else "unknown: logprob_token_ids"
            return JSONResponse({"error": {"message": text}}, status_code=400)
        if fault == "garbage":
            return PlainTextResponse("<html>it works</html>")
        if fault == "list":
            return JSONResponse([1, 2])
        if fault == "huge":
            return PlainTextResponse("x" * (9 * 2**20))
        return JSONResponse(self._completion(body))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"message": {"content": self.text}, "finish_reason": "stop"}
        if body.get("logprobs"):
            by_id = self.knows_ids and bool(body.get("return_tokens_as_token_ids"))
            masses = self.masses(text_of(body["messages"]))
            wanted = set(body.get("logprob_token_ids", ())) if self.knows_ids else set(IDS.values())
            named = [
                {"token": f"token_id:{IDS[word]}" if by_id else word, "logprob": math.log(mass)}
                for word, mass in masses.items()
                if IDS.get(word, -1) in wanted
            ]
            top = {"token": "token_id:99" if by_id else "\n", "logprob": -0.1}
            choice["logprobs"] = {"content": [{**top, "top_logprobs": [top, *named]}]}
        return {
            "choices": [choice],
            "usage": {"prompt_tokens": self._num_tokens(body["messages"])},
        }

    def _num_tokens(self, messages: list[dict[str, Any]]) -> int:
        count = 3 + len(text_of(messages).split())
        for part in parts_of(messages):
            if part["type"] == "image_url":
                count += TOKENS_PER_IMAGE
            elif part["type"] == "video_url":
                frames = min(self.most_frames, num_frames(part["video_url"]["url"]))
                count += 2 + 2 * 2 * -(-frames // 2)
        return count


def num_frames(url: str) -> int:
    """Frames of a video/jpeg or mp4 data URL."""
    head, _, data = url.partition(",")
    if "jpeg" in head:
        return len(data.split(","))
    import io

    import av

    with av.open(io.BytesIO(base64.b64decode(data))) as container:
        return sum(1 for _ in container.decode(video=0))


def parts_of(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        found += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return found


def text_of(messages: list[dict[str, Any]]) -> str:
    return " ".join(part["text"] for part in parts_of(messages) if part["type"] == "text")


@contextmanager
def running(*servers: FakeVllm) -> Iterator[tuple[FakeVllm, ...]]:
    """Serve each on a port of its own for the length of the block."""
    started = []
    for server in servers:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(server.app(), log_level="critical", timeout_graceful_shutdown=1)
        uvicorn_server = uvicorn.Server(config)
        thread = threading.Thread(
            target=uvicorn_server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        thread.start()
        started.append((uvicorn_server, thread))
    give_up = time.monotonic() + 10.0
    while not all(one.started for one, _ in started):
        assert time.monotonic() < give_up, "uvicorn did not start"
        time.sleep(0.01)
    try:
        yield servers
    finally:
        for one, _ in started:
            one.should_exit = True
        for _, thread in started:
            thread.join(timeout=10.0)


def dumps(body: dict[str, Any]) -> str:
    """A body as one line, to look for words in it."""
    return json.dumps(body)
