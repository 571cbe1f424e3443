"""A scorer in another Python interpreter, with packages of its own: `python` of a scorer's entry.

    pool --Open, ScoreClips--> child process (child_main.py) --Opened, Scored, Failed--> pool

Nothing of the scorer is imported here. Its process is killed when it is late, and started again at
the next call. It gets a small environment: no tokens and nothing of Ray.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

import rlvid
from rlvid.config.rewards import ScorerConfig
from rlvid.records import Prompt
from rlvid.rewards import wire
from rlvid.rewards.base import ClipSpec, Endpoint, RewardError, Serving
from rlvid.rewards.isolation.child_process import ChildProcess
from rlvid.rewards.isolation.protocol import (
    Answer,
    Connect,
    Connected,
    Failed,
    Hello,
    Open,
    Opened,
    Scored,
    local_prompts,
)

HELLO_DEADLINE_S = 120.0
"""For importing torch; on a cold network disk that takes a minute."""
OPEN_DEADLINE_S = 600.0
"""For opening the scorer; loading large weights takes minutes. A pool has a limit of its own."""
MAX_ANSWER_BYTES = 1 << 26
"""An answer is a number a clip, or an error."""
PASSED_ON = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_HOME", "OMP_NUM_THREADS",
    "MKL_NUM_THREADS", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME", "SSL_CERT_FILE",
)  # fmt: skip
"""Variables the child gets; others, tokens and addresses of the cluster above all, it does not."""

A = TypeVar("A", Opened, Scored, Connected)


def open_isolated(config: ScorerConfig, where: str) -> IsolatedReward | IsolatedGroupReward:
    """Open the scorer of `config` in the interpreter `config.python`.

    Variables in `config.runtime_env["env_vars"]` reach the child as well.

    Raises:
        ValueError: no such interpreter, a package missing in it, or a bad scorer entry.
        RewardTimeoutError: it did not open in time.
        RewardError: its process died, or opening raised something else.
    """
    link = _Link(config, where)
    opened = link.opened
    kinds: dict[tuple[bool, bool], type[IsolatedReward] | type[IsolatedGroupReward]] = {
        (False, False): IsolatedReward,
        (False, True): IsolatedServedReward,
        (True, False): IsolatedGroupReward,
        (True, True): IsolatedServedGroupReward,
    }
    return kinds[opened.is_group, opened.uses_server](link)


class _Isolated:
    """What the four kinds share; which methods are there tells the pool what the scorer is."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self.clip_spec: ClipSpec = _record(ClipSpec, link.opened.clip_spec, link.where)
        # The child moves the clips to its device; here they stay where they are.
        declared: Serving = _record(Serving, link.opened.serving, link.where)
        self.serving = dataclasses.replace(declared, device="cpu")
        self.version = link.opened.version

    @property
    def versions(self) -> Mapping[str, str]:
        """Packages of the other interpreter, "python" among them."""
        return self._link.hello.versions

    def close(self) -> None:
        """End the child; it also ends with this object or this process."""
        self._link.close()


class IsolatedReward(_Isolated):
    """Scores each clip on its own, elsewhere."""

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        # The pool plans its batches before it knows what the other interpreter declares.
        size = self._link.batch_size
        return torch.cat(
            [
                self._link.score(videos[first : first + size], prompts[first : first + size])
                for first in range(0, len(videos), size)
            ]
        )


class IsolatedGroupReward(_Isolated):
    """Scores the clips of one prompt together, elsewhere."""

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        return self._link.score(videos, [prompt])


class IsolatedServedReward(IsolatedReward):
    """And asks a model server."""

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        self._link.connect(endpoints)


class IsolatedServedGroupReward(IsolatedGroupReward):
    """And asks a model server."""

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        self._link.connect(endpoints)


class _Link:
    """The child and what it takes to start it again."""

    def __init__(self, config: ScorerConfig, where: str) -> None:
        self.where = where
        self._config = config
        self._lock = threading.Lock()
        """Held by who asks the child."""
        self._connecting = threading.Lock()
        self._ids = itertools.count(1)
        self._endpoints: Sequence[Endpoint] | None = None
        self._holder: list[ChildProcess] = []
        # A finalizer that held `self` would keep it alive for ever; the list is enough to kill by.
        weakref.finalize(self, _kill_all, self._holder)
        self.hello, self.opened = self._start()

    @property
    def batch_size(self) -> int:
        """Most clips of one call: the recipe's word, else the scorer's."""
        return self._config.batch_size or int(self.opened.serving["batch_size"])

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        limit = self._config.deadline_s or float(self.opened.serving["deadline_s"])
        with self._lock:
            deadline = time.monotonic() + limit
            if not self._is_alive():
                self._restart()
            message = {
                "kind": "score",
                "id": next(self._ids),
                "videos": wire.array(videos),
                "prompts": local_prompts(prompts),
            }
            answer = self._ask(message, Scored, deadline)
        return answer.scores.tensor()

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        """Take new endpoints. A score that runs fails at once, for it may wait for a dead server.

        The child answers one question at a time, so it cannot be told; it is ended instead, and the
        next score starts another, which is told of these endpoints first.
        """
        with self._connecting:
            is_new = self._endpoints != tuple(endpoints)
            self._endpoints = tuple(endpoints)
            if not self._lock.acquire(blocking=False):
                for child in list(self._holder) if is_new else ():
                    child.end("its model servers changed while it scored")
                return
            try:
                if self._is_alive():
                    self._connect()
                else:
                    self._restart()
            finally:
                self._lock.release()

    def close(self) -> None:
        _kill_all(self._holder)

    def _is_alive(self) -> bool:
        return bool(self._holder) and self._holder[0].is_alive

    def _restart(self) -> None:
        _, opened = self._start()
        if opened.clip_spec != self.opened.clip_spec or opened.is_group != self.opened.is_group:
            raise RewardError(f"{self.where}: after a restart it declares other clips than before")
        if self._endpoints is not None:
            self._connect()

    def _connect(self) -> None:
        endpoints = [dataclasses.asdict(endpoint) for endpoint in self._endpoints or ()]
        message = Connect(id=next(self._ids), endpoints=endpoints).model_dump()
        self._ask(message, Connected, time.monotonic() + HELLO_DEADLINE_S)

    def _start(self) -> tuple[Hello, Opened]:
        self.close()
        child = _spawn(self._config, self.where)
        self._holder.append(child)
        hello = self._greet(child)
        request = Open(
            id=next(self._ids),
            use=self._config.use,
            config=dict(self._config.config),
            where=self.where,
            device=self._config.device,
            deadline_s=self._config.deadline_s,
            num_threads=torch.get_num_threads(),
        )
        deadline = time.monotonic() + OPEN_DEADLINE_S
        return hello, self._ask(request.model_dump(), Opened, deadline)

    def _greet(self, child: ChildProcess) -> Hello:
        """Read what the interpreter is; ValueError when it lacks a package."""
        deadline = time.monotonic() + HELLO_DEADLINE_S
        try:
            body = child.receive(deadline=deadline, max_bytes=MAX_ANSWER_BYTES)
            hello = Hello.model_validate(json.loads(body))
        except RewardError:
            self.close()
            raise
        except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
            self.close()
            raise RewardError(f"{self.where}.python: its first answer is no greeting") from error
        if hello.failed:
            self.close()
            reasons = "; ".join(f"{name} ({why})" for name, why in hello.failed.items())
            raise ValueError(
                f"{self.where}.python: {hello.executable} (Python {hello.versions['python']}) "
                f"cannot import {reasons}. Install it there."
            )
        return hello

    def _ask(self, message: Mapping[str, Any], kind: type[A], deadline: float) -> A:
        """Send a request and return its answer; a child that fails to give one is killed."""
        where = f"{self.where} in {self._config.python}"
        body = wire.pack(message)
        if len(body) > wire.MAX_MESSAGE_BYTES:
            raise RewardError(f"{where}: {len(body)} bytes of clips in one call; lower batch_size")
        try:
            raw = self._holder[0].request(body, deadline=deadline, max_bytes=MAX_ANSWER_BYTES)
            answer: Any = wire.unpack(raw, Answer, where=where, max_bytes=MAX_ANSWER_BYTES)
            if answer.id != message["id"]:
                raise RewardError(f"{where}: answered {answer.id}, was asked {message['id']}")
            if not isinstance(answer, (kind, Failed)):
                raise RewardError(f"{where}: expected {kind.__name__}, got {answer.kind}")
        except wire.WireError as error:
            self.close()
            raise RewardError(str(error)) from error
        except RewardError:
            self.close()
            raise
        if isinstance(answer, Failed):
            if answer.error_type == "ValueError" and kind is Opened:
                raise ValueError(f"{answer.error} (in {self._config.python})")
            raise RewardError(f"{where}: {answer.error_type}: {answer.error}")
        return answer


def child_environment(config: ScorerConfig) -> dict[str, str]:
    """Return the variables of the child: a few of ours, and those the recipe names."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {**passed, **config.runtime_env.get("env_vars", {}), "PYTHONUNBUFFERED": "1"}


def _spawn(config: ScorerConfig, where: str) -> ChildProcess:
    python = Path(config.python).expanduser()
    if not python.is_file() or not os.access(python, os.X_OK):
        raise ValueError(
            f"{where}.python: no interpreter at {config.python!r}: expected a path such as "
            "/envs/mine/bin/python. Make it with `python -m venv`."
        )
    script = Path(__file__).with_name("child_main.py")
    library = Path(rlvid.__file__).parents[1]
    command = [str(python), str(script), str(os.getpid()), str(library), os.getcwd()]
    try:
        return ChildProcess(command, child_environment(config), where=where)
    except OSError as error:
        raise ValueError(f"{where}.python: cannot start {config.python!r}: {error}") from error


def _kill_all(children: list[ChildProcess]) -> None:
    while children:
        children.pop().kill()


def _record(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Return a ClipSpec or Serving of what the child sent."""
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise RewardError(
            f"{where}: its process sent a bad {kind.__name__}: {error.errors()[0]['msg']}"
        ) from error
