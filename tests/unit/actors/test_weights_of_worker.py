"""New weights beside a running group: staged, swapped in between two videos, or refused."""

from __future__ import annotations

import contextlib
import random
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlvid.records import WeightsReceipt
from rlvid.weights import WeightsError, WeightsHolder, trainable_parameters
from tests.unit.actors.worker_weights import (
    clips,
    open_worker,
    published,
    task,
    transformer_of,
)


def _damaged(version: int) -> Any:
    manifest, buckets = published(version)
    buckets[-1] = buckets[-1].copy()
    buckets[-1][5] ^= 1
    return manifest, buckets


def test_a_running_group_keeps_its_policy_and_the_next_one_has_the_new() -> None:
    """A video sampled by two policies has no likelihood under either, and none is thrown away."""
    worker = open_worker()
    worker.fetch_weights(*published(1))
    before = worker.sample(task())
    inside: Any = worker
    velocity = inside._model.velocity
    receipts: list[WeightsReceipt] = []

    def staging(*arguments: Any) -> torch.Tensor:
        if not receipts:
            thread = threading.Thread(target=lambda: receipts.append(worker.stage(*published(2))))
            thread.start()
            thread.join(timeout=30.0)
            assert receipts, "staging waited for the group"
        answer: torch.Tensor = velocity(*arguments)
        return answer

    inside._model.velocity = staging
    during, after = worker.sample(task()), worker.sample(task())
    assert (during.policy_version, after.policy_version) == (1, 2)
    assert torch.equal(clips(during), clips(before))
    assert not torch.equal(clips(after), clips(before))
    assert after.weights_digest == published(2)[0].digest
    assert receipts[0].digest == after.weights_digest


def test_which_of_the_two_buffers_holds_the_weights_shows_in_no_bit() -> None:
    """Kernels that peel unaligned ends add in another order; then a group would not replay."""
    worker = open_worker()
    groups = []
    for version in (1, 2, 3):
        worker.fetch_weights(*published(version, seed=7))
        groups.append(clips(worker.sample(task())))
    assert torch.equal(groups[0], groups[1])
    assert torch.equal(groups[0], groups[2])


def test_two_buffers_are_all_that_publishes_ever_take() -> None:
    """An actor lives for thousands of versions."""
    worker = open_worker()
    pointers = set()
    for version in range(1, 8):
        worker.fetch_weights(*published(version))
        first = next(iter(trainable_parameters(transformer_of(worker), "full").values()))
        pointers.add(first.data_ptr())
    assert len(pointers) == 2


def test_older_publish_is_refused() -> None:
    """A late publish must not turn the policy back."""
    worker = open_worker()
    worker.fetch_weights(*published(4))
    with pytest.raises(WeightsError, match="expected a version above 4 of incarnation 0"):
        worker.stage(*published(3))
    assert worker.sample(task()).policy_version == 4


def test_restarted_learner_publishes_lower_versions_that_are_newer() -> None:
    """It trains again from the checkpoint; what it publishes then counts, not what it had lost."""
    worker = open_worker()
    worker.fetch_weights(*published(7, incarnation=1))
    worker.fetch_weights(*published(5, incarnation=2))
    assert worker.held == (2, 5)
    with pytest.raises(WeightsError, match="incarnation 1"):
        worker.stage(*published(8, incarnation=1))


def test_same_publish_again_is_acknowledged_and_nothing_done() -> None:
    """The driver may not know that its first call arrived."""
    worker = open_worker()
    first = worker.stage(*published(1))
    again = worker.stage(*published(1))
    assert again == replace(first, transport_s=0.0, copy_s=0.0, verify_s=0.0)


def test_other_weights_under_a_held_version_are_refused() -> None:
    """Then a version would name two policies."""
    worker = open_worker()
    worker.fetch_weights(*published(1))
    with pytest.raises(WeightsError, match="is held under that version"):
        worker.stage(*published(1, seed=99))


def test_newest_of_two_staged_publishes_wins() -> None:
    """An actor that was busy for two versions jumps to the newest."""
    worker = open_worker()
    worker.stage(*published(1))
    worker.stage(*published(2))
    assert worker.sample(task()).policy_version == 2


def test_damaged_publish_leaves_the_held_and_the_staged_one() -> None:
    """What was acknowledged before must still be true after a bad one."""
    worker, other = open_worker(), open_worker()
    worker.fetch_weights(*published(1))
    with pytest.raises(WeightsError, match="damaged, fetch it again"):
        worker.stage(*_damaged(2))
    assert worker.sample(task()).policy_version == 1
    worker.stage(*published(2))
    with pytest.raises(WeightsError, match="damaged, fetch it again"):
        worker.stage(*_damaged(3))
    assert worker.held == (0, 2)
    other.fetch_weights(*published(2))
    assert torch.equal(clips(worker.sample(task())), clips(other.sample(task())))


def test_damaged_publish_is_taken_when_it_is_fetched_again() -> None:
    """A byte that flipped on the way did not flip at the learner."""
    worker = open_worker()
    with pytest.raises(WeightsError):
        worker.stage(*_damaged(1))
    worker.stage(*published(1))
    assert worker.sample(task()).policy_version == 1


def test_parameters_that_change_while_they_sample_are_found() -> None:
    """Digests on arrival say nothing of what happens later; the group must not be trained on."""
    worker = open_worker()
    worker.stage(*published(1))
    inside: Any = worker
    swap = inside._weights._exchange

    def swap_and_spoil(staged: Any) -> None:
        swap(staged)
        first = next(iter(trainable_parameters(transformer_of(worker), "full").values()))
        first.data.view(-1)[0] += 1.0

    inside._weights._exchange = swap_and_spoil
    with pytest.raises(WeightsError, match="live parameters of bucket 0"):
        worker.sample(task())
    inside._weights._exchange = swap
    with pytest.raises(WeightsError, match="fetch the newest publish again"):
        worker.sample(task())
    worker.stage(*published(1))
    assert worker.sample(task()).policy_version == 1


def test_live_digest_is_taken_at_every_kth_version_only() -> None:
    """`weights.verify_live_every` 2 leaves odd versions alone."""
    worker = open_worker(verify_live_every=2)
    inside: Any = worker
    checked = []
    for version in (1, 2, 3):
        worker.stage(*published(version))
        inside._weights.swap()
        checked.append(inside._weights._check is not None)
        inside._weights.check_live()
    assert checked == [False, True, False]


def test_adapter_that_is_switched_off_is_refused() -> None:
    """Its matrices take the weights, and no video shows them."""
    worker = open_worker("lora")
    for module in transformer_of(worker).modules():
        if hasattr(module, "_disable_adapters"):
            module._disable_adapters = True
    with pytest.raises(WeightsError, match=r"adapter: expected it to bind \d+ .* binds 0 here"):
        worker.stage(*published(1, mode="lora"))


def test_adapter_switched_off_after_staging_stops_the_sampling() -> None:
    """The count is taken at every swap as well."""
    worker = open_worker("lora")
    worker.stage(*published(1, mode="lora"))
    for module in transformer_of(worker).modules():
        if hasattr(module, "_disable_adapters"):
            module._disable_adapters = True
    for _ in range(2):
        with pytest.raises(WeightsError):
            worker.sample(task())


def test_adapter_weights_reach_the_video() -> None:
    """Zero matrices B leave the base's video; the published ones must not."""
    worker = open_worker("lora")
    base = clips(worker.sample(task()))
    worker.stage(*published(1, mode="lora"))
    assert not torch.equal(clips(worker.sample(task())), base)


def test_model_that_fits_once_is_swapped_by_copying() -> None:
    """The spare buffer is then on the host, and the parameters stay where they are."""
    worker = open_worker()
    transformer = transformer_of(worker)
    holder = WeightsHolder(transformer, mode="full", actor_id="a", spare_device=torch.device("cpu"))
    parameters = trainable_parameters(transformer, "full")
    before = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    for version in (1, 2):
        holder.stage(*published(version))
        holder.swap()
        holder.check_live()
        assert holder.version == version
    assert before == {name: parameter.data_ptr() for name, parameter in parameters.items()}


def test_canary_speaks_for_staged_weights() -> None:
    """It is asked after a receipt, perhaps before the next group."""
    worker, other = open_worker(), open_worker()
    latents, sigma = torch.zeros(1, 4, 2, 2, 2), torch.tensor([0.7])
    worker.stage(*published(3))
    other.fetch_weights(*published(3))
    answers = [w.canary(latents, sigma, "a red ball falls") for w in (worker, other)]
    assert torch.equal(*answers)
    assert not torch.equal(answers[0], open_worker().canary(latents, sigma, "a red ball falls"))


def test_racing_publishes_never_tear_a_group() -> None:
    """Threads stage versions in random orders, damaged ones among them, while groups are sampled:
    every group is, bit for bit, the one of the version that it names."""
    bundles = {version: published(version) for version in range(1, 7)}
    damaged = {version: _damaged(version) for version in bundles}
    reference = open_worker()
    expected = {}
    for version, bundle in bundles.items():
        reference.fetch_weights(*bundle)
        expected[version] = clips(reference.sample(task()))
    worker = open_worker()
    worker.fetch_weights(*bundles[1])

    def stage(seed: int) -> None:
        for version in random.Random(seed).choices(sorted(bundles), k=12):
            manifest, buckets = bundles[version]
            with contextlib.suppress(WeightsError):  # older than what another thread has staged
                worker.stage(manifest, buckets)
            with contextlib.suppress(WeightsError):
                worker.stage(*damaged[version])

    threads = [threading.Thread(target=stage, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        group = worker.sample(task())
        assert torch.equal(clips(group), expected[group.policy_version])
    for thread in threads:
        thread.join()
    assert worker.held == (0, 6)
    assert torch.equal(clips(worker.sample(task())), expected[6])
