"""What a rank holds of its publishes, and what it may not publish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvid.learners.publish import Moved, Publisher
from rlvid.records import WeightsManifest
from rlvid.weights import TensorSpec, WeightsError, merge_parts, pack


class _OneRank:
    rank, world_size = 0, 1


class _Source:
    """Parameters that lie here."""

    needs_all_ranks = False

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors
        self.ranks: Any = _OneRank()

    def specs(self) -> list[TensorSpec]:
        return [
            TensorSpec(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype)
            for name, tensor in self.tensors.items()
        ]

    @contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        yield {name: self.tensors[name] for name in names}

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.tensors.items()


def _publisher() -> Publisher:
    return Publisher(kind="full", base_digest="b", num_bound=0, canary_limit=1e-5, bucket_mb=1)


def test_training_goes_on_after_the_snapshot_without_changing_it() -> None:
    """Hashes and fetches come later than the next optimiser step."""
    source = _Source(a=torch.ones(1000), b=torch.ones(7).to(torch.bfloat16))
    publisher = _publisher()
    publisher.snapshot(source, incarnation=0, version=0)
    expected, bytes_before = pack(
        source.tensors, version=0, parent_version=-1, kind="full", base_digest="b"
    )
    source.tensors["a"].add_(1.0)
    assert merge_parts([publisher.part(0, 0)]) == expected
    assert np.array_equal(publisher.buckets(0)[0], bytes_before[0])


def test_next_snapshot_leaves_buckets_that_are_not_fetched_yet() -> None:
    """The driver may be behind; an overwritten bucket would fail at every actor."""
    source = _Source(a=torch.zeros(10))
    publisher = _publisher()
    publisher.snapshot(source, incarnation=0, version=0)
    held = publisher.buckets(0)[0]
    before = held.copy()
    source.tensors["a"].add_(1.0)
    publisher.snapshot(source, incarnation=0, version=1)
    publisher.release(1)
    source.tensors["a"].add_(1.0)
    publisher.snapshot(source, incarnation=0, version=2)
    assert np.array_equal(held, before)
    assert np.array_equal(publisher.buckets(0)[0], before)


def test_released_buckets_are_gone() -> None:
    """Their memory may be the next version's already."""
    publisher = _publisher()
    publisher.snapshot(_Source(a=torch.zeros(10)), incarnation=0, version=3)
    publisher.release(3)
    with pytest.raises(ValueError, match="no snapshot of version 3 is held"):
        publisher.buckets(3)


def _manifest(version: int, value: float, dtype: torch.dtype = torch.float32) -> WeightsManifest:
    tensors = {"a": torch.full((4,), value).to(dtype)}
    return pack(tensors, version=version, parent_version=0, kind="full", base_digest="")[0]


def _moved(manifest: WeightsManifest) -> Moved:
    """Return one that has seen a publish."""
    moved = Moved()
    moved.after_snapshot(is_live=True)
    moved.check(manifest)
    return moved


def test_steps_that_change_nothing_published_are_an_error() -> None:
    """The optimiser then trains something that no actor ever gets."""
    moved = _moved(_manifest(0, 1.0))
    moved.after_step(1e-4, norm=0.5)
    moved.after_snapshot(is_live=True)
    with pytest.raises(WeightsError, match="1 optimiser steps .* changed no byte since version 0"):
        moved.check(_manifest(1, 1.0))


@pytest.mark.parametrize(
    ("learning_rate", "norm", "dtype"),
    [
        (0.0, 0.5, torch.float32),
        (1e-4, 0.0, torch.float32),
        (1e-9, 0.5, torch.float32),
        (1e-4, 0.5, torch.bfloat16),
    ],
)
def test_steps_too_small_to_show_may_change_nothing(
    learning_rate: float, norm: float, dtype: torch.dtype
) -> None:
    """Warm-up from 0, no gradient, or an update below the resolution of the published dtype."""
    moved = _moved(_manifest(0, 1.0, dtype))
    moved.after_step(learning_rate, norm)
    moved.after_snapshot(is_live=True)
    moved.check(_manifest(1, 1.0, dtype))


def test_small_steps_add_up() -> None:
    """A thousand updates of 1e-9 do show."""
    moved = _moved(_manifest(0, 1.0))
    for _ in range(1000):
        moved.after_step(1e-9, norm=0.5)
    moved.after_snapshot(is_live=True)
    with pytest.raises(WeightsError, match="changed no byte"):
        moved.check(_manifest(1, 1.0))


def test_change_without_a_step_is_an_error() -> None:
    """Something else writes into the learner's parameters."""
    moved = _moved(_manifest(0, 1.0))
    moved.after_snapshot(is_live=True)
    with pytest.raises(WeightsError, match="differ from version 0 without an optimiser step"):
        moved.check(_manifest(1, 2.0))


def test_same_weights_may_be_published_again_without_a_step() -> None:
    """A restored learner does so."""
    moved = _moved(_manifest(0, 1.0))
    moved.after_snapshot(is_live=True)
    moved.check(_manifest(1, 1.0))


def test_after_loading_a_checkpoint_nothing_is_compared() -> None:
    """What is loaded is not what the last publish held."""
    moved = _moved(_manifest(0, 1.0))
    moved.forget()
    moved.after_snapshot(is_live=True)
    moved.check(_manifest(1, 2.0))


def test_average_is_not_compared() -> None:
    """It follows the parameters in its own time."""
    moved = _moved(_manifest(0, 1.0))
    moved.after_step(1e-4, norm=0.5)
    moved.after_snapshot(is_live=False)
    moved.check(_manifest(1, 1.0))
