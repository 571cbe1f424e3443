"""The Ray cluster of a run: started here for one machine, or joined by address."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rlvid.config import Recipe


class ClusterError(ValueError):
    """The recipe asks for what the cluster does not have."""


def demanded(recipe: Recipe) -> dict[str, float]:
    """Return the CPUs and GPUs that roles hold at the same time, in the phase that needs most."""
    rollout, rewards, learner = recipe.rollout, recipe.rewards, recipe.learner
    sft = recipe.sft.learner if "sft" in recipe.phases else None
    return {
        "CPU": max(
            rollout.num_actors * rollout.num_cpus
            + rewards.num_replicas * rewards.num_cpus
            + learner.num_ranks * learner.num_cpus,
            sft.num_ranks * sft.num_cpus if sft else 0.0,
        ),
        "GPU": max(
            rollout.num_actors * rollout.num_gpus
            + rewards.num_replicas * rewards.num_gpus
            + learner.num_ranks * learner.num_gpus,
            sft.num_ranks * sft.num_gpus if sft else 0.0,
        ),
    }


@contextmanager
def open_cluster(recipe: Recipe) -> Iterator[None]:
    """Have Ray for the length of the block.

    Raises:
        ClusterError: roles ask for more GPUs or CPUs than there are, or no cluster answers.
    """
    import ray

    config = recipe.cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    want = demanded(recipe)
    if config.address is None:
        ray.init(
            address="local",  # else RAY_ADDRESS, or a cluster that `ray start` left here, is joined
            num_cpus=config.num_cpus or math.ceil(want["CPU"]),
            include_dashboard=False,
            object_store_memory=config.object_store_mb * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=bool(os.environ.get("RLVID_ACTOR_LOGS")),
        )
    else:
        try:
            ray.init(address=config.address, logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError as error:
            raise ClusterError(
                f"cluster.address: no Ray cluster answers at {config.address!r} "
                f"({str(error).splitlines()[0]}); start it with `ray start --head`, or leave "
                "cluster.address out to run on this machine"
            ) from error
    try:
        check_demand(recipe, ray.cluster_resources())
        yield
    finally:
        ray.shutdown()


def check_demand(recipe: Recipe, has: dict[str, float]) -> None:
    """Refuse a recipe that could never be scheduled, before anything waits for it."""
    want = demanded(recipe)
    for kind, section in (("GPU", "num_gpus"), ("CPU", "num_cpus")):
        of_sft = f", sft.learner.{section}" if "sft" in recipe.phases else ""
        if want[kind] > has.get(kind, 0.0) + 1e-9:
            raise ClusterError(
                f"rollout.{section}, rewards.{section}, learner.{section}{of_sft}: the roles ask "
                f"for {want[kind]:g} {kind}s together, the cluster has {has.get(kind, 0.0):g}; "
                f"lower them or the number of actors, replicas and ranks"
                + (", or raise cluster.num_cpus" if kind == "CPU" else "")
            )
