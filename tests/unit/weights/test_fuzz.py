"""Ten thousand publishes that must not be taken: none is, and the worker samples as before."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from rlvid.weights import WeightsError, digest_tensors, trainable_parameters
from tests.unit.actors.worker_weights import (
    clips,
    open_worker,
    published,
    task,
    transformer_of,
)
from tests.unit.weights.fuzz import Fuzzer

NUM_BUNDLES = 5000
"""For each mode."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_no_damaged_publish_is_accepted(mode: str) -> None:
    """A bad bundle that loads looks like a bad policy for weeks.

    The bundles come while version 5 is live and, in the second half, version 6 is staged: neither
    may change, and at the end the undamaged version 7 must still be taken.
    """
    worker = open_worker(mode)
    worker.fetch_weights(*published(5, incarnation=1, mode=mode))
    expected = clips(worker.sample(task()))
    parameters = trainable_parameters(transformer_of(worker), mode)
    live = digest_tensors(parameters)
    good = published(7, incarnation=1, mode=mode)
    fuzzer = Fuzzer(
        good,
        old=published(4, incarnation=1, mode=mode),
        other=published(8, incarnation=1, mode=mode),
        seed=0,
    )
    refused: Counter[str] = Counter()
    for number in range(NUM_BUNDLES):
        if number == NUM_BUNDLES // 2:
            assert torch.equal(clips(worker.sample(task())), expected)
            worker.stage(*published(6, incarnation=1, mode=mode))
        kind, manifest, buckets = fuzzer.draw()
        try:
            worker.stage(manifest, buckets)
        except WeightsError:
            refused[kind] += 1
        else:
            pytest.fail(f"bundle {number} ({kind}) was accepted")
    assert set(refused) == set(fuzzer.kinds)
    assert digest_tensors(parameters) == live
    assert worker.held == (1, 6)
    assert worker.sample(task()).policy_version == 6
    worker.stage(*good)
    assert worker.sample(task()).weights_digest == good[0].digest
