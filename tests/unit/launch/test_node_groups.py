"""What launching makes of node groups: demands, what is said of groups that lack nodes, resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.launch.cluster_findings import name_groups
from rlvid.launch.demand import ClusterError, check_demand, demanded, short_groups
from rlvid.launch.node_report import NodeAnswer
from rlvid.launch.run_folder import RunFolderError, open_run_folder

JUDGE = {"use": "vlm_judge", "server": "judge", "num_cpus": 0.5, "node_group": "rewards"}


def recipe(**sections: Any) -> Recipe:
    """Two actors of 4 CPUs and a GPU, two ranks of 2 and a GPU, 3 CPUs of rewards, 8 and a GPU."""
    tree: dict[str, Any] = {
        "name": "grouped",
        "phases": ["grpo"],
        "cluster": {"address": "auto"},
        "rollout": {"num_actors": 2, "num_cpus": 4, "num_gpus": 1, "node_group": "rollout"},
        "learner": {"num_ranks": 2, "num_cpus": 2, "num_gpus": 1, "node_group": "learner"},
        "rewards": {
            "node_group": "rewards",
            "scorers": [{"use": "physics", "num_cpus": 1.5}, JUDGE],
            "servers": {"judge": {"num_cpus": 8, "num_gpus": 1, "node_group": "judges"}},
        },
        "grpo": {"evaluate_every": 0},
    }
    return Recipe.model_validate({**tree, **sections})


def demanded_of(found: Recipe, group: str | None) -> dict[str, float]:
    return demanded(found, counts=lambda node_group: node_group == group)


def node(**resources: float) -> Mapping[str, Any]:
    return {"Resources": {"memory": 1e9, "node:10.0.0.1": 1.0, **resources}}


def test_the_demand_of_each_group_is_that_of_its_roles() -> None:
    found = recipe()
    groups = ("rollout", "learner", "rewards", "judges")
    assert {group: demanded_of(found, group) for group in groups} == {
        "rollout": {"CPU": 8.0, "GPU": 2.0},
        "learner": {"CPU": 4.0, "GPU": 2.0},
        "rewards": {"CPU": 3.0, "GPU": 0.0},
        "judges": {"CPU": 8.0, "GPU": 1.0},
    }
    assert demanded_of(found, None) == {"CPU": 0.0, "GPU": 0.0}
    assert demanded(found) == {"CPU": 23.0, "GPU": 5.0}


def test_the_ranks_and_the_server_of_another_phase_count_in_their_groups() -> None:
    """The rewriter's server joins the pool, and has its group where it names none."""
    sampler = {"kind": "vllm", "server": {"num_cpus": 16}}
    enhancement = {"sampler": sampler, "learner": {"num_cpus": 32, "node_group": "rewriter"}}
    found = recipe(phases=["prompt_enhancement", "grpo"], prompt_enhancement=enhancement)
    assert demanded_of(found, "rewriter")["CPU"] == 32.0
    assert demanded_of(found, "rewards")["CPU"] == 19.0

    sft = {"learner": {"num_ranks": 3, "node_group": "rollout"}}
    assert demanded_of(recipe(phases=["sft", "grpo"], sft=sft), "rollout")["CPU"] == 8.0
    assert demanded_of(recipe(phases=["sft"], sft=sft), "learner") == {"CPU": 4.0, "GPU": 2.0}


def test_nothing_is_refused_for_want_of_nodes_that_an_autoscaler_brings() -> None:
    """What goes anywhere is refused as before."""
    check_demand(recipe(), {"CPU": 0.0})
    with pytest.raises(ClusterError, match="ask for 4 CPUs together, the cluster has 3"):
        check_demand(recipe(learner={"num_cpus": 4}), {"CPU": 3.0})


def test_a_group_that_lacks_nodes_is_named_with_what_it_lacks() -> None:
    nodes = [
        node(CPU=8, GPU=2, rollout=1000),
        node(CPU=64, GPU=1, learner=1000),
        node(CPU=2, rewards=1000),
        node(CPU=2, rewards=1000),
        node(CPU=999, GPU=99),
    ]
    learner, judges = sorted(short_groups(recipe(), nodes))
    assert learner.startswith("learner.node_group: roles ask for 4 CPUs and 2 GPUs on nodes with")
    assert "'learner', the 1 there are have 64 and 1: " in learner
    assert judges.startswith("rewards.servers.judge.node_group: roles ask for 8 CPUs and 1 GPUs on")
    assert "'judges', the 0 there are have 0 and 0: " in judges
    enough = [*nodes, node(GPU=1, learner=1000), node(CPU=8, GPU=1, judges=1000)]
    assert short_groups(recipe(), enough) == []


def test_a_recipe_without_groups_is_short_of_none() -> None:
    assert short_groups(Recipe(name="a"), [node(CPU=1)]) == []


def test_the_doctor_names_the_nodes_of_each_group() -> None:
    def answer(name: str, *groups: str) -> NodeAnswer:
        return NodeAnswer(name=name, store_mb=1000.0, num_gpus=0, groups=groups)

    said = name_groups([answer("head"), answer("a", "rollout"), answer("b", "learner", "rollout")])
    assert said == "learner on b; rollout on a, b"
    assert name_groups([answer("head")]).startswith("none: ")


def test_a_resume_may_have_other_groups(tmp_path: Path) -> None:
    """A job that is queued again may get a cluster with other names, or none at all."""
    folder = tmp_path / "run"
    servers = {"judge": {"num_cpus": 8, "num_gpus": 1}}
    judge = {**JUDGE, "node_group": None}
    pool = {"scorers": [{"use": "physics"}, judge], "servers": servers}
    open_run_folder(folder, recipe(rewards={**pool, "node_group": "rewards"}), resume=False)
    learner = {"num_ranks": 2, "num_cpus": 2, "num_gpus": 1}
    open_run_folder(folder, recipe(rewards=pool, learner=learner), resume=True)
    with pytest.raises(RunFolderError, match="holds a run of another recipe"):
        open_run_folder(folder, recipe(rewards=pool, learner={"mode": "full"}), resume=True)
