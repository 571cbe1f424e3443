"""Measures a publish through Ray's object store against a bare copy of the same bytes; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.weights_push --mb 10 100 1000 --actors 1 4 8

The real path on one machine: a learner's rank snapshots and hashes, returns one object per bucket,
every actor maps them, and `WeightsHolder` copies into its spare buffer, verifies and swaps. The
bare copy is `np.copyto` of the same mapped buckets into the same buffers in the same processes at
the same time. The two take turns; the figures are medians over the rounds, seconds of the actors
are means over them. In a run `live_digest_s` passes beside the sampling; here it is waited for.
`fresh_shm_s` is what `return_s` costs at least. Two buffers for each of 8 actors and 1000 MB are
more memory than a small machine has: where less is free than that needs, publishes are staged and
dropped, not swapped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import psutil
import ray
import torch
from torch import Tensor, nn

from rlvid.learners.publish import Publisher
from rlvid.records import WeightsManifest
from rlvid.weights import TensorSpec, WeightsHolder, base_digest, manifest_digest, merge_parts
from tests.bench.timing import environment

MB = 10**6
TENSOR_BYTES = 8 * MB
ROUNDS = 7
DEADLINE_S = 300.0


def shapes(size_mb: int) -> list[tuple[int, int]]:
    """Return float32 tensors of 8 MB and smaller ones, as a transformer has, `size_mb` in all."""
    whole, rest = divmod(size_mb * MB, TENSOR_BYTES)
    return [(2000, TENSOR_BYTES // 8000)] * whole + [(rest // 16, 4)] * (rest > 0)


def module(size_mb: int) -> nn.Module:
    """Return a module of that size, whose memory nobody has touched yet."""
    built = nn.Module()
    for index, shape in enumerate(shapes(size_mb)):
        built.register_parameter(f"p{index:05d}", nn.Parameter(torch.empty(shape)))
    return built


class OneRank:
    """Says that there is one rank."""

    rank, world_size = 0, 1


class Source:
    """A model on one rank that is not sharded."""

    needs_all_ranks = False

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self._parameters = parameters
        self.ranks: Any = OneRank()

    def specs(self) -> list[TensorSpec]:
        return [
            TensorSpec(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype)
            for name, tensor in self._parameters.items()
        ]

    @contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        yield {name: self._parameters[name] for name in names}

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._parameters.items()


class Learner:
    """One rank with random weights."""

    def __init__(self, size_mb: int, bucket_mb: int) -> None:
        torch.set_num_threads(1)
        model = module(size_mb)
        self._source = Source({name: p.detach() for name, p in model.named_parameters()})
        for tensor in self._source._parameters.values():
            tensor.normal_()
        self._publisher = Publisher(
            kind="full",
            base_digest=base_digest(model, "full"),
            num_bound=0,
            canary_limit=1e-5,
            bucket_mb=bucket_mb,
        )

    def publish(self) -> tuple[WeightsManifest, dict[str, float]]:
        """Snapshot twice, the second time into buffers that are there, and return its seconds."""
        for _ in range(2):
            self._publisher.release(0)
            began = time.perf_counter()
            self._publisher.snapshot(self._source, incarnation=0, version=0)
            snapshot_s = time.perf_counter() - began
            part = self._publisher.part(0, 0)
        seconds = {"snapshot_s": snapshot_s, "pack_s": part.copy_s, "hash_s": part.hash_s}
        seconds["fresh_shm_s"] = _write_fresh(self._publisher.buckets(0).values())
        return merge_parts([part]), seconds

    def bucket(self, index: int) -> Any:
        return self._publisher.buckets(0)[index]


def _write_fresh(buckets: Iterable[Any]) -> float:
    """Return the seconds of writing buckets to shared memory that nobody has touched yet.

    That is what returning them costs at least: the object store's pages come from the system too.
    """
    seconds = 0.0
    for bucket in buckets:
        block = shared_memory.SharedMemory(create=True, size=bucket.nbytes)
        target: Any = np.ndarray(bucket.shape, dtype=np.uint8, buffer=block.buf)
        began = time.perf_counter()
        np.copyto(target, bucket)
        seconds += time.perf_counter() - began
        del target
        block.close()
        block.unlink()
    return seconds


class Actor:
    """What a rollout actor does with weights."""

    def __init__(self, size_mb: int, swaps: bool) -> None:
        torch.set_num_threads(1)
        self._swaps = swaps
        self._holder: Any = WeightsHolder(
            module(size_mb), mode="full", actor_id="bench", verify_live_every=1
        )

    def push(self, manifest: WeightsManifest, references: list[Any]) -> dict[str, float]:
        began = time.perf_counter()
        buckets = ray.get(references, timeout=DEADLINE_S)
        get_s = time.perf_counter() - began
        receipt = self._holder.stage(manifest, buckets)
        stage_s = time.perf_counter() - began - get_s
        swap_s = 0.0
        if self._swaps:
            swap_s = self._holder.swap()
        else:
            self._holder._spare, self._holder._staged = self._holder._staged.buffer, None
        return {
            "get_s": get_s,
            "copy_s": receipt.copy_s,
            "verify_s": receipt.verify_s,
            "stage_s": stage_s,
            "swap_s": swap_s,
        }

    def check_live(self) -> float:
        """Hash the live parameters, waiting for it."""
        if self._swaps:
            self._holder.check_live()
            self._holder._start_check(self._holder._live)
        began = time.perf_counter()
        self._holder.check_live()
        return time.perf_counter() - began

    def bare_copy(self, references: list[Any]) -> float:
        """Copy the same bytes into the same spare buffers."""
        buckets = ray.get(references, timeout=DEADLINE_S)
        targets = [bucket.numpy() for bucket in self._holder._spare.buckets]
        began = time.perf_counter()
        for target, bucket in zip(targets, buckets, strict=True):
            np.copyto(target, bucket)
        return time.perf_counter() - began


def versioned(manifest: WeightsManifest, version: int) -> WeightsManifest:
    changed = replace(manifest, version=version)
    return replace(changed, digest=manifest_digest(changed))


def measure(size_mb: int, num_actors: int, bucket_mb: int) -> dict[str, Any]:
    """Run one case on a fresh set of actors."""
    needed = size_mb * MB * (2 * num_actors + 4)
    swaps = needed < 0.8 * psutil.virtual_memory().available
    learner = ray.remote(num_cpus=0)(Learner).remote(size_mb, bucket_mb)
    start = ray.remote(num_cpus=0)(Actor).remote
    actors = [start(size_mb, swaps) for _ in range(num_actors)]
    try:
        manifest, learned = ray.get(learner.publish.remote(), timeout=DEADLINE_S)
        began = time.perf_counter()
        references = [learner.bucket.remote(bucket.index) for bucket in manifest.buckets]
        ray.wait(references, num_returns=len(references), timeout=DEADLINE_S, fetch_local=False)
        learned["return_s"] = time.perf_counter() - began
        ray.kill(learner)  # what it returned is the driver's
        rounds = [_round(actors, manifest, references, version) for version in range(ROUNDS + 2)]
    finally:
        for actor in [learner, *actors]:
            with contextlib.suppress(ValueError):
                ray.kill(actor)
    return _figures(size_mb, num_actors, swaps, learned, rounds[2:])


def _round(
    actors: Sequence[Any], manifest: WeightsManifest, references: list[Any], version: int
) -> dict[str, float]:
    """Push once and copy once; the first two rounds only allocate both buffers."""
    began = time.perf_counter()
    calls = [actor.push.remote(versioned(manifest, version), references) for actor in actors]
    answers = ray.get(calls, timeout=DEADLINE_S)
    figures = {key: statistics.mean(answer[key] for answer in answers) for key in answers[0]}
    figures["wall_s"] = time.perf_counter() - began
    live = ray.get([actor.check_live.remote() for actor in actors], timeout=DEADLINE_S)
    figures["live_digest_s"] = statistics.mean(live)
    if version >= 2:
        began = time.perf_counter()
        bare = ray.get([actor.bare_copy.remote(references) for actor in actors], timeout=DEADLINE_S)
        figures["bare_wall_s"] = time.perf_counter() - began
        figures["bare_s"] = statistics.mean(bare)
    return figures


def _figures(
    size_mb: int,
    num_actors: int,
    swaps: bool,
    learned: dict[str, float],
    rounds: Sequence[dict[str, float]],
) -> dict[str, Any]:
    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    fastest = {key: min(r[key] for r in rounds) for key in ("wall_s", "bare_wall_s")}
    return {
        "mb": size_mb,
        "actors": num_actors,
        "swapped": swaps,
        "learner": learned,
        "seconds": medians,
        "fastest": fastest,
        "copy_over_bare": medians["copy_s"] / medians["bare_s"],
        "verify_over_copy": medians["verify_s"] / medians["copy_s"],
        "push_over_bare": medians["wall_s"] / medians["bare_wall_s"],
        "gb_per_s_to_all": size_mb * num_actors / 1000 / medians["wall_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--bucket-mb", type=int, default=64)
    arguments = parser.parse_args()
    cases = []
    ray.init(
        num_cpus=1,
        object_store_memory=max(2 * max(arguments.mb), 200) * MB,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        for size_mb in arguments.mb:
            for num_actors in arguments.actors:
                cases.append(measure(size_mb, num_actors, arguments.bucket_mb))
    finally:
        ray.shutdown()
    found = {"environment": environment(torch.device("cpu")), "rounds": ROUNDS, "cases": cases}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
