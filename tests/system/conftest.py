"""Small recipes for whole runs on real Ray, DeepSpeed and the tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rlvid.process_env import own_cluster

SMALL: dict[str, Any] = {
    "name": "small",
    "rollout": {"num_actors": 1, "group_size": 4, "groups_per_step": 2, "num_denoising_steps": 4},
    "rewards": {"colocate": True},
    "learner": {"optimizer": {"learning_rate": 1e-3}},
    "grpo": {
        "num_steps": 4,
        "evaluate_every": 0,
        "evaluate_prompts": 2,
        "checkpoint": {"every": 1, "keep": 10},
    },
    "evaluate": {
        "num_prompts": 4,
        "seeds_per_prompt": 2,
        "num_denoising_steps": 4,
        "num_bootstrap": 200,
        "num_clips": 2,
    },
}
"""One actor: a process takes five seconds of a core to import diffusers, most of a small run."""


def merged(*trees: dict[str, Any]) -> dict[str, Any]:
    """Return the trees laid over each other, later ones on top."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


@contextmanager
def local_ray(num_cpus: int, object_store_mb: int) -> Iterator[None]:
    """Have Ray for a pool that is tested without a recipe, as `open_cluster` would start it.

    Roles then inherit their variables: with an environment of its own each would be started by way
    of another Python, beside the processes that Ray keeps ready.
    """
    import ray

    with own_cluster():
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=object_store_mb * 2**20,
            log_to_driver=False,
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def small_tree() -> dict[str, Any]:
    """The smallest recipe that runs every stage of the main job."""
    return merged(SMALL)
