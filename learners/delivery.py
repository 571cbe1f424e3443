"""Brings a publish from the ranks to where the actors fetch it, by the recipe's transport.

    object_store    each rank returns its buckets; the driver owns the objects
    shared_folder   each rank writes its buckets; the driver adds the manifest and renames
    nccl            the ranks broadcast to the actors there are now; the object store serves all
                    whom that fails or who come later

What the actors are handed is a sequence of parts (`rlvid.weights.sources`). Ranks are handles of
`LearnerActor`; they go on with the next step while their buckets are fetched, written or sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlvid.config import WeightsConfig
from rlvid.records import WeightsManifest
from rlvid.weights import owner_of
from rlvid.weights.broadcast import Rendezvous
from rlvid.weights.folder import begin_publish, commit_publish


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPublish:
    """A rank's word that a publish was taken."""

    manifest: WeightsManifest
    metrics: Mapping[str, float]
    """What it cost, of the slowest rank; the same from all ranks."""
    is_group_broken: bool = False
    """The last broadcast failed at this rank, so those who are left must meet anew."""


class Delivery:
    """One transport and the ranks that use it."""

    def __init__(self, config: WeightsConfig, ranks: Sequence[Any], *, host: str) -> None:
        """Make ready; nothing is sent yet.

        Args:
            host: address of the driver that learner and actors can reach; for a broadcast.
        """
        self._config = config
        self._ranks = ranks
        self.metrics: dict[str, float] = {}
        """Of the last publish: bytes, and what gathering, copying and hashing took."""
        self.receivers: Callable[[], Sequence[str]] = tuple
        """Names of the actors there are now; whoever has the actors sets it."""
        self._rendezvous: Rendezvous | None = None
        if config.transport == "nccl":
            self._rendezvous = Rendezvous(backend="nccl", num_senders=len(ranks), host=host)

    def calls(self, version: int, incarnation: int, use_ema: bool) -> list[Any]:
        """Begin a publish; return one reference a rank, to a RankPublish."""
        answers = [rank.publish.remote(version, incarnation, use_ema) for rank in self._ranks]
        if self._config.folder is None:
            return answers
        folder = Path(self._config.folder)
        temporary = begin_publish(folder, incarnation=incarnation, version=version)
        # A reference given as an argument arrives resolved: written when the snapshot is there.
        return [
            rank.write_buckets.remote(answer, temporary)
            for rank, answer in zip(self._ranks, answers, strict=True)
        ]

    def finish(self, answers: Sequence[RankPublish]) -> tuple[WeightsManifest, list[Any]]:
        """Return the manifest and the parts for the actors, once the ranks have answered."""
        manifest = answers[0].manifest
        self.metrics = dict(answers[0].metrics)
        if self._config.folder is not None:
            parts = [commit_publish(Path(self._config.folder), manifest)]
        else:
            owners = [owner_of(bucket.index, len(self._ranks)) for bucket in manifest.buckets]
            buckets = [
                self._ranks[owner].bucket.remote(manifest.version, bucket.index)
                for owner, bucket in zip(owners, manifest.buckets, strict=True)
            ]
            parts = self._broadcast(answers, buckets) if self._rendezvous else buckets
        for rank in self._ranks:
            rank.release_buckets.remote(manifest.version)
        return manifest, parts

    def _broadcast(self, answers: Sequence[RankPublish], buckets: Sequence[Any]) -> list[Any]:
        assert self._rendezvous is not None, "only a broadcast has members who meet"
        if any(answer.is_group_broken for answer in answers):
            self._rendezvous.renew()
        part = self._rendezvous.part(self.receivers(), deadline_s=self._config.deadline_s)
        for number, rank in enumerate(self._ranks):
            rank.send_buckets.remote(answers[0].manifest, part, number)
        return [replace(part, fallback=tuple(buckets))]
