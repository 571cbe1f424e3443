"""Broadcasts over a group of our own, with gloo on this machine where a cluster has NCCL."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from rlvid.records import WeightsManifest
from rlvid.testing import tiny_model
from rlvid.weights import (
    Bucket,
    WeightsError,
    WeightsHolder,
    digest_tensors,
    owner_of,
    trainable_parameters,
    unpack,
)
from rlvid.weights.broadcast import BroadcastPart, Rendezvous, send_buckets
from tests.unit.actors.worker_weights import published

VERSIONS = (1, 2, 3)
LIMIT_S = 100.0


Bundles = dict[int, tuple[WeightsManifest, list[Bucket]]]


def _bundles() -> Bundles:
    """Return the same publishes in every process."""
    return {version: published(version) for version in VERSIONS}


def _send(part: BroadcastPart, rank: int, bundles: Bundles) -> list[str]:
    """Send the versions as one of the learner's ranks, with its own buckets only."""
    said = []
    for manifest, buckets in bundles.values():
        mine = {i: b for i, b in enumerate(buckets) if owner_of(i, part.num_senders) == rank}
        try:
            send_buckets(part, rank, manifest, mine)
            said.append("sent")
        except WeightsError as error:
            said.append(str(error))
            break
    return said


def _receive(part: BroadcastPart, transformer: nn.Module, bundles: Bundles) -> list[str]:
    """Stage the versions as an actor."""
    holder = WeightsHolder(transformer, mode="full", actor_id="a")
    said = []
    for manifest, _ in bundles.values():
        try:
            holder.stage(manifest, [part])
            holder.swap()
            holder.check_live()
            said.append(digest_tensors(trainable_parameters(transformer, "full")))
        except WeightsError as error:
            said.append(str(error))
            break
    return [*said, f"holds {holder.version}"]


def _member(part: BroadcastPart, role: str, path: Path) -> None:
    """Be one member in a process of its own; the deaf actor goes away after the first version."""
    bundles = _bundles()
    if role.startswith("sender"):
        answer = _send(part, int(role.removeprefix("sender")), bundles)
    else:
        transformer = tiny_model(0).transformer
        answer = _receive(part, transformer, {1: bundles[1]} if role == "deaf" else bundles)
    path.write_text(json.dumps(answer))
    os._exit(0)


def _run(part: BroadcastPart, roles: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """Run the members and return what each said.

    They are forked from a server that has imported what they need, and not from here: this process
    has threads, those of the meeting's store among them, and a fork may inherit a lock that one of
    them holds.
    """
    folder.mkdir()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlvid.weights.broadcast", "rlvid.models.tiny.build"])
    members = [context.Process(target=_member, args=(part, role, folder / role)) for role in roles]
    for member in members:
        member.start()
    try:
        for member in members:
            member.join(LIMIT_S)
        assert [member.exitcode for member in members] == [0] * len(members)
    finally:
        for member in members:
            member.kill()
    return {role: json.loads((folder / role).read_text()) for role in roles}


@pytest.mark.slow
def test_two_ranks_broadcast_to_an_actor_and_a_lost_actor_costs_one_publish(
    tmp_path: Path,
) -> None:
    """Each rank sends what it packed. Then an actor goes away: all others hear of it in time and
    keep what they hold, and those who are left meet anew for the next."""
    expected = [digest_tensors(unpack(*bundle)) for bundle in _bundles().values()]
    meeting = Rendezvous(backend="gloo", num_senders=2)
    part = meeting.part(["a", "b"], deadline_s=20.0)
    roles = ["sender0", "sender1", "actor", "deaf"]
    said = _run(part, roles, tmp_path / "first")
    assert said["deaf"] == [expected[0], "holds 1"]
    assert said["actor"][0] == expected[0]
    assert "the next publish forms a new group" in said["actor"][1]
    assert said["actor"][2] == "holds 1"
    assert "the next publish forms a new group" in said["sender0"][1]

    meeting.renew()
    part = meeting.part(["a"], deadline_s=60.0)
    said = _run(part, roles[:3], tmp_path / "second")
    assert said["actor"] == [*expected, "holds 3"]
    assert said["sender1"] == ["sent"] * 3


def test_members_that_do_not_come_are_an_error_in_time() -> None:
    """A dead actor must not hold the others up for torch's half an hour."""
    meeting = Rendezvous(backend="gloo", num_senders=1)
    holder = WeightsHolder(tiny_model(0).transformer, mode="full", actor_id="a")
    with pytest.raises(WeightsError, match="2 members did not meet"):
        holder.stage(published(1)[0], [meeting.part(["a"], deadline_s=0.5)])
    assert holder.newest == (-1, -1)


def test_one_receiver_too_many_is_turned_away() -> None:
    """An actor that was replaced may wake up and come as well."""
    meeting = Rendezvous(backend="gloo", num_senders=1)
    part = replace(meeting.part([], deadline_s=5.0), num_receivers=0)
    with pytest.raises(WeightsError, match="expected 0 receivers"):
        part.open(published(1)[0])


def test_other_members_meet_under_another_name() -> None:
    """Those of the old group, who may be anywhere in it, must not meddle with the new one."""
    meeting = Rendezvous(backend="gloo", num_senders=1)
    first = meeting.part(["a", "b"], deadline_s=5.0)
    assert meeting.part(["b", "a"], deadline_s=5.0).token == first.token
    assert meeting.part(["a"], deadline_s=5.0).token != first.token


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_nccl_without_a_gpu_says_so() -> None:
    """Else the first publish hangs or fails somewhere inside NCCL."""
    with pytest.raises(WeightsError, match="nccl needs a CUDA device"):
        Rendezvous(backend="nccl", num_senders=1)
