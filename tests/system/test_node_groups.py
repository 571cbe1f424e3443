"""Roles on the nodes of their groups: a real Ray of five nodes, the quickstart's model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.cluster_utils import Cluster

from rlvid.actors.pool import RolloutLostError, RolloutPool
from rlvid.config import Recipe
from rlvid.config.loader import load_recipe
from rlvid.config.node_group import SHARE
from rlvid.config.rewards import ServerConfig
from rlvid.launch.cluster import open_cluster
from rlvid.launch.cluster_doctor import known_of
from rlvid.launch.cluster_nodes import alive_nodes
from rlvid.launch.phases.base import PhaseContext
from rlvid.launch.phases.sft import merge
from rlvid.launch.roles import open_sampling
from rlvid.learners.group import LearnerGroup, LearnerLostError
from rlvid.models.policy import Policy
from rlvid.observability.recorder import Recorder
from rlvid.rewards.base import RewardTimeoutError
from rlvid.rewards.pool import RewardPool
from rlvid.rewards.vllm.pool import ServerPool
from tests.unit.rewards.vllm.stand_in import write_stand_in

pytestmark = pytest.mark.slow

GROUPS = ("rollout", "learner", "rewards", "critics")
NOBODYS = "nobodys"
"""A group without nodes."""
POLICY = Policy(model_path="tiny")
SOON_S = 5.0


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster: a head with room for everything, to which Ray would give all, and the groups."""
    store = 80 * 2**20
    cluster = Cluster()
    cluster.add_node(num_cpus=8, object_store_memory=store, include_dashboard=False)
    for group in GROUPS:
        cluster.add_node(num_cpus=1, object_store_memory=store, resources={group: 1000})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def grouped(address: str, **groups: str) -> Recipe:
    """The quickstart with one process of each kind, where `groups` say: role to group."""
    own = groups.pop("scorer", "null")
    scorers = f"[{{use: physics}}, {{use: realism, node_group: {own}}}]"
    return load_recipe(
        "quickstart_cpu",
        [
            f"cluster.address={address}",
            "rollout.num_actors=1",
            f"sft.learner.deadline_s={SOON_S}",
            f"rewards.scorers={scorers}",
            *(f"{role}.node_group={group}" for role, group in groups.items()),
        ],
    )


def where_actors_live() -> dict[str, set[str]]:
    """Return class of the actors that live to the groups of their nodes; the head's is ""."""
    nodes = {
        node["NodeID"]: next((group for group in GROUPS if group in node["Resources"]), "")
        for node in ray.nodes()
    }
    found: dict[str, set[str]] = {}
    for actor in ray._private.state.actors().values():
        if actor["State"] == "ALIVE":
            place = nodes[actor["Address"]["NodeID"]]
            found.setdefault(actor["ActorClassName"].rpartition(".")[2], set()).add(place)
    return found


def test_every_role_of_the_quickstart_lives_on_its_nodes(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    groups = {"rollout": "rollout", "learner": "learner", "rewards": "rewards"}
    recipe = grouped(address, **groups, scorer="critics")
    with (
        caplog.at_level(logging.WARNING, logger="rlvid.launch.cluster"),
        open_cluster(recipe),
        open_sampling(recipe, POLICY, recipe.learner, tmp_path / "ledger.sqlite") as roles,
    ):
        learner = LearnerGroup.start_rl(recipe, POLICY)
        try:
            roles.wait_ready()
            learner.wait_ready(recipe.cluster.start_deadline_s)
            known = [known_of(node) for node in alive_nodes()]
            assert sorted(name for node in known for name in node.groups) == sorted(GROUPS)
            assert where_actors_live() == {
                "RolloutActor": {"rollout"},
                "LearnerActor": {"learner"},
                "RewardActor": {"rewards", "critics"},
            }
        finally:
            learner.shutdown()
    assert caplog.messages == []


@pytest.fixture
def waiting(address: str, caplog: pytest.LogCaptureFixture) -> Iterator[Recipe]:
    """A recipe all of whose roles wait for nodes that never come, and its cluster."""
    groups = dict.fromkeys(("rollout", "learner", "rewards", "sft.learner", "scorer"), NOBODYS)
    recipe = grouped(address, **groups)
    with open_cluster(recipe):
        [said] = [text for text in caplog.messages if NOBODYS in text]
        assert "rewards.node_group, learner.node_group, sft.learner.node_group: " in said
        assert "roles ask for 4 CPUs" in said
        yield recipe


def test_the_autoscaler_is_asked_for_each_roles_group_and_the_errors_name_it(
    waiting: Recipe, tmp_path: Path
) -> None:
    """None makes do with the head: Ray's list of what waits has all of them, the ranks as one."""
    one, rewards = {"CPU": 1.0, NOBODYS: SHARE}, RewardPool(waiting.rewards, None, waiting.cluster)
    rollouts = RolloutPool(
        POLICY, waiting.model, waiting.rollout, None, num_threads=1, start_deadline_s=SOON_S
    )
    servers = ServerPool(
        {"judge": stand_in(tmp_path)}, waiting.cluster, node_group=waiting.rewards.node_group
    )
    learner = LearnerGroup.start_rl(waiting, POLICY)
    with ExitStack() as stack:
        merging = stack.enter_context(ThreadPoolExecutor(1)).submit(merged, waiting, tmp_path)
        for pool in (rollouts, rewards, servers, learner):
            stack.callback(pool.shutdown)
        for started in (rollouts, rewards, servers):
            started.start()
        # An actor, the decoder, a scorer, a server, the task that merges; and the gang.
        wanted = ([one] * 5, [[one]])
        give_up = time.monotonic() + SOON_S
        while (found := demands(waiting)) != wanted and time.monotonic() < give_up:
            time.sleep(0.1)
        assert found == wanted
        for error, wait in (
            (RolloutLostError, rollouts.wait_ready),
            (RewardTimeoutError, lambda: rewards.health_check(0.5)),
            (RewardTimeoutError, servers.wait_ready),
            (LearnerLostError, lambda: learner.wait_ready(0.5)),
            (LearnerLostError, merging.result),
        ):
            with pytest.raises(error, match=rf"'{NOBODYS}'") as caught:
                wait()
            assert "node_group" in str(caught.value)


def test_ranks_that_load_slowly_on_their_nodes_are_not_said_to_lack_any(address: str) -> None:
    recipe = grouped(address, learner="learner")
    with open_cluster(recipe):
        gang = LearnerGroup.start_rl(recipe, POLICY)
        try:
            with pytest.raises(LearnerLostError) as caught:
                gang.wait_ready(0.5)
        finally:
            gang.shutdown()
    assert "did not finish loading the policy" in str(caught.value)
    assert "node_group" not in str(caught.value)


def demands(recipe: Recipe) -> tuple[list[dict[str, float]], list[list[dict[str, float]]]]:
    """Return what Ray tells its autoscaler to make room for: single ones, and gangs.

    Not who waits for the place that a gang will have; its resources have names of their own.
    """
    state = get_cluster_resource_state(GcsClient(address=str(recipe.cluster.address)))
    single = [
        dict(each.request.resources_bundle)
        for each in state.pending_resource_requests
        for _ in range(each.count)
        if "CPU" in each.request.resources_bundle
    ]
    return single, [
        [dict(request.resources_bundle) for request in gang.requests]
        for gang in state.pending_gang_resource_requests
    ]


def stand_in(folder: Path) -> ServerConfig:
    write_stand_in(folder)
    model, python = str(folder / "model"), str(folder / "python")
    return ServerConfig(model=model, python=python, start_deadline_s=0.5)


def merged(recipe: Recipe, folder: Path) -> Policy:
    with Recorder(folder, "sft") as recorder:
        context = PhaseContext(recipe=recipe, folder=folder, recorder=recorder, resume=False)
        return merge(context, POLICY, [], "policy")
