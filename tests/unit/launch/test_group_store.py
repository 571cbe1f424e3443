"""A group on disk is the group that was written, or it is not there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
import torch

from rlvid.group_digest import digest_of_group
from rlvid.launch.group_store import (
    GroupStore,
    StoredGroupError,
    open_group_store,
)
from rlvid.launch.record_codec import CodecError, decode, encode
from rlvid.records import Prompt, Rollout, RolloutGroup, StepPlan
from rlvid.rewards.scoring import GroupScores
from tests.disk_faults.storage_scenarios import small_group


@pytest.fixture
def store(tmp_path: Path) -> GroupStore:
    return open_group_store(tmp_path / "run" / "groups")


def _bits(value: object) -> object:
    """Return something that is equal for equal bits only: NaN, -0.0, dtypes and types count."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().view(torch.uint8).tolist()
    if hasattr(type(value), "__dataclass_fields__"):
        return {field.name: _bits(getattr(value, field.name)) for field in fields(value)}  # type: ignore[arg-type]
    if isinstance(value, tuple):
        return [_bits(item) for item in value]
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return type(value), value.hex() if isinstance(value, float) else value


def test_every_field_comes_back_with_the_same_bits(store: GroupStore) -> None:
    """Views of one tensor, bfloat16, NaN, -0.0, 63-bit seeds, a missing score and its error."""
    group, scores = small_group("000012-03", 0.1)
    stored = store.write(group, scores, step=12)
    assert stored.path.stat().st_size == stored.num_bytes
    read, read_scores = store.read("000012-03")
    assert _bits(read) == _bits(group)
    assert _bits(read_scores) == _bits(scores)
    assert store.index() == {12: [stored]}


def test_group_without_a_trained_step_comes_back(store: GroupStore) -> None:
    """Algorithms on final videos sample by the ODE alone; tensors of no steps have no bytes."""
    group, scores = small_group("ode", 0.5)
    nothing = torch.zeros(0, 3, 1, 4, 4)
    rollouts = tuple(
        replace(
            rollout,
            trained_latents=nothing,
            trained_next_latents=nothing,
            behaviour_mean=nothing,
            behaviour_log_prob=torch.zeros(0),
        )
        for rollout in group.rollouts
    )
    plan = replace(group.plan, stochastic_steps=(), trained_steps=())
    group = replace(group, rollouts=rollouts, plan=plan)
    store.write(group, scores, step=0)
    read, _ = store.read("ode")
    assert _bits(read) == _bits(group)
    assert digest_of_group(read) == digest_of_group(group)


def test_prompt_keeps_its_media_and_one_of_before_there_were_any_is_read(
    store: GroupStore,
) -> None:
    group, scores = small_group("a", 1.0)
    with_media = replace(group.prompt, media={"first_frame": "/shared/beach.png"})
    store.write(replace(group, prompt=with_media), scores, step=0)
    assert store.read("a")[0].prompt == with_media
    tree, tensors = encode(group)
    del tree["prompt"]["media"]
    assert _bits(decode(RolloutGroup, tree, tensors)) == _bits(group)


def test_file_holds_no_pickle(store: GroupStore) -> None:
    """A run folder may come from somebody else; reading it must run nothing."""
    content = store.write(*small_group("a", 1.0), step=0).path.read_bytes()
    (length,) = (int.from_bytes(content[8:16], "little"),)
    assert set(msgpack.unpackb(content[16 : 16 + length])) == {"step", "group", "scores"}
    assert content[16 + length + 8 :].lstrip().startswith(b"{")  # safetensors: length, then JSON


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [_flip, lambda data: data[:-1], lambda data: b"", lambda data: b"X" + data[1:]],
    ids=["flip", "truncate", "empty", "other format"],
)
def test_damaged_group_is_refused_named_and_set_aside(
    store: GroupStore, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """It is sampled again; training on a flipped bit would go unseen."""
    whole = store.write(*small_group("000001-01", 1.0), step=1)
    path = store.write(*small_group("000001-00", 1.0), step=1).path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoredGroupError, match=r"000001-00\.group"):
        store.read("000001-00")
    with caplog.at_level(logging.WARNING):
        assert store.index() == {1: [whole]}
    assert path.name in caplog.text
    assert not path.exists()
    assert path.with_name(path.name + ".damaged").exists()


def test_no_flipped_bit_or_cut_passes_for_a_group(store: GroupStore) -> None:
    """500 seeded damages, anywhere in the file."""
    random = Random(0)
    path = store.write(*small_group("a", 1.0), step=0).path
    data = path.read_bytes()
    for number in range(500):
        place = random.randrange(len(data))
        byte = bytes([data[place] ^ (1 << random.randrange(8))])
        path.write_bytes(data[:place] + (b"" if number % 5 == 0 else byte + data[place + 1 :]))
        with pytest.raises(StoredGroupError):
            store.read("a")
    path.write_bytes(data)
    store.read("a")


def test_group_of_another_version_is_refused_by_its_fields(store: GroupStore) -> None:
    """A field that went away may have meant something; one with a default may be missing."""
    tree, tensors = encode(small_group("a", 1.0)[0])
    decoded = decode(RolloutGroup, {**tree, "prompt": {"prompt_id": "p", "text": "t"}}, tensors)
    assert decoded.prompt == Prompt(prompt_id="p", text="t")
    with pytest.raises(CodecError, match=r"unknown \['odd'\], missing \['actor_id'\]"):
        decode(RolloutGroup, {"odd": 1, **{k: tree[k] for k in tree if k != "actor_id"}}, tensors)
    with pytest.raises(CodecError, match=r"rollouts\.0\.latents: expected .*Tensor"):
        decode(RolloutGroup, tree, {})


def test_groups_of_past_steps_go(store: GroupStore) -> None:
    for step in range(4):
        store.write(*small_group(f"{step:06d}-00", 1.0), step=step)
    assert store.drop_before(2) == 2
    assert list(store.index()) == [2, 3]
    assert list(store.index(3)) == [3]


def test_groups_learned_from_longest_ago_go_when_all_take_too_much(store: GroupStore) -> None:
    """And those that nobody learned from stay, whatever they take."""
    stored = [store.write(*small_group(f"{s:06d}-00", 1.0), step=s) for s in range(5)]
    size = stored[0].num_bytes
    assert store.shrink(3.5 * size, before_step=3) == 3 * size
    assert list(store.index()) == [2, 3, 4]
    assert store.shrink(0.0, before_step=3) == 2 * size
    assert list(store.index()) == [3, 4]


def test_checkpoint_holds_groups_by_hard_link_and_gives_them_back(
    store: GroupStore, tmp_path: Path
) -> None:
    """Links take no room, and outlive the run's own copies."""
    checkpoint = tmp_path / "checkpoint"
    stored = [store.write(*small_group(f"{s:06d}-00", 1.0), step=s) for s in range(3)]
    assert store.link_into(checkpoint, 1) == 2
    linked = checkpoint / "groups" / stored[1].path.name
    assert os.path.samefile(linked, stored[1].path)
    store.drop_before(2)
    stored[2].path.write_bytes(b"damaged, by another inode")
    # Writing in place damaged the link too, as a bad disk would; the other one is whole.
    assert store.restore_from(checkpoint) == 1
    assert store.index() == {1: [stored[1]]}
    assert store.restore_from(checkpoint) == 0


def test_checkpoint_on_another_disk_holds_copies(
    store: GroupStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses links across disks; here it is made to refuse them at all."""

    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    stored = store.write(*small_group("a", 1.0), step=0)
    monkeypatch.setattr(os, "link", refuse)
    assert store.link_into(tmp_path / "checkpoint", 0) == 1
    copy = tmp_path / "checkpoint" / "groups" / stored.path.name
    assert copy.read_bytes() == stored.path.read_bytes()
    assert not os.path.samefile(copy, stored.path)


def test_digest_is_of_what_was_sampled_and_of_nothing_else() -> None:
    """Two runs agree whoever sampled and however long it took; one bit of a tensor tells."""
    group, _ = small_group("a", 1.0)
    digest = digest_of_group(group)
    told: dict[str, Any] = {"lease_id": "b", "actor_id": "c", "sample_s": 9.0, "policy_version": 8}
    assert digest_of_group(replace(group, **told, weights_digest="e", num_forwards=1)) == digest
    moved = replace(group.prompt, media={"first_frame": "/elsewhere/beach.png"})
    assert digest_of_group(replace(group, prompt=moved)) == digest

    def with_rollout(**changes: Any) -> RolloutGroup:
        first: Rollout = replace(group.rollouts[0], **changes)
        return replace(group, rollouts=(first, *group.rollouts[1:]))

    plan: StepPlan = replace(group.plan, trained_steps=(0,))
    others = [
        with_rollout(noise_seed=5),
        with_rollout(behaviour_log_prob=torch.tensor([0.0, float("nan")])),
        replace(group, plan=plan),
        replace(group, prompt=replace(group.prompt, enhanced_text="a red ball, falling")),
        replace(group, rollouts=group.rollouts[::-1]),
    ]
    assert len({digest, *map(digest_of_group, others)}) == 1 + len(others)


def test_group_id_that_is_no_file_name_is_refused(store: GroupStore) -> None:
    with pytest.raises(ValueError, match=r"group id '\.\./a' of step 0 makes no file name"):
        store.write(*small_group("../a", 1.0), step=0)


def test_scores_without_a_group_cannot_be_read_as_one() -> None:
    _, scores = small_group("a", 1.0)
    tree, _ = encode(scores)
    assert decode(GroupScores, tree, {}) == scores
    with pytest.raises(CodecError, match="RolloutGroup: expected the fields"):
        decode(RolloutGroup, tree, {})
