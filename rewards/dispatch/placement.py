"""From the recipe's `rewards` section to queues and kinds of processes."""

from __future__ import annotations

from rlvid.config.rewards import RewardsConfig, ScorerConfig
from rlvid.plugins import resolve
from rlvid.rewards.base import Serving
from rlvid.rewards.critics import BUILTIN
from rlvid.rewards.dispatch.autoscale import Autoscaler
from rlvid.rewards.dispatch.lane import Lane, LaneSettings
from rlvid.rewards.dispatch.processes import DECODER, Host


def declared_serving(config: ScorerConfig) -> Serving:
    """Return what the scorer's class declares, as far as this process can see it.

    A class that is only importable in the environment of its replicas is taken to declare nothing;
    so is one that does not exist, which its replica will say in plain words.
    """
    if config.python or config.runtime_env:
        return Serving()
    try:
        serving = getattr(resolve(config.use, BUILTIN, where="use"), "serving", None)
    except ValueError:
        return Serving()
    return serving if isinstance(serving, Serving) else Serving()


def plan_pool(rewards: RewardsConfig) -> tuple[dict[str, Lane], list[Host]]:
    """Return a queue for each scorer and for the decoder, and the processes they live in."""
    lanes = {DECODER: _decoder_lane(rewards)}
    shared: list[str] = []
    hosts: list[Host] = []
    for config in rewards.scorers:
        serving = declared_serving(config)
        settings = LaneSettings.of(config, serving)
        lanes[config.label] = Lane(config.label, settings, config)
        if rewards.colocate and _may_share(config, serving):
            shared.append(config.label)
            continue
        hosts.append(
            Host(
                services=(config.label,),
                num_cpus=settings.num_cpus,
                num_gpus=settings.num_gpus,
                runtime_env=config.runtime_env,
                spread=False,
                autoscaler=Autoscaler(
                    settings.num_replicas, settings.max_replicas, settings.batch_size
                ),
                node_group=config.node_group or rewards.node_group,
            )
        )
    decoder = Host(
        services=(DECODER, *shared),
        num_cpus=rewards.decode_cpus,
        num_gpus=rewards.decode_gpus,
        runtime_env={},
        spread=True,
        autoscaler=Autoscaler(rewards.decode_replicas, rewards.decode_replicas, 1),
        node_group=rewards.node_group,
    )
    return lanes, [decoder, *hosts]


def _decoder_lane(rewards: RewardsConfig) -> Lane:
    settings = LaneSettings(
        batch_size=1,
        max_wait_s=0.0,
        device="cpu",
        num_replicas=rewards.decode_replicas,
        max_replicas=rewards.decode_replicas,
        deadline_s=rewards.deadline_s,
        num_cpus=rewards.decode_cpus,
        num_gpus=rewards.decode_gpus,
    )
    return Lane(DECODER, settings)


def _may_share(config: ScorerConfig, serving: Serving) -> bool:
    """True for a scorer that asks for nothing of its own: see `RewardsConfig.colocate`."""
    own = (
        *(config.num_replicas, config.max_replicas, config.num_cpus, config.num_gpus),
        config.node_group,
    )
    if config.python or config.runtime_env or config.server or any(n is not None for n in own):
        return False
    on_cpu = (config.device or serving.device) == "cpu" and not serving.num_gpus
    return on_cpu and serving.num_replicas == 1 and not serving.max_replicas
