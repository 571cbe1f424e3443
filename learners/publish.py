"""From the learner's parameters to a publish, and to a policy on disk.

    snapshot()  a collective between two steps: bucket by bucket, its owner copies it to the host
    part()      the digests of this rank's buckets, hashed in a thread beside the next step

Rank r owns bucket i where i mod world size is r. Of a model sharded by ZeRO 3 one bucket at a time
is whole; the host buffers of a rank are its share of the model, and are used again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rlvid.config import LearnerConfig, ModelConfig
from rlvid.learners.ranks import Ranks
from rlvid.models.lora import save_lora
from rlvid.models.policy import Policy, open_policy
from rlvid.records import WeightsManifest, WeightsTensor
from rlvid.weights import (
    Bucket,
    PublishHead,
    PublishPart,
    TensorSpec,
    check_changed,
    digest_bytes,
    owner_of,
    plan_layout,
    trainable_parameters,
)


class WeightsSource(Protocol):
    """What can be published: the live parameters (ZeroEngine) or their average (Ema)."""

    @property
    def ranks(self) -> Ranks: ...

    @property
    def needs_all_ranks(self) -> bool:
        """Whether `whole` is a collective."""

    def specs(self) -> list[TensorSpec]:
        """Name, whole shape and dtype of everything trained, in sorted order."""

    def whole(self, names: Sequence[str]) -> AbstractContextManager[dict[str, Tensor]]:
        """Within the block these parameters are whole on this rank; not to be written to."""

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every (name, full tensor); a collective."""


@dataclass(slots=True)
class _Snapshot:
    head: PublishHead
    buffers: dict[int, Tensor]
    """Bucket to its bytes on the host, [num_bytes] uint8; of the buckets this rank owns."""
    digests: dict[int, Future[tuple[str, float]]] = field(default_factory=dict)
    """Bucket to its digest and the seconds of hashing it."""
    gather_s: float = 0.0
    copy_s: float = 0.0


class Publisher:
    """One rank's part in every publish."""

    def __init__(
        self, *, kind: str, base_digest: str, num_bound: int, canary_limit: float, bucket_mb: int
    ) -> None:
        self._kind = kind
        self._base_digest = base_digest
        self._num_bound = num_bound
        self._canary_limit = canary_limit
        self._bucket_bytes = bucket_mb * 2**20
        self._snapshots: dict[int, _Snapshot] = {}
        self._free: list[dict[int, Tensor]] = []
        self._lock = threading.Lock()
        """Buckets are fetched and released by another thread than the one that trains."""
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="weights-hash")

    def snapshot(self, source: WeightsSource, *, incarnation: int, version: int) -> None:
        """Copy what is trained as it is now; a collective of all ranks.

        Training may go on at once: hashing and fetching work on the copy. Buffers of a version that
        was not released are left to whoever still reads them.
        """
        layout = plan_layout(source.specs(), self._bucket_bytes)
        head = PublishHead(
            incarnation=incarnation,
            version=version,
            kind=self._kind,
            base_digest=self._base_digest,
            num_bound=self._num_bound,
            canary_tolerance=self._canary_limit,
            layout=layout,
        )
        ranks = source.ranks
        with self._lock:
            free = self._free.pop() if self._free else {}
        taken = _Snapshot(head=head, buffers={})
        for index, num_bytes in enumerate(layout.bucket_bytes):
            is_mine = owner_of(index, ranks.world_size) == ranks.rank
            if not is_mine and not source.needs_all_ranks:
                continue
            entries = layout.in_bucket(index)
            began = time.perf_counter()
            with source.whole([entry.name for entry in entries]) as tensors:
                taken.gather_s += time.perf_counter() - began
                if is_mine:
                    began = time.perf_counter()
                    device = next(iter(tensors.values())).device
                    target = _buffer(free.pop(index, None), num_bytes, device)
                    copied = _copy(entries, tensors, target)
                    taken.copy_s += time.perf_counter() - began
                    taken.buffers[index] = target
                    taken.digests[index] = self._hasher.submit(_digest, target, copied)
        with self._lock:
            self._snapshots[version] = taken

    def part(self, rank: int, version: int) -> PublishPart:
        """Return this rank's part of a publish; waits for its hashes."""
        taken = self._taken(version)
        hashed = {index: future.result() for index, future in taken.digests.items()}
        return PublishPart(
            head=taken.head,
            rank=rank,
            digests={index: digest for index, (digest, _) in hashed.items()},
            gather_s=taken.gather_s,
            copy_s=taken.copy_s,
            hash_s=sum(seconds for _, seconds in hashed.values()),
        )

    def buckets(self, version: int) -> dict[int, Bucket]:
        """Return this rank's buckets by index; valid until the version is released."""
        return {index: buffer.numpy() for index, buffer in self._taken(version).buffers.items()}

    def release(self, version: int) -> None:
        """Let the next snapshot use the buffers of this version again."""
        with self._lock:
            taken = self._snapshots.pop(version, None)
            # One set is enough for the next snapshot; more come of publishes that were not fetched.
            if taken is not None and not self._free:
                self._free.append(taken.buffers)

    def _taken(self, version: int) -> _Snapshot:
        with self._lock:
            if version not in self._snapshots:
                raise ValueError(
                    f"weights: no snapshot of version {version} is held: expected one of "
                    f"{sorted(self._snapshots)}; fetch before releasing"
                )
            return self._snapshots[version]


class Moved:
    """How far the optimiser has moved since the last publish of the live parameters.

    A learner whose steps never reach what is published trains for weeks without a trace in the
    rewards; one whose weights change without a step has another writer.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Know of no earlier publish; after loading a checkpoint."""
        self._before: WeightsManifest | None = None
        self._num_steps, self._size = 0, 0.0
        self._pending: tuple[int, float] | None = None

    def after_step(self, learning_rate: float, norm: float) -> None:
        self._num_steps += 1
        self._size += learning_rate if norm > 0.0 else 0.0

    def after_snapshot(self, *, is_live: bool) -> None:
        """Count from here on; an average follows the parameters in its own time, so it is left."""
        self._pending = None
        if is_live:
            self._pending = (self._num_steps, self._size)
            self._num_steps, self._size = 0, 0.0

    def check(self, manifest: WeightsManifest) -> None:
        """Compare the last snapshot with the one before.

        Raises:
            WeightsError: steps that changed nothing, or a change without a step.
        """
        if self._pending is None:
            return
        (num_steps, size), self._pending = self._pending, None
        if self._before is not None:
            check_changed(self._before, manifest, num_steps=num_steps, update_size=size)
        self._before = manifest


def export(
    source: WeightsSource,
    folder: Path,
    *,
    is_root: bool,
    policy: Policy,
    model_config: ModelConfig,
    learner_config: LearnerConfig,
) -> None:
    """Write the policy in diffusers' layout on the root rank; a collective.

    full: the whole pipeline, built anew from `policy` on the host with the trained values, since a
    wrapped or sharded transformer is not something `from_pretrained` could read. lora: the
    adapter's safetensors file, which belongs on the transformer of `policy`.
    """
    if not is_root:
        _take_part(source.full_parameters())
        return
    tensors = {name: tensor.cpu() for name, tensor in source.full_parameters()}
    if learner_config.mode == "lora":
        save_lora(folder, tensors, learner_config.lora)
        return
    model = open_policy(policy, model_config, "cpu")
    _fill(trainable_parameters(model.transformer, "full"), tensors)
    model.save(str(folder))


def _copy(
    entries: Sequence[WeightsTensor], tensors: dict[str, Tensor], target: Tensor
) -> torch.cuda.Event | None:
    """Copy a bucket's tensors to their places; return what to wait for, on an accelerator.

    The copies are in order with the kernels that come after, so the next step cannot overtake them.
    """
    for entry in entries:
        data = tensors[entry.name].detach().contiguous().reshape(-1).view(torch.uint8)
        target[entry.offset : entry.offset + data.numel()].copy_(data, non_blocking=True)
    device = tensors[entries[0].name].device
    if device.type != "cuda":
        return None
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(device))
    return copied


def _buffer(free: Tensor | None, num_bytes: int, device: torch.device) -> Tensor:
    """Return a free buffer where it fits, else a new one; a GPU copies to pinned memory only."""
    if free is not None and free.numel() == num_bytes:
        return free
    return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _digest(target: Tensor, copied: torch.cuda.Event | None) -> tuple[str, float]:
    if copied is not None:
        copied.synchronize()
    began = time.perf_counter()
    digest = digest_bytes(target.numpy())
    return digest, time.perf_counter() - began


def _take_part(tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Run a gather to its end for the sake of the root rank, keeping nothing."""
    for _ in tensors:
        pass


def _fill(live: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(tensors[name])
