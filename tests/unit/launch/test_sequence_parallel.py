"""`rollout.sequence_parallel` in the driver: what it refuses before a run, and what it plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvid.actors.pool_settings import GANG_FRAC, gang_settings
from rlvid.config.loader import load_recipe
from rlvid.launch.demand import demanded
from rlvid.launch.estimate.cluster_split import best_split
from rlvid.launch.estimate.gpu_cluster import assume_cluster, read_cluster
from rlvid.launch.estimate.recipe_split import overrides, split_problem
from rlvid.launch.planner import plan
from rlvid.launch.sequence_checks import check_sequence_parallel
from rlvid.launch.utilisation import open_utilisation
from rlvid.models.token_plans import PLANS
from tests.unit.launch.hand_made import recipe
from tests.unit.models import family_checks
from tests.unit.models.family_checks import FAMILIES


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {"sequence_parallel": 3}}, r"\d+ heads of WanTransformer3DModel do not div"),
        ({"model": {"attention_backend": "flash"}}, r"^model\.attention_backend: expected null"),
        ({"model": {"device": "cuda:1"}}, r"^model\.device: expected auto, cuda or cpu"),
        ({"phases": ["distillation"]}, r"make a causal student, got 2 and causal_init, causal_t"),
    ],
)
def test_what_processes_cannot_share_is_refused_before_the_run(
    sections: dict[str, Any], message: str
) -> None:
    two = {"rollout": {"sequence_parallel": 2}}
    with pytest.raises(ValueError, match=message):
        check_sequence_parallel(recipe(**{**two, **sections}))


def test_few_step_student_is_shared() -> None:
    stages = {"stages": ["few_step"]}
    check_sequence_parallel(
        recipe(phases=["distillation"], distillation=stages, rollout={"sequence_parallel": 2})
    )


def test_family_without_a_plan_of_tokens_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the learner refuses it; here before its weights are read. All that ship have one."""
    monkeypatch.delitem(PLANS, "CosmosTransformer3DModel")
    family = FAMILIES["cosmos"]
    family_checks.build(family).save(str(tmp_path))
    model = {"use": family.use, "path": str(tmp_path)}
    with pytest.raises(ValueError, match=r"not known for Cosmos\w+: expected one of CogVideoX"):
        check_sequence_parallel(recipe(model=model, rollout={"sequence_parallel": 2}))


def test_an_actors_processes_share_its_activations_and_take_a_device_each() -> None:
    alone, shared = (recipe(rollout={"sequence_parallel": size, "num_gpus": 1}) for size in (1, 2))
    before, after = plan(alone).roles[0], plan(shared).roles[0]
    assert after.num_processes == 2 * before.num_processes
    assert (after.num_gpus, after.num_cpus) == (before.num_gpus, before.num_cpus)
    assert after.memory_mib["activations"] == pytest.approx(before.memory_mib["activations"] / 2)
    assert after.memory_mib["weights"] == before.memory_mib["weights"]
    assert demanded(shared)["GPU"] == 2 * demanded(alone)["GPU"]
    assert open_utilisation(shared).devices_per_actor == 2


def test_an_actors_devices_are_dealt_out_together() -> None:
    """Four of one node to each of 13 actors at the most, beside 2 decoders and 8 ranks."""
    shared = load_recipe("wan2.1_14b_lora", ["rollout.sequence_parallel=4"])
    cluster = read_cluster("8x8xH100")
    problem = split_problem(shared, plan(shared), assume_cluster(cluster, []), cluster)
    assert problem is not None
    assert problem.own["actors"].num_gpus == 4.0
    best = best_split(problem)
    assert best is not None
    assert best["actors"].num_gpus == 4.0
    assert 0 < best["actors"].num_processes <= 13
    assert "rollout.num_gpus" not in " ".join(overrides(shared, best))


def test_each_process_of_an_actor_has_one_devices_memory() -> None:
    """Its transformer of 14 billion parameters is whole on each, whatever four GPUs hold."""
    shared = load_recipe("wan2.1_14b_lora", ["rollout.sequence_parallel=4"])
    cluster = read_cluster("8x8xH100")
    assumed = assume_cluster(cluster, ["gpu_memory_gib=25"])
    problem = split_problem(shared, plan(shared), assumed, cluster)
    assert problem is not None
    [actors] = [role for role in problem.roles if role.name == "actors"]
    assert not actors.counts
    assert not actors.fits


def test_process_of_an_actor_is_missed_before_the_actor_is() -> None:
    shared = recipe(rollout={"sequence_parallel": 2, "stall_s": 100.0})
    gang = gang_settings(shared.rollout, 30.0)
    assert gang is not None
    assert (gang.num_ranks, gang.start_deadline_s) == (2, 30.0)
    assert gang.deadline_s == GANG_FRAC * 100.0 < shared.rollout.stall_s
    assert gang_settings(recipe().rollout, 30.0) is None
