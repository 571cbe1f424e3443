"""Memory of a role's process in its node's RAM: Python and libraries, and what is not on a GPU.

Without a GPU that is everything. A rank with one keeps there what `learner.offload` moves: 12 T / n
(float32 master and Adam; in files they may leave it), 4 T / n of gradients and at stage 3 as much
again, P b / n of parameters, and two temporaries of torch's AdamW, 4 bytes for each parameter that
is stepped on at a time; letters as in `launch/memory.py`, n ranks. The rank that publishes gathers
T c in buffers that it keeps.

On a CPU tensors that come and go leave holes in the C library's heap, which a GPU's allocator keeps
to itself: one process grew by 97, 120 and 309 MiB where 52, 46 and 117 were alive at once
(denoising, decoding, learning; 33 frames of 96x96). It grew by 49, 47 and 114 with
MALLOC_MMAP_THRESHOLD_=65536, which gives memory back at once, for up to twice the CPU time. So
what comes and goes counts `HEAP` times here.

What a process takes before it has a model was measured on real processes of a run without GPUs, by
`python -m tests.bench.plan_against_measured --processes`: the peak of each less what the plan has
for its model, with next to nothing to compute. CUDA's libraries come on top and were not measured;
nor were a model server's process, and Ray's object store, whose room is set when Ray starts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rlvid.config import LearnerConfig, Recipe
from rlvid.launch.activations import bytes_of
from rlvid.launch.memory import MIB, is_optimizer_offloaded, texts_are_apart, trained_width

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlvid.launch.model_size import ModelSize
    from rlvid.launch.role_plan import RolePlan

PROCESS_MIB = {"rollout actor": 550.0, "rewards": 536.0, "learner rank": 640.0}
"""Of one process, before it has a model. Ranks of every phase are taken as equal."""
HEAP = 2.5
"""RAM for each byte of tensors that come and go, without a GPU."""
PASSING = ("activations", "decoding", "clips", "scoring")
"""What of a role's memory does."""
BESIDE_MIB = 1360.0
"""Of the driver, the keeper of groups, and Ray's own processes on its node, together."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def process_mib(role: str) -> float:
    """Return MiB of a role's process before it has a model; 0 of a server, which was not measured.

    Args:
        role: its name in the plan.
    """
    if role.startswith("vLLM server"):
        return 0.0
    if role.startswith("rewards"):
        return PROCESS_MIB["rewards"]
    return PROCESS_MIB["rollout actor" if role == "rollout actor" else "learner rank"]


def host_memory(
    role: str, memory_mib: Mapping[str, float], num_gpus: float, moved: Mapping[str, float]
) -> dict[str, float]:
    """Return MiB in RAM of one process of a role by what it is for.

    Args:
        memory_mib: what it computes with, which is here unless it has a GPU.
        moved: MiB that are here either way.
    """
    here = {} if num_gpus else memory_mib
    model = sum(mib * (HEAP if what in PASSING else 1.0) for what, mib in here.items())
    found = {"process": process_mib(role), "model": model, **moved}
    return {what: mib for what, mib in found.items() if mib}


def offloaded(recipe: Recipe, learner: LearnerConfig, size: ModelSize) -> dict[str, float]:
    """Return MiB that `learner.offload` keeps in RAM for a rank with a GPU."""
    if learner.offload is None or not learner.num_gpus:
        return {}
    from rlvid.learners.zero_settings import STEP_ELEMENTS

    found = {}
    each = size.trainable_parameters / learner.num_ranks
    if is_optimizer_offloaded(learner):
        stays = 12 * each if learner.offload.optimizer == "cpu" else 0.0
        found["optimiser"] = (stays + 8 * min(each, STEP_ELEMENTS)) / MIB
        found["gradients"] = (8 if learner.zero_stage == 3 else 4) * each / MIB
    if learner.offload.parameters == "cpu":
        whole = size.transformer_parameters * bytes_of(recipe)
        found["parameters"] = whole / learner.num_ranks / MIB
    return found


def texts_apart(recipe: Recipe, size: ModelSize) -> dict[str, float]:
    """Return MiB of text encoders that `model.text_encoder_device` keeps in RAM."""
    if not texts_are_apart(recipe):
        return {}
    return {"text encoders": size.text_encoder_parameters * bytes_of(recipe) / MIB}


def published(recipe: Recipe, size: ModelSize) -> dict[str, float]:
    """Return MiB of the buffers in which the RL phase's trained parameters are published."""
    width = trained_width(recipe, recipe.learner)
    return {"publish": size.trainable_parameters * width / MIB}


def node_needs_mib(roles: Sequence[RolePlan]) -> float:
    """Return MiB of all processes of the phase that needs most, were they all on one node."""
    phases = {phase for role in roles for phase in role.phases}
    by_phase = (
        sum(role.num_processes * role.host_total_mib for role in roles if phase in role.phases)
        for phase in phases
    )
    return BESIDE_MIB + max(by_phase, default=0.0)


def node_has_mib() -> float:
    """Return MiB of this machine's RAM, or of the container it is used in."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB
    text = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return installed if text == "max" else min(installed, int(text) / MIB)
