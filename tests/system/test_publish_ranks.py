"""A publish from two ranks: whatever ZeRO does with the parameters, the actors get the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvid.config import LoraConfig
from rlvid.learners.testing import run_ranks
from rlvid.models.lora import add_lora
from rlvid.seeds import derive_seed
from rlvid.testing import tiny_model
from rlvid.weights import base_digest, content_digest, pack, trainable_parameters
from tests.system.publish_ranks import BUCKET_BYTES, CASES

WORKER = Path(__file__).with_name("publish_ranks.py")

pytestmark = pytest.mark.slow

States = dict[tuple[int, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> States:
    """What both ranks saw, by stage and mode."""
    folder = tmp_path_factory.mktemp("publish")
    assert run_ranks(WORKER, 2, str(folder)) == [0, 0]
    return {
        (stage, mode): [
            json.loads((folder / f"{mode}-{stage}-rank{rank}.json").read_text())
            for rank in range(2)
        ]
        for stage, mode in CASES
    }


@pytest.mark.parametrize(("stage", "mode"), CASES)
def test_every_stage_publishes_what_one_process_would_pack(
    states: States, stage: int, mode: str
) -> None:
    """Gathered, cut and hashed by two ranks: byte for byte the parameters of the model."""
    transformer = tiny_model(0).transformer
    if mode == "lora":
        add_lora(transformer, LoraConfig(rank=2, alpha=4.0), seed=derive_seed(0, "lora"))
    expected, _ = pack(
        trainable_parameters(transformer, mode),
        version=3,
        parent_version=2,
        kind=mode,
        base_digest=base_digest(transformer, mode),
        bucket_bytes=BUCKET_BYTES,
        incarnation=1,
    )
    for state in states[stage, mode]:
        assert state["digest"] == expected.digest
        assert state["order"] == [1, 3]
        assert state["average_content"] == content_digest(expected)


@pytest.mark.parametrize(("stage", "mode"), CASES)
def test_each_bucket_is_packed_by_one_rank(states: States, stage: int, mode: str) -> None:
    """Copies and hashes run side by side, and no rank sends what another sends."""
    first, second = states[stage, mode]
    assert sorted(first["mine"] + second["mine"]) == list(range(first["num_buckets"]))
    assert abs(len(first["mine"]) - len(second["mine"])) <= 1


def test_of_a_sharded_model_one_bucket_at_a_time_is_whole(states: States) -> None:
    """A 14B model must not be gathered on one rank: what is alive beyond the shards is a bucket.

    The host buffers are this rank's share of the model; alignment adds up to 63 bytes a tensor.
    """
    for state in states[3, "full"]:
        assert 0 < state["peak_bytes"] <= state["largest_bucket"]
        assert state["model_bytes"] > 4 * state["peak_bytes"]
        assert state["held_bytes"] <= state["model_bytes"] / 2 + state["largest_bucket"]


def test_a_released_publish_lends_its_buffers_to_the_next(states: States) -> None:
    """Pinned host memory must not grow with the number of publishes."""
    assert all(state["reuses_buffers"] for case in CASES for state in states[case])
