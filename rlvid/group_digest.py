"""What was sampled, as one digest: by it two runs of a recipe are known to be the same run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from torch import Tensor

from rlvid.records import RolloutGroup, StepPlan
from rlvid.weights import digest_bytes, digest_tensors

TREE_FIELDS = ("num_nodes", "branch_scale")
BRANCH_FIELDS = ("own_steps",)


def digest_of_group(group: RolloutGroup) -> str:
    """Return a digest of what was sampled: prompt, plan, seeds and every tensor.

    Lease, actor, times and the version's number are left out, so that two runs that sampled the
    same agree, whoever did it and however often it was tried.
    """
    tensors: dict[str, Tensor] = {}
    seeds = []
    for place, rollout in enumerate(group.rollouts):
        seeds.append((rollout.index, rollout.noise_seed, rollout.step_seed))
        tensors |= {
            f"{place}.latents": rollout.latents,
            f"{place}.trained_latents": rollout.trained_latents,
            f"{place}.trained_next_latents": rollout.trained_next_latents,
            f"{place}.behaviour_mean": rollout.behaviour_mean,
            f"{place}.behaviour_log_prob": rollout.behaviour_log_prob,
        }
    prompt = {**asdict(group.prompt), "facts": sorted(group.prompt.facts.items())}
    del prompt["media"]  # Where the files lie; what they hold is in the prompt's id.
    told = [group.group_id, prompt, _told_of(group.plan), seeds, digest_tensors(tensors)]
    return digest_bytes(json.dumps(told, sort_keys=True).encode())


def _told_of(plan: StepPlan) -> dict[str, Any]:
    """Return the plan's fields, those of trees and branches only of such: digests of before there
    were any stay what they were."""
    of_trees = () if plan.num_nodes else TREE_FIELDS
    of_branches = () if plan.own_steps else BRANCH_FIELDS
    left_out = {*of_trees, *of_branches}
    return {name: value for name, value in asdict(plan).items() if name not in left_out}
