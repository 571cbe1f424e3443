"""Run as one rank by the tests of publishing from several ranks: FOLDER. Not a test itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.learners import zero_engine
from rlvid.learners.publish import WeightsSource
from rlvid.learners.ranks import Ranks
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_recipe, tiny_settings
from rlvid.testing import tiny_model
from rlvid.weights import TensorSpec, content_digest

BUCKET_BYTES = 16 * 2**10
CASES = [(0, "full"), (2, "full"), (3, "full"), (2, "lora"), (3, "lora")]


class Counting:
    """A source that counts the bytes of full parameters which this rank holds."""

    def __init__(self, source: WeightsSource, parameters: dict[str, torch.nn.Parameter]) -> None:
        self._source = source
        self._parameters = parameters
        self.peak_bytes = 0

    @property
    def ranks(self) -> Ranks:
        return self._source.ranks

    @property
    def needs_all_ranks(self) -> bool:
        return self._source.needs_all_ranks

    def specs(self) -> list[TensorSpec]:
        return self._source.specs()

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return self._source.full_parameters()

    @contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        with self._source.whole(names) as tensors:
            self.peak_bytes = max(self.peak_bytes, self.alive_bytes())
            yield tensors

    def alive_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self._parameters.values())


def publish(stage: int, mode: str, folder: Path) -> None:
    recipe = tiny_recipe(
        learner={"zero_stage": stage, "mode": mode, "num_ranks": 2, "ema": {"every": 1}}
    )
    torch.manual_seed(0)
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    trainee = learner.trainee
    publisher: Any = trainee.publisher
    publisher._bucket_bytes = BUCKET_BYTES
    engine: Any = trainee.engine
    source = Counting(engine, engine._parameters)
    between = source.alive_bytes()
    publisher.snapshot(source, incarnation=1, version=3)
    manifest = trainee.settle_publish(3)
    buckets = publisher.buckets(3)
    addresses = [bucket.ctypes.data for bucket in buckets.values()]
    publisher.release(3)
    average, _ = trainee.publish(4, use_ema=True)
    publisher.release(4)
    _, kept = trainee.publish(5)
    again = [bucket.ctypes.data for bucket in kept.values()]
    largest = max(bucket.num_bytes for bucket in manifest.buckets)
    state = {
        "order": manifest.order,
        "digest": manifest.digest,
        "content": content_digest(manifest),
        "average_content": content_digest(average),
        "num_buckets": len(manifest.buckets),
        "mine": sorted(buckets),
        "held_bytes": sum(bucket.nbytes for bucket in buckets.values()),
        "peak_bytes": source.peak_bytes - between,
        "largest_bucket": largest,
        "model_bytes": manifest.num_bytes,
        "reuses_buffers": addresses == again,
    }
    path = folder / f"{mode}-{stage}-rank{trainee.rank}.json"
    path.write_text(json.dumps(state))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Tiny parameters would all stay whole at stage 3; sharding them is what is tested.
    zero_engine.PERSISTENT_ELEMENTS = 0
    for case_stage, case_mode in CASES:
        publish(case_stage, case_mode, Path(sys.argv[1]))
    torch.distributed.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
