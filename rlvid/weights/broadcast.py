"""Publishes by broadcast over a process group of our own, from the learner's ranks to the actors.

    driver     Rendezvous.part(actor ids) --> BroadcastPart, to every member
    learner    send_buckets(part, rank, ...)     rank i < num_senders is rank i of the group
    actors     stage(manifest, [part])           take the ranks behind, as they come

The group stays while its members stay. A member that is missing, late or dead breaks it for all
within the deadline, and the next publish forms a new one; the actors hold what they held. It is not
torch.distributed's default group, which is the learner's own, so nothing here can hang a step.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from rlvid.process_groups import GroupBackend, join_store, open_backend, open_store
from rlvid.records import WeightsManifest
from rlvid.weights.buckets import Bucket
from rlvid.weights.errors import WeightsError
from rlvid.weights.parts import owner_of

logger = logging.getLogger(__name__)

_C10D: Any = dist
"""Groups are public in torch's documentation and untyped in its stubs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BroadcastPart:
    """Says where and with how many others to meet for a publish by broadcast."""

    backend: GroupBackend
    host: str
    port: int
    token: str
    """Unguessable name of the group: without it nobody can take part."""
    num_senders: int
    num_receivers: int
    deadline_s: float
    fallback: tuple[Any, ...] = ()
    """References to the buckets in an object store, for those whom the broadcast failed or who were
    not among its members; whoever runs the actor fetches them."""

    @property
    def world_size(self) -> int:
        return self.num_senders + self.num_receivers

    def open(self, manifest: WeightsManifest) -> BroadcastSource:
        """Join the group as a receiver, where this process has not yet.

        Raises:
            WeightsError: it did not form in time, or another publish is sent over it.
        """
        group = _member(self, rank=None)
        group.greet(manifest)
        return BroadcastSource(group)


class Rendezvous:
    """Where members meet; held by the driver."""

    def __init__(self, *, backend: GroupBackend, num_senders: int, host: str = "127.0.0.1") -> None:
        """Listen on one address only.

        Args:
            host: address of this machine that learner and actors can reach.
        """
        _check_backend(backend)
        self._backend, self._num_senders, self._host = backend, num_senders, host
        self._store, self._port = open_store(host)
        self._members: tuple[str, ...] | None = None
        self._token = ""

    def part(self, members: Sequence[str], *, deadline_s: float) -> BroadcastPart:
        """Return what senders and receivers need; other members than the last time meet anew.

        Args:
            members: names of the actors that will receive.
        """
        if tuple(sorted(members)) != self._members:
            self._members = tuple(sorted(members))
            self._token = secrets.token_hex(16)
        return BroadcastPart(
            backend=self._backend,
            host=self._host,
            port=self._port,
            token=self._token,
            num_senders=self._num_senders,
            num_receivers=len(members),
            deadline_s=deadline_s,
        )

    def renew(self) -> None:
        """Let the next publish form a new group; after any member's error."""
        self._members = None


class BroadcastGroup:
    """This process as a member; the connections stay between publishes."""

    def __init__(self, part: BroadcastPart, rank: int | None) -> None:
        """Meet the others.

        Args:
            rank: of a sender; None takes the next receiver's.

        Raises:
            WeightsError: not all came in time, or more than were asked for.
        """
        _check_backend(part.backend)
        self.part = part
        deadline = timedelta(seconds=part.deadline_s)
        try:
            mine = join_store(part.host, part.port, part.token, deadline)
            self.rank = mine.add("receivers", 1) - 1 + part.num_senders if rank is None else rank
            if self.rank >= part.world_size:
                raise WeightsError(
                    f"weights: broadcast: expected {part.num_receivers} receivers, this is one "
                    "more; the membership changed, wait for the next publish"
                )
            self._group = open_backend(
                part.backend, mine, self.rank, part.world_size, deadline=deadline, host=part.host
            )
        except RuntimeError as error:
            raise WeightsError(
                f"weights: broadcast: {part.world_size} members did not meet at {part.host}:"
                f"{part.port} within {part.deadline_s:g} s ({_first_line(error)}); the next "
                "publish forms a new group"
            ) from error

    def greet(self, manifest: WeightsManifest) -> None:
        """Agree on the publish that follows.

        Raises:
            WeightsError: another one follows.
        """
        mine = torch.frombuffer(bytearray.fromhex(manifest.digest), dtype=torch.uint8)
        sent = mine.clone().to(self.device)
        self.broadcast(sent, 0)
        if not torch.equal(sent.cpu(), mine):
            self.leave()
            raise WeightsError(
                f"weights version {manifest.version}: broadcast: expected the publish "
                f"{manifest.digest}, got {bytes(sent.cpu().numpy()).hex()}; fetch the newest one"
            )

    def broadcast(self, tensor: Tensor, root: int) -> None:
        """Send or fill `tensor`.

        Raises:
            WeightsError: a member is gone or late. The group is left: its other members may be
                anywhere in the sequence.
        """
        options = _C10D.BroadcastOptions()
        options.rootRank, options.rootTensor = root, 0
        try:
            deadline = timedelta(seconds=self.part.deadline_s)
            self._group.broadcast([tensor], options).wait(deadline)
        except RuntimeError as error:
            self.leave()
            raise WeightsError(
                f"weights: broadcast: a member is gone or did not answer within "
                f"{self.part.deadline_s:g} s ({_first_line(error)}); the next publish forms a new "
                "group"
            ) from error

    @property
    def device(self) -> torch.device:
        if self.part.backend == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def leave(self) -> None:
        """End the connections; a publish under way fails at the other members."""
        _forget(self)
        try:
            self._group.abort()
        except RuntimeError as error:  # it is broken, which is why it is left
            logger.debug("aborting a broadcast group: %s", error)


class BroadcastSource:
    """Receives buckets in the order in which they are sent."""

    def __init__(self, group: BroadcastGroup) -> None:
        self._group = group

    def view(self, index: int) -> None:
        return None

    def receive(self, index: int, out: Tensor) -> None:
        part = self._group.part
        target = (
            out
            if out.device == self._group.device
            else torch.empty_like(out, device=self._group.device)
        )
        self._group.broadcast(target, owner_of(index, part.num_senders))
        if target is not out:
            out.copy_(target)

    def close(self) -> None:
        """The group stays for the next publish."""


def send_buckets(
    part: BroadcastPart, rank: int, manifest: WeightsManifest, buckets: Mapping[int, Bucket]
) -> None:
    """Broadcast a publish; all senders call it, each with the buckets it packed.

    Raises:
        WeightsError: a member is missing, late or gone. The buckets are still there for another
            transport.
    """
    group = _member(part, rank=rank)
    group.greet(manifest)
    for entry in manifest.buckets:
        owner = owner_of(entry.index, part.num_senders)
        if owner == rank:
            tensor = torch.from_numpy(buckets[entry.index]).to(group.device)
        else:
            tensor = torch.empty(entry.num_bytes, dtype=torch.uint8, device=group.device)
        group.broadcast(tensor, owner)


_joined: BroadcastGroup | None = None
"""The one group of this process; an actor or a rank is in no other."""
_joining = threading.Lock()


def _member(part: BroadcastPart, *, rank: int | None) -> BroadcastGroup:
    """Return this process's group for the part; one of other members is left."""
    global _joined
    with _joining:
        joined = _joined
    if joined is not None and joined.part.token == part.token:
        return joined
    if joined is not None:
        joined.leave()
    group = BroadcastGroup(part, rank)
    with _joining:
        _joined = group
    return group


def _forget(group: BroadcastGroup) -> None:
    global _joined
    with _joining:
        if _joined is group:
            _joined = None


def _check_backend(backend: GroupBackend) -> None:
    if backend == "nccl" and not torch.cuda.is_available():
        raise WeightsError(
            "weights.transport: nccl needs a CUDA device in the learner and in every actor, this "
            "process has none; set weights.transport=object_store"
        )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
