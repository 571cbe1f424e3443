"""The processes of a recipe's reward pool and the model servers beside it, as they are planned."""

from __future__ import annotations

from collections.abc import Sequence

from rlvid.config import Recipe
from rlvid.config.rewards import ScorerConfig
from rlvid.launch.demand import rewards_of
from rlvid.launch.host_memory import HEAP
from rlvid.launch.memory import decoder_memory, group_rows, server_memory
from rlvid.launch.model_size import ModelSize
from rlvid.launch.role_plan import SAMPLING_PHASES, RolePlan
from rlvid.launch.scorer_memory import scorer_memory
from rlvid.rewards.dispatch.placement import plan_pool
from rlvid.rewards.dispatch.processes import DECODER, Host


def reward_roles(recipe: Recipe, size: ModelSize) -> tuple[RolePlan, ...]:
    """Return the decoder, every scorer with processes of its own, judges too, and the servers."""
    rewards = rewards_of(recipe)
    _, hosts = plan_pool(rewards)
    sampling = tuple(phase for phase in recipe.phases if phase in SAMPLING_PHASES)
    training = {DECODER, *(scorer.label for scorer in recipe.rewards.scorers)}
    processes = tuple(
        _reward_role(
            recipe,
            size,
            host,
            scorers=[config for config in rewards.scorers if config.label in host.services],
            phases=sampling if training & set(host.services) else ("evaluate", "grpo"),
        )
        for host in hosts
    )
    servers = tuple(
        RolePlan(
            role=f"vLLM server: {name}",
            num_processes=server.num_replicas,
            num_cpus=server.num_cpus,
            num_gpus=server.num_gpus,
            memory_mib=server_memory(server),
            phases=sampling,
        )
        for name, server in rewards.servers.items()
        if not server.urls
    )
    return processes + servers


def _reward_role(
    recipe: Recipe,
    size: ModelSize,
    host: Host,
    *,
    scorers: Sequence[ScorerConfig],
    phases: tuple[str, ...],
) -> RolePlan:
    """Return one kind of process of the pool: the decoder, scorers, or both, which take turns."""
    num_clips, _ = group_rows(recipe)
    needs = scorer_memory(scorers, size, group_size=num_clips)
    memory = decoder_memory(recipe, size) if DECODER in host.services else {}
    moved = {}
    if host.num_gpus and DECODER in host.services:  # scorers beside a decoder compute on the CPU
        moved = {"scoring": HEAP * needs.scoring, "scorers": needs.weights}
    elif host.num_gpus:
        memory |= {"weights": needs.weights, "clips": needs.on_gpu}
        moved = {"scoring": HEAP * needs.scoring}
    else:
        memory |= {"scorers": needs.weights, "scoring": needs.scoring}
    return RolePlan(
        role="rewards: " + ", ".join(service or "decoder" for service in host.services),
        num_processes=host.autoscaler.low,
        num_cpus=host.num_cpus,
        num_gpus=host.num_gpus,
        memory_mib=memory,
        phases=phases,
        moved_mib={what: mib for what, mib in moved.items() if mib},
        not_counted=needs.not_counted,
    )
