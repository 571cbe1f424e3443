"""The reward pool as an HTTP service, so that other trainers can use it; the one file with FastAPI.

POST /v1/score takes and gives msgpack (`protocol.py`). Everything but /healthz and the
OpenAPI page asks for the bearer token. The event loop only moves bytes: parsing and hashing run in
threads, and a thread of `ScoringJobs` waits for the pool.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prometheus_client
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect

import rlvid
from rlvid.rewards import wire
from rlvid.rewards.base import RewardError
from rlvid.rewards.service.jobs import HandOverError, QueueFullError, ReusedIdError, ScoringJobs
from rlvid.rewards.service.meters import HasMetrics, Meters
from rlvid.rewards.service.protocol import (
    MEDIA_TYPE,
    ScoreAnswer,
    ScorerDescription,
    ScoreRequest,
    ServiceInfo,
)

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
HANG_UP = {"Connection": "close"}
"""Else the server would read the rest of a refused body, to keep the connection."""
REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Bounds of the service."""

    max_body_bytes: int = 256 * 2**20
    """Of one request, enforced while it is read."""
    max_inflight_bytes: int = 1024 * 2**20
    """Of all requests that are being read and parsed."""
    max_clips: int = 4096
    """That wait for scores; more are answered 429."""
    deadline_s: float = 300.0
    """Seconds one request may take; its scores are kept for a repeated id."""
    kept_answers: int = 4096
    media_folder: Path | None = None
    """Where the media of prompts lie while their clips are scored, seen by every machine of the
    pool; None is this machine's folder for temporary files."""


def make_app(
    jobs: ScoringJobs,
    scorers: list[ScorerDescription],
    *,
    token: str,
    settings: ServiceSettings,
    pool: HasMetrics | None = None,
) -> FastAPI:
    """Return the application; it starts and stops `jobs` with itself."""
    guarded = [Depends(bearer_check(token))]
    meters = Meters(jobs, pool)
    handler = _Handler(jobs, meters, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs.start()
        yield
        await asyncio.to_thread(jobs.stop)

    app = FastAPI(title="rlvid reward service", version=rlvid.__version__, lifespan=lifespan)

    @app.get("/healthz", summary="200 while the pool works")
    async def healthz() -> JSONResponse:
        if jobs.error is not None:
            return JSONResponse({"status": "broken", "reason": str(jobs.error)}, 503)
        return JSONResponse({"status": "ok", "waiting_clips": jobs.num_clips})

    @app.get("/metrics", dependencies=guarded, summary="Prometheus text")
    def metrics() -> Response:
        text = prometheus_client.generate_latest(meters.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @app.get("/v1/scorers", dependencies=guarded, summary="What can be asked for")
    async def list_scorers() -> ServiceInfo:
        return ServiceInfo(
            scorers=scorers,
            max_body_bytes=settings.max_body_bytes,
            deadline_s=settings.deadline_s,
        )

    @app.post(
        "/v1/score",
        dependencies=guarded,
        summary="Score groups of clips",
        openapi_extra={"requestBody": {"required": True, "content": _content("ScoreRequest")}},
        responses={200: {"content": _content("ScoreAnswer"), "description": "msgpack"}},
        response_class=Response,
    )
    async def score(request: Request) -> Response:
        response = await handler.handle(request)
        meters.requests.labels(str(response.status_code)).inc()
        return response

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def bearer_check(token: str) -> Callable[[Request], Awaitable[None]]:
    """Return a dependency that answers 401 to a request without the bearer token.

    Raises:
        ValueError: the token is too short to keep anybody out.
    """
    if len(token) < 16:
        raise ValueError("serve-rewards: the token is too short: expected 16 characters or more")
    expected = f"Bearer {token}".encode()

    async def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, expected):
            raise HTTPException(401, "wrong or no token", {"WWW-Authenticate": "Bearer"})

    return check


class _Handler:
    """Answers POST /v1/score."""

    def __init__(self, jobs: ScoringJobs, meters: Meters, settings: ServiceSettings) -> None:
        self._jobs = jobs
        self._meters = meters
        self._settings = settings
        self._inflight_bytes = 0

    async def handle(self, request: Request) -> Response:
        began = time.monotonic()
        held = [0]
        try:
            async with asyncio.timeout(self._settings.deadline_s):
                body = await self._read(request, held)
                future = await asyncio.to_thread(self._submit, body)
                del body
                self._release(held)
                # Shielded: who waits with the same id keeps waiting when this request is late.
                answer = await asyncio.shield(asyncio.wrap_future(future))
                packed = await asyncio.to_thread(lambda: wire.pack(answer.model_dump()))
        except HTTPException as error:
            return _refusal(error.status_code, error.detail, error.headers)
        except ClientDisconnect:
            return _refusal(499, "the client went away")
        except TimeoutError:
            return _refusal(504, f"not scored within {self._settings.deadline_s:g} s; ask again")
        except (wire.WireError, ReusedIdError, ValueError) as error:
            return _refusal(409 if isinstance(error, ReusedIdError) else 422, str(error))
        except QueueFullError as error:
            return _refusal(429, str(error), {"Retry-After": str(RETRY_AFTER_S)})
        except HandOverError as error:
            return _refusal(503, str(error), {"Retry-After": str(RETRY_AFTER_S)})
        except RewardError as error:
            return _refusal(503 if self._jobs.error is not None else 422, str(error))
        finally:
            self._release(held)
        self._meters.seconds.observe(time.monotonic() - began)
        self._meters.count(answer)
        return Response(packed, media_type=MEDIA_TYPE)

    async def _read(self, request: Request, held: list[int]) -> bytes:
        """Read the body, never more of it than is allowed; `held` counts what it holds."""
        if request.headers.get("content-type", "").split(";")[0].strip() != MEDIA_TYPE:
            raise HTTPException(415, f"expected a body of {MEDIA_TYPE}")
        most = self._settings.max_body_bytes
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > most:
            raise HTTPException(
                413, f"a body of {announced} bytes; at most {most} are taken", HANG_UP
            )
        chunks = []
        async for chunk in request.stream():
            held[0] += len(chunk)
            self._inflight_bytes += len(chunk)
            if held[0] > most:
                raise HTTPException(413, f"a body of more than {most} bytes", HANG_UP)
            if self._inflight_bytes > self._settings.max_inflight_bytes:
                headers = {"Retry-After": str(RETRY_AFTER_S)}
                raise HTTPException(429, "too many bytes are being read", headers)
            chunks.append(chunk)
        return b"".join(chunks)

    def _submit(self, body: bytes) -> Future[ScoreAnswer]:
        request: ScoreRequest = wire.unpack(
            body, ScoreRequest, where="request", max_bytes=self._settings.max_body_bytes
        )
        return self._jobs.submit(request)

    def _release(self, held: list[int]) -> None:
        self._inflight_bytes -= held[0]
        held[0] = 0


def _refusal(code: int, reason: str, headers: Any = None) -> JSONResponse:
    logger.info("refused status=%d reason=%r", code, reason)
    return JSONResponse({"error": reason}, code, headers=headers)


def _content(model: str) -> dict[str, Any]:
    return {MEDIA_TYPE: {"schema": {"$ref": REF.format(model=model)}}}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the page's document with the schemas of the msgpack bodies as well."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, ours = models_json_schema(
            [(ScoreRequest, "validation"), (ScoreAnswer, "validation")], ref_template=REF
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(ours["$defs"])
        app.openapi_schema = document
    return app.openapi_schema
