"""`rlvid gsb serve`: the page of a sheet and its vote store over HTTP, on this machine's loopback.

The address that is printed carries a token; opening it leaves the token in a cookie, and everything
else asks for the cookie or for a bearer token. The server never reads the key of the sheet.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

import rlvid
from rlvid.evaluation.gsb_votes import MODEL_PREFIX, Vote, VoteStore, parse_vote
from rlvid.launch.gsb import SHEET, VOTES, SheetSettings, load_settings
from rlvid.launch.http_server import run_until_told

HOST = "127.0.0.1"
TOKEN, COOKIE = "server.token", "rlvid_gsb"
MIN_TOKEN_CHARACTERS = 16
MAX_BODY_BYTES = 4096
"""Of one vote; a vote has about 150."""
GRACE_S = 5
POLICY = (
    "default-src 'none'; media-src blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page may load nothing from elsewhere, whatever a prompt says."""
PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Door:
    """Lets in who has the token of the sheet: in a cookie, as browsers, or as a bearer token."""

    def __init__(self, token: str) -> None:
        """Raise ValueError where the token is too short to keep anybody out."""
        if len(token) < MIN_TOKEN_CHARACTERS:
            raise ValueError(
                f"gsb serve: a token of {len(token)} characters: expected {MIN_TOKEN_CHARACTERS} "
                f"or more. Remove {TOKEN} from the folder to have one made."
            )
        self._token = token

    def is_open_to(self, request: Request) -> bool:
        """Return whether the request has the token."""
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return self._is_token(bearer or request.cookies.get(COOKIE, ""))

    async def check(self, request: Request) -> None:
        """Refuse a request without it, by HTTPException 401."""
        if not self.is_open_to(request):
            raise HTTPException(401, "wrong or no token", {"WWW-Authenticate": "Bearer"})

    def sign_in(self, given: str) -> Response:
        """Leave it in a cookie that no script can read and no other site's POST brings along.

        Lax and not strict: a strict one would be missing right after a click on a link in a mail.
        """
        if not self._is_token(given):
            return PlainTextResponse("Wrong token: open the address that was printed last.\n", 401)
        answer = RedirectResponse("/", 303, headers={"Referrer-Policy": "no-referrer"})
        answer.set_cookie(COOKIE, given, max_age=30 * 86400, httponly=True, samesite="lax")
        return answer

    def _is_token(self, given: str) -> bool:
        """Compare in a time that does not depend on where the two differ."""
        return hmac.compare_digest(given.encode(), self._token.encode())


def make_app(folder: Path, *, token: str) -> FastAPI:
    """Return the application; it opens the vote store when it starts and closes it when it ends.

    Raises:
        ValueError: no sheet in the folder, or a token too short to keep anybody out.
    """
    door = Door(token)
    settings = load_settings(folder)
    store = VoteStore(folder / VOTES)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store.open()
        yield
        store.close()

    app = FastAPI(
        title="rlvid gsb", version=rlvid.__version__, lifespan=lifespan, docs_url=None,
        redoc_url=None, openapi_url=None,
    )  # fmt: skip
    guarded = [Depends(door.check)]

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.get("/")
    async def page(request: Request) -> Response:
        if "token" in request.query_params:
            return door.sign_in(request.query_params["token"])
        if not door.is_open_to(request):
            text = "Open the address that `rlvid gsb serve` printed, with its token.\n"
            return PlainTextResponse(text, 401)
        return FileResponse(folder / SHEET, media_type="text/html", headers=PAGE_HEADERS)

    @app.get("/v1/sheet", dependencies=guarded)
    async def sheet() -> JSONResponse:
        tree = {"sheet_id": settings.sheet_id, "num_pairs": len(settings.pair_ids)}
        return JSONResponse(tree, headers={"Cache-Control": "no-store"})

    @app.post("/v1/votes", dependencies=guarded)
    async def votes(request: Request) -> JSONResponse:
        vote = _vote_of(await _body(request), settings)
        try:
            await run_in_threadpool(store.append, vote)
        except OSError as error:
            raise HTTPException(507, f"the vote could not be kept: {error}") from error
        return JSONResponse({"kept": True}, 201)

    return app


def serve(folder: Path, *, port: int, say: Callable[[str], None]) -> None:
    """Serve the sheet on loopback until SIGTERM or SIGINT.

    Raises:
        ValueError: no sheet in the folder, or its votes are being written by another server.
    """
    token = token_of(folder)
    app = make_app(folder, token=token)
    probe = VoteStore(folder / VOTES)
    probe.open()  # says here and in one line what would end the server with a traceback
    probe.close()

    def announce(address: str) -> None:
        say(f"votes: {folder / VOTES}")
        say(f"open {address}/?token={token}")

    run_until_told(app, host=HOST, port=port, grace_s=GRACE_S, announce=announce, say=say)


def token_of(folder: Path) -> str:
    """Return the token of the folder, made at the first call; the file has mode 600.

    It stays when the server is started again, so that the addresses handed out stay valid.
    """
    load_settings(folder)
    path = folder / TOKEN
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="utf-8").strip()
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(token + "\n")
    return token


async def _body(request: Request) -> bytes:
    """Read the body, never more of it than a vote may have."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected a body of application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(
                413, f"a body of more than {MAX_BODY_BYTES} bytes", {"Connection": "close"}
            )
    return body


def _vote_of(body: bytes, settings: SheetSettings) -> Vote:
    """Return the vote of a body; HTTPException 422 says what is wrong with it."""
    try:
        values = json.loads(body)
        vote = parse_vote(values, settings.pair_ids, where="vote")
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"not a vote: {error}") from error
    if vote.voter.startswith(MODEL_PREFIX):
        raise HTTPException(
            422, f"vote: voter: names that begin with {MODEL_PREFIX!r} are for models. Use another."
        )
    return vote
