"""What the roles of a recipe hold of a cluster, and whether that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import eq
from typing import Any

from rlvid.config import LearnerConfig, Recipe, RewardsConfig
from rlvid.config.node_group import named_groups
from rlvid.config.rewards import ServerConfig


class ClusterError(ValueError):
    """The recipe asks for what the cluster does not have."""


Counts = Callable[[str | None], bool]
"""Whether to count what goes to a node group (`rlvid.config.node_group`); None goes anywhere."""


def demanded(
    recipe: Recipe, *, grown: bool = False, counts: Counts = lambda node_group: True
) -> dict[str, float]:
    """Return the CPUs and GPUs that roles hold at the same time, in the phase that needs most.

    Args:
        grown: with every scorer at its `max_replicas` and as many rollout actors as the autoscaler
            may want, as long queues make it.
        counts: by default everything.
    """
    rollout = recipe.rollout
    alone = [
        config.learner
        for phase, config in (
            ("sft", recipe.sft),
            ("dpo", recipe.dpo),
            ("distillation", recipe.distillation),
        )
        if phase in recipe.phases
    ]
    pool = rewards_of(recipe)
    found = {}
    num_actors = rollout.max_actors if grown else rollout.num_actors
    for kind, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        found[kind] = max(
            num_actors
            * rollout.sequence_parallel
            * getattr(rollout, field)
            * counts(rollout.node_group)
            + _demanded_by(pool, field, counts, grown=grown)
            + _demanded_beside(recipe, field, counts),
            max((_demanded_of(ranks, field, counts) for ranks in alone), default=0.0),
        )
    return found


def _demanded_of(ranks: LearnerConfig, field: str, counts: Counts) -> float:
    return float(ranks.num_ranks * getattr(ranks, field) * counts(ranks.node_group))


def _demanded_beside(recipe: Recipe, field: str, counts: Counts) -> float:
    """Return `num_cpus` or `num_gpus` of what learns beside the pool, in the phase that needs most.

    The server of a rewriter is there with its ranks.
    """
    found = [_demanded_of(recipe.learner, field, counts)]
    if "prompt_enhancement" in recipe.phases:
        ranks, sampler = recipe.prompt_enhancement.learner, recipe.prompt_enhancement.sampler
        server = sampler.server if sampler.kind == "vllm" else None
        served = _demanded_by_servers([server] if server else [], recipe.rewards, field, counts)
        found.append(_demanded_of(ranks, field, counts) + served)
    return max(found)


def rewards_of(recipe: Recipe) -> RewardsConfig:
    """Return the pool of the phase that needs most: with the judges, where held-out clips are."""
    from rlvid.launch.heldout import with_judges

    judges = "evaluate" in recipe.phases or recipe.grpo.evaluate_every
    return (with_judges(recipe) if judges else recipe).rewards


def _demanded_by(rewards: RewardsConfig, field: str, counts: Counts, *, grown: bool) -> float:
    """Return `num_cpus` or `num_gpus` of the pool's processes and of the servers it starts."""
    from rlvid.rewards.dispatch.placement import plan_pool

    _, hosts = plan_pool(rewards)
    processes = sum(
        getattr(host, field) * (host.autoscaler.high if grown else host.autoscaler.low)
        for host in hosts
        if counts(host.node_group)
    )
    own = [server for server in rewards.servers.values() if not server.urls]
    return float(processes) + _demanded_by_servers(own, rewards, field, counts)


def _demanded_by_servers(
    servers: Iterable[ServerConfig], rewards: RewardsConfig, field: str, counts: Counts
) -> float:
    found = [s for s in servers if counts(s.node_group or rewards.node_group)]
    return float(sum(getattr(server, field) * server.num_replicas for server in found))


def check_demand(recipe: Recipe, has: dict[str, float]) -> None:
    """Refuse a recipe that could never be scheduled, before anything waits for it.

    Roles with a node group are not counted: an autoscaler brings their nodes once they wait.
    """
    want = demanded(recipe, counts=lambda node_group: node_group is None)
    is_own = recipe.cluster.address is None
    for kind, section in (("GPU", "num_gpus"), ("CPU", "num_cpus")):
        of_others = "".join(
            f", {phase}.learner.{section}"
            for phase in ("sft", "dpo", "distillation")
            if phase in recipe.phases
        )
        if want[kind] > has.get(kind, 0.0) + 1e-9:
            raise ClusterError(
                f"rollout.{section}, {section} of rewards.scorers and rewards.decode_*, "
                f"learner.{section}{of_others}: the roles ask for {want[kind]:g} {kind}s together, "
                f"the cluster has {has.get(kind, 0.0):g}; lower them or the number of actors, "
                "replicas and ranks"
                + (", or raise cluster.num_cpus" if kind == "CPU" and is_own else "")
            )


def short_groups(recipe: Recipe, nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each node group whose nodes have less than its roles ask for.

    Args:
        nodes: that live, as `ray.nodes()` tells of them.
    """
    lines, nodes = [], list(nodes)
    for name in dict.fromkeys(name for _, name in named_groups(recipe)):
        want = demanded(recipe, counts=partial(eq, name))
        there = [node["Resources"] for node in nodes if name in node["Resources"]]
        has = {kind: sum(float(one.get(kind, 0.0)) for one in there) for kind in want}
        if any(want[kind] > has[kind] + 1e-9 for kind in want):
            paths = ", ".join(path for path, of in named_groups(recipe) if of == name)
            lines.append(
                f"{paths}: roles ask for {want['CPU']:g} CPUs and {want['GPU']:g} GPUs on nodes "
                f"with the resource {name!r}, the {len(there)} there are have {has['CPU']:g} and "
                f"{has['GPU']:g}: they wait for more, which an autoscaler or `ray start "
                "--resources` brings, cluster.start_deadline_s "
                f"({recipe.cluster.start_deadline_s:g} s) at most"
            )
    return lines
