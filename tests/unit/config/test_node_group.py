"""Node groups of a recipe: which names are taken, where one may be set, who inherits whose."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.config.node_group import RESERVED, SHARE, is_name, named_groups, said_of, share_of
from rlvid.rewards.dispatch.placement import plan_pool

JOINED = {"cluster": {"address": "auto"}}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "grouped", **sections})


def hosts(**rewards: Any) -> dict[tuple[str, ...], str | None]:
    """Services of each kind of process to its group; the decoder is ""."""
    planned = plan_pool(recipe(**JOINED, rewards=rewards).rewards)[1]
    return {host.services: host.node_group for host in planned}


@pytest.mark.parametrize("name", ["", "my group", "1st", "node:10.0.0.1", "a" * 64, "gpu_group_1"])
def test_what_is_no_name_of_a_resource_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 63 letters, digits") as caught:
        recipe(**JOINED, rollout={"node_group": name})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["CPU", "GPU", "memory", "object_store_memory", "TPU"])
def test_what_ray_counts_itself_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"a resource of your own, got '{name}'"):
        recipe(**JOINED, learner={"node_group": name})


def test_every_device_that_ray_counts_is_known() -> None:
    """A node with such a device has the resource without anybody's doing."""
    from ray._private.accelerators import get_all_accelerator_resource_names

    assert get_all_accelerator_resource_names() <= RESERVED


@pytest.mark.parametrize(
    ("path", "sections"),
    [
        ("rollout.node_group", {"rollout": {"node_group": "a"}}),
        ("learner.node_group", {"learner": {"node_group": "a"}}),
        ("sft.learner.node_group", {"sft": {"learner": {"node_group": "a"}}}),
        ("rewards.node_group", {"rewards": {"node_group": "a"}}),
        (
            "rewards.scorers.1.node_group",
            {"rewards": {"scorers": [{"use": "physics"}, {"use": "realism", "node_group": "a"}]}},
        ),
        (
            "rewards.servers.j.node_group",
            {
                "rewards": {
                    "scorers": [{"use": "vlm_judge", "server": "j"}],
                    "servers": {"j": {"node_group": "a"}},
                }
            },
        ),
        (
            "evaluate.judges.0.node_group",
            {"evaluate": {"judges": [{"use": "attribute_judge", "node_group": "a"}]}},
        ),
        (
            "prompt_enhancement.sampler.server.node_group",
            {"prompt_enhancement": {"sampler": {"kind": "vllm", "server": {"node_group": "a"}}}},
        ),
    ],
)
def test_a_group_needs_a_cluster_that_is_joined(path: str, sections: dict[str, Any]) -> None:
    """The Ray of the command itself has no such node, and nothing would ever start."""
    with pytest.raises(ValueError, match=rf"{path}: .* 'a' without cluster\.address"):
        recipe(**sections)
    assert list(named_groups(recipe(**JOINED, **sections))) == [(path, "a")]


def test_servers_of_others_take_no_group() -> None:
    asks = {"use": "vlm_judge", "server": "j"}
    servers = {"j": {"urls": ["http://127.0.0.1:1"], "node_group": "a"}}
    with pytest.raises(ValueError, match="node_group: is of a server that the pool starts"):
        recipe(**JOINED, rewards={"scorers": [asks], "servers": servers})


def test_scorers_go_where_the_pool_goes_but_for_those_with_a_group_of_their_own() -> None:
    scorers = [{"use": "physics"}, {"use": "realism", "node_group": "gpus"}]
    assert hosts(scorers=scorers, node_group="rewards") == {
        ("",): "rewards", ("physics",): "rewards", ("realism",): "gpus",
    }  # fmt: skip
    assert hosts(scorers=scorers)[("physics",)] is None
    assert hosts(scorers=scorers, node_group="rewards", colocate=True) == {
        ("", "physics"): "rewards", ("realism",): "gpus",
    }  # fmt: skip


def test_a_process_asks_for_so_little_that_a_group_is_never_full() -> None:
    """Ray counts resources in ten-thousandths, and drops what is less."""
    assert share_of(None) == {}
    assert share_of("rollout") == {"rollout": SHARE}
    assert round(SHARE * 10_000) >= 1
    assert 1000 / SHARE >= 1_000_000


def test_messages_name_the_group_and_its_setting() -> None:
    assert said_of(None, "rollout.node_group") == ""
    said = said_of("rollout", "rollout.node_group")
    assert "(rollout.node_group)" in said
    assert """--resources='{"rollout": 1000}'""" in said


def test_the_groups_of_a_node_are_its_resources_but_for_rays_own() -> None:
    has = ("CPU", "GPU", "memory", "node:10.0.0.1", "accelerator_type:H100", "rollout", "A100")
    assert [name for name in has if is_name(name)] == ["rollout", "A100"]
