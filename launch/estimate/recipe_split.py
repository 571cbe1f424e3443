"""The roles of a recipe's RL phase as `cluster_split` takes them, and its answer as overrides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rlvid.config import Recipe
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.cluster_split import Problem, Room, Split, SplitRole
from rlvid.launch.estimate.gpu_cluster import GpuCluster
from rlvid.launch.estimate.phases import held_by
from rlvid.launch.estimate.records import ACTORS, DECODER, LEARNER, Work, count_model
from rlvid.launch.estimate.sharing import Held
from rlvid.launch.estimate.training import grpo_work
from rlvid.launch.memory import actor_memory, decoder_memory, learner_memory, server_memory
from rlvid.launch.model_size import ModelSize, read_model_size
from rlvid.launch.planner import Plan

BESIDE_POOL = ("enhancer rank", "vLLM server: rewriter")
"""Roles of phase prompt_enhancement, in the learner's place."""


def split_problem(
    recipe: Recipe, planned: Plan, assumed: Assumptions, cluster: GpuCluster
) -> Problem | None:
    """Return what is to be split; None without an RL phase.

    Raises:
        ValueError: the FLOPs of the transformer are not known, or neither actors nor learner have
            a GPU.
    """
    if "grpo" not in recipe.phases:
        return None
    counted = count_model(recipe, assumed)
    if counted is None:
        raise ValueError("--cluster: the FLOPs of this transformer are not known; leave it out")
    work = defaultdict[str, list[Work]](list)
    for item in grpo_work(recipe, counted):
        if item.flops is not None and held_by(recipe, "grpo", item.role).num_gpus:
            work[item.role].append(item)
    for role, setting in ((ACTORS, "rollout.num_gpus"), (LEARNER, "learner.num_gpus")):
        if role not in work:
            raise ValueError(
                f"--cluster: {setting} is 0, so there is nothing to split; set it, e.g. {setting}=1"
            )
    size = read_model_size(recipe.model, recipe.learner)
    here = [role for role in planned.roles if role.num_gpus]
    return Problem(
        room=Room(num_nodes=cluster.num_nodes, gpus_per_node=cluster.gpus_per_node),
        roles=tuple(
            _role(recipe, name, items, size, assumed, cluster) for name, items in work.items()
        ),
        kept=tuple(
            Held(num_processes=role.num_processes, num_gpus=role.num_gpus)
            for role in here
            if "grpo" in role.phases and _split_name(role.role) not in work
        ),
        learner=LEARNER,
        instead=tuple(
            Held(num_processes=role.num_processes, num_gpus=role.num_gpus)
            for role in here
            if role.role in BESIDE_POOL
        ),
    )


def overrides(recipe: Recipe, split: Split) -> list[str]:
    """Return "rollout.num_actors=54" and the like, for all that a split changes."""
    changed = []
    for name, held in split.items():
        own, (number, gpus) = held_by(recipe, "grpo", name), _settings(name)
        if held.num_processes != own.num_processes:
            changed.append(f"{number}={held.num_processes}")
        if held.num_gpus != own.num_gpus:
            changed.append(f"{gpus}={held.num_gpus:g}")
    return changed


def _settings(name: str) -> tuple[str, str]:
    """Return the settings with a role's number of processes, and the GPUs of each."""
    known = {
        ACTORS: ("rollout.num_actors", "rollout.num_gpus"),
        DECODER: ("rewards.decode_replicas", "rewards.decode_gpus"),
        LEARNER: ("learner.num_ranks", "learner.num_gpus"),
    }
    server = f"rewards.servers.{name}"
    return known.get(name, (f"{server}.num_replicas", f"{server}.num_gpus"))


def _split_name(role: str) -> str:
    """Return a role's name in the split, of that in the plan."""
    known = {"rollout actor": ACTORS, "learner rank": LEARNER}
    if role.startswith("rewards: decoder"):
        return DECODER
    return known.get(role, role.removeprefix("vLLM server: "))


def _role(
    recipe: Recipe,
    name: str,
    work: Sequence[Work],
    size: ModelSize,
    assumed: Assumptions,
    cluster: GpuCluster,
) -> SplitRole:
    held, rollout = held_by(recipe, "grpo", name), recipe.rollout
    # Of an actor's processes, which share its GPUs out, one is held against one.
    each = rollout.num_gpus if name == ACTORS else held.num_gpus
    whole = max(1.0, each) * assumed.gpu_memory_gib
    groups, teams = rollout.groups_per_step, 1
    most, pieces = cluster.num_gpus, None
    if name == ACTORS:
        most = groups * (rollout.max_staleness + 1)
        pieces = None if rollout.max_staleness else groups
    elif name == LEARNER:
        teams = recipe.learner.sequence_parallel
        most, pieces = groups * teams, groups
    counts = range(teams, min(most, cluster.num_gpus) + 1, teams)
    needs = {count: _memory_gib(recipe, name, count, size) for count in counts}
    flops_s = sum((item.flops or 0.0) / item.mfu for item in work)
    return SplitRole(
        name=name,
        held=held,
        busy_s=flops_s / assumed.peak / recipe.grpo.num_steps,
        stage=work[0].stage,
        counts=tuple(count for count in counts if needs[count] <= whole),
        fits=_memory_gib(recipe, name, held.num_processes, size) <= each * assumed.gpu_memory_gib,
        pieces=pieces,
        together=teams,
    )


def _memory_gib(recipe: Recipe, name: str, num_processes: int, size: ModelSize) -> float:
    """Return GiB of one process of a role that has so many."""
    if name == ACTORS:
        memory = actor_memory(recipe, size)
    elif name == DECODER:
        memory = decoder_memory(recipe, size)
    elif name == LEARNER:
        learner = recipe.learner.model_copy(update={"num_ranks": num_processes})
        memory = learner_memory(recipe.model_copy(update={"learner": learner}), size)
    else:
        memory = server_memory(recipe.rewards.servers[name])
    return sum(memory.values()) / 1024
