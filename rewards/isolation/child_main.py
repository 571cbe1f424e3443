"""The other end of `scorer.py`: one scorer in an interpreter of its own, asked over pipes.

Started as a script by the path of this file, so the environment needs no rlvid: it is lent the
pool's. It needs torch, numpy, msgpack and pydantic, and says in its first frame what is missing.
Until those are known to import, only the standard library is used.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import importlib
import importlib.machinery
import importlib.metadata
import json
import os
import signal
import struct
import sys
import traceback
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Sequence

NEEDED = ("numpy", "msgpack", "pydantic", "torch")
HEADER = struct.Struct(">4sQ")
MAGIC = b"rlv1"
PR_SET_PDEATHSIG = 1


class LentPackage:
    """Finds one package in one folder, and nothing else there.

    Putting the folder on sys.path instead would let everything beside rlvid shadow, or stand in
    for, what this environment has.
    """

    def __init__(self, name: str, folder: str) -> None:
        self._name = name
        self._folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.machinery.PathFinder.find_spec(name, [self._folder], target)


def main() -> None:
    """Serve until the pool closes the pipe. Arguments: its process id, rlvid's parent, its cwd."""
    parent, library, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    die_with(parent)
    inbox, outbox = take_pipes()
    faulthandler.enable()
    sys.path.pop(0)  # the folder of this script, whose base.py and pool.py are not meant
    sys.path.append(folder)  # last, so that nothing in it hides what the environment has
    sys.meta_path.insert(0, LentPackage("rlvid", library))
    failed = import_needed()
    hello = {
        "executable": sys.executable,
        "versions": {"python": sys.version.split()[0], **{n: version_of(n) for n in NEEDED}},
        "failed": failed,
    }
    write_frame(outbox, json.dumps(hello).encode())
    if not failed:
        serve(inbox, outbox)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the pool's process dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move the pipes away from standard input and output, so that a print cannot break a frame."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return inbox, outbox


def import_needed() -> dict[str, str]:
    """Import what the protocol needs; returns what failed, and why."""
    failed = {}
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken package raises whatever it likes
            failed[name] = f"{type(error).__name__}: {error}"
    return failed


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def read_frame(inbox: BinaryIO) -> bytes | None:
    """Return the next frame's body; None when the pool has closed the pipe."""
    header = inbox.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    magic, length = HEADER.unpack(header)
    if magic != MAGIC:
        raise ValueError("isolation: bytes on the pipe that are no frame")
    body = inbox.read(length)
    return body if len(body) == length else None


def write_frame(outbox: BinaryIO, body: bytes) -> None:
    outbox.write(HEADER.pack(MAGIC, len(body)))
    outbox.write(body)
    outbox.flush()


def serve(inbox: BinaryIO, outbox: BinaryIO) -> None:
    """Answer requests, one at a time."""
    from rlvid.rewards import wire
    from rlvid.rewards.isolation import protocol

    host = Host()
    while (body := read_frame(inbox)) is not None:
        request: Any = wire.unpack(
            body, protocol.Request, where="isolation", max_bytes=wire.MAX_MESSAGE_BYTES
        )
        del body  # as large as the clips
        try:
            answer = {"id": request.id, **getattr(host, request.kind)(request)}
        except Exception as error:  # whatever a plug-in raises is the pool's to judge
            traceback.print_exc()
            answer = {
                "id": request.id,
                "kind": "failed",
                "error_type": type(error).__name__[:256],
                "error": str(error)[: wire.MAX_TEXT],
            }
        write_frame(outbox, wire.pack(answer))


class Host:
    """Holds the scorer; has one method for each kind of request."""

    def __init__(self) -> None:
        self._scorer: Any = None
        self._device = "cpu"

    def open(self, request: Any) -> dict[str, Any]:
        import torch

        from rlvid.config.rewards import ScorerConfig
        from rlvid.rewards.base import GroupReward, UsesServer, serving_of
        from rlvid.rewards.registry import open_scorer

        torch.set_num_threads(request.num_threads)
        self._scorer = open_scorer(
            ScorerConfig(use=request.use, config=request.config, deadline_s=request.deadline_s),
            request.where,
        )
        if "cv2" in sys.modules:  # it has threads of its own, deaf to OMP_NUM_THREADS
            sys.modules["cv2"].setNumThreads(request.num_threads)
        serving = serving_of(self._scorer)
        self._device = request.device or serving.device
        return {
            "kind": "opened",
            "clip_spec": as_dict(self._scorer.clip_spec),
            "serving": as_dict(serving),
            "version": scorer_version(self._scorer),
            "is_group": isinstance(self._scorer, GroupReward),
            "uses_server": isinstance(self._scorer, UsesServer),
        }

    def score(self, request: Any) -> dict[str, Any]:
        import torch

        from rlvid.rewards import wire
        from rlvid.rewards.base import GroupReward

        videos = request.videos.tensor().to(self._device)
        prompts = [one.prompt() for one in request.prompts]
        with torch.no_grad():
            if isinstance(self._scorer, GroupReward):
                scores = self._scorer.score_group(videos, prompts[0])
            else:
                scores = self._scorer.score(videos, prompts)
        if not isinstance(scores, torch.Tensor):
            raise TypeError(f"returned a {type(scores).__name__}; expected a float32 tensor")
        return {"kind": "scored", "scores": wire.array(scores)}

    def connect(self, request: Any) -> dict[str, Any]:
        from rlvid.rewards.base import Endpoint

        self._scorer.connect([Endpoint(**one) for one in request.endpoints])
        return {"kind": "connected"}


def as_dict(record: Any) -> dict[str, Any]:
    """Return a dataclass as what msgpack can hold; tuples become lists."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def scorer_version(scorer: Any) -> str:
    """Name the scorer's own version, its code and what it runs on, for the score cache."""
    import hashlib
    import inspect

    from rlvid.rewards.base import version_of as own_version

    digest = hashlib.blake2b(digest_size=8)
    try:
        source = inspect.getsourcefile(type(scorer))
    except TypeError:  # built in, or made by hand: nothing to read
        source = None
    if source is not None and os.path.isfile(source):
        with open(source, "rb") as file:
            digest.update(file.read())
    torch_version = version_of("torch")
    return f"{own_version(scorer)}|{digest.hexdigest()}|torch {torch_version}"


if __name__ == "__main__":
    main()
