"""What a recipe will need: processes, CPUs, GPUs, memory and transformer forwards a step.

Memory is an estimate from stated assumptions, good to about a third; it is for choosing hardware,
not for filling it. It counts what scales with the model, not Python, CUDA or Ray themselves.

Assumptions, P parameters, T trainable ones, b bytes a number of `model.dtype`:

- A frozen copy takes P b; an actor also holds a spare copy of what is published, T b.
- Training state is 4 T (gradients) + 8 T (Adam) + 4 T (float32 master, when b is 2) + 4 T (EMA).
  ZeRO 1 divides Adam and master by the ranks, 2 also the gradients, 3 also the parameters.
- A transformer layer keeps 34 bytes for each token and channel in 16-bit training with fused
  attention (Korthikanti et al., arXiv:2205.05198, section 4.1), so 17 b; a third more for the
  cross-attention of text-to-video models. Checkpointing keeps b a layer and one layer whole.
- Without gradients two layers' worth is alive at a time.
- The VAE decodes one clip of this size at a time; its finest level holds 96 channels a pixel of a
  frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from rlvid.config import LearnerConfig, Recipe
from rlvid.config.rewards import ServerConfig
from rlvid.launch.model_size import ModelSize, read_model_size

if TYPE_CHECKING:
    from rich.console import RenderableType

LAYER_NUMBERS = 17 * 4 / 3
"""Numbers a layer keeps for the backward pass, a token and channel."""
MIB = 2**20
SAMPLED_PLANS = 64
"""Step plans drawn to average the forwards over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """One role of the run."""

    role: str
    num_processes: int
    num_cpus: float
    """Of one process."""
    num_gpus: float
    """Of one process."""
    memory_mib: dict[str, float]
    """Of one process, by what it is for."""

    @property
    def total_mib(self) -> float:
        return sum(self.memory_mib.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run of the recipe takes."""

    name: str
    size: ModelSize
    roles: tuple[RolePlan, ...]
    rollouts_per_step: int
    sampling_forwards: float
    """Transformer evaluations while sampling one step's groups, guidance counted, on average."""
    learning_forwards: float
    """Forwards with gradient of one step, guidance counted; a backward costs two more."""
    num_steps: int


def plan(recipe: Recipe) -> Plan:
    """Return the plan of the recipe's RL phase.

    Raises:
        ValueError: the model folder is missing, or no step plan can be made.
    """
    size = read_model_size(recipe.model, recipe.learner)
    sampling, learning = forwards_per_step(recipe)
    rollout, learner = recipe.rollout, recipe.learner
    roles = (
        RolePlan(
            role="rollout actor",
            num_processes=rollout.num_actors,
            num_cpus=rollout.num_cpus,
            num_gpus=rollout.num_gpus,
            memory_mib=actor_memory(recipe, size),
        ),
        *reward_roles(recipe, size),
        RolePlan(
            role="learner rank",
            num_processes=learner.num_ranks,
            num_cpus=learner.num_cpus,
            num_gpus=learner.num_gpus,
            memory_mib=learner_memory(recipe, size),
        ),
    )
    return Plan(
        name=recipe.name,
        size=size,
        roles=roles,
        rollouts_per_step=rollout.groups_per_step * rollout.group_size,
        sampling_forwards=sampling,
        learning_forwards=learning,
        num_steps=recipe.grpo.num_steps,
    )


def forwards_per_step(recipe: Recipe) -> tuple[float, float]:
    """Return (sampling, learning) forwards of one optimiser step, averaged over step plans.

    Up to and including the first stochastic step, rollouts of one initial noise share a forward.
    """
    from rlvid.flow.step_plans import make_step_plan

    config = recipe.rollout
    branches = 1 if config.guidance_scale == 1.0 else 2
    sampling, learning = [], []
    for number in range(SAMPLED_PLANS):
        drawn = make_step_plan(config, recipe_seed=recipe.seed, prompt_id=str(number), step=number)
        shared = min(drawn.first_stochastic_step + 1, drawn.num_steps)
        alone = drawn.num_steps - shared
        sampling.append(shared * drawn.num_noises + alone * config.group_size)
        learning.append(
            sum(
                drawn.num_noises if step == drawn.first_stochastic_step else config.group_size
                for step in drawn.trained_steps
            )
        )
    groups = config.groups_per_step * branches
    updates = recipe.algorithm.updates_per_batch
    return groups * fmean(sampling), groups * updates * fmean(learning)


def actor_memory(recipe: Recipe, size: ModelSize) -> dict[str, float]:
    """Return MiB of one rollout actor by what it is for."""
    width = bytes_of(recipe)
    frozen = size.transformer_parameters + size.text_encoder_parameters + size.vae_parameters
    rows = recipe.rollout.group_size * (1 if recipe.rollout.guidance_scale == 1.0 else 2)
    alive = 2 * LAYER_NUMBERS * rows * size.tokens * size.width * width
    return {
        "weights": frozen * width / MIB,
        "spare copy": size.trainable_parameters * width / MIB,
        "activations": alive / MIB,
    }


def reward_roles(recipe: Recipe, size: ModelSize) -> tuple[RolePlan, ...]:
    """Return the decoder, every scorer with processes of its own, judges too, and the servers.

    A scorer counts with a group of clips as floats; what it loads itself only it knows. A server
    counts with its weights as they lie in its folder; what it keeps of requests comes on top.
    """
    from rlvid.launch.cluster import rewards_of
    from rlvid.rewards.dispatch.placement import plan_pool
    from rlvid.rewards.dispatch.processes import DECODER

    rewards = rewards_of(recipe)
    _, hosts = plan_pool(rewards)
    frame = size.clip_numbers / recipe.model.num_frames / 3
    clips = {"clips": recipe.rollout.group_size * size.clip_numbers * 4 / MIB}
    decoding = {
        "weights": size.vae_parameters * 4 / MIB,
        "decoding": 3 * 96 * frame * 4 / MIB,
        **clips,
    }
    processes = tuple(
        RolePlan(
            role="rewards: " + ", ".join(service or "decoder" for service in host.services),
            num_processes=host.autoscaler.low,
            num_cpus=host.num_cpus,
            num_gpus=host.num_gpus,
            memory_mib=decoding if DECODER in host.services else clips,
        )
        for host in hosts
    )
    servers = tuple(
        RolePlan(
            role=f"vLLM server: {name}",
            num_processes=server.num_replicas,
            num_cpus=server.num_cpus,
            num_gpus=server.num_gpus,
            memory_mib={"weights": _weight_files(server) / MIB},
        )
        for name, server in rewards.servers.items()
        if not server.urls
    )
    return processes + servers


def _weight_files(server: ServerConfig) -> int:
    from rlvid.rewards.vllm.command import server_folder

    return sum(file.stat().st_size for file in server_folder(server).glob("*.safetensors"))


def learner_memory(recipe: Recipe, size: ModelSize) -> dict[str, float]:
    """Return MiB of one learner rank by what it is for."""
    learner, width = recipe.learner, bytes_of(recipe)
    trainable = size.trainable_parameters
    over = {stage: learner.num_ranks if learner.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    master = 4 if width == 2 else 0
    copies = size.transformer_parameters * width / over[3]
    if recipe.algorithm.kl.kind != "none" and learner.mode == "full":
        copies += size.transformer_parameters * width
    return {
        "weights": (copies + size.text_encoder_parameters * width) / MIB,
        "gradients": 4 * trainable / over[2] / MIB,
        "optimiser": (8 + master) * trainable / over[1] / MIB,
        "EMA": (4 * trainable if learner.ema else 0) / MIB,
        "activations": activation_bytes(recipe, size, learner) / MIB,
    }


def activation_bytes(recipe: Recipe, size: ModelSize, learner: LearnerConfig) -> float:
    """Return the bytes a forward of one micro-batch keeps for its backward."""
    most = max(1, min(learner.micro_batch_rows, recipe.rollout.group_size))
    rows = most * (1 if recipe.rollout.guidance_scale == 1.0 else 2)
    layer = rows * size.tokens * size.width * bytes_of(recipe)
    if learner.activation_checkpointing:
        return layer * (size.num_layers + LAYER_NUMBERS)
    return layer * size.num_layers * LAYER_NUMBERS


def bytes_of(recipe: Recipe) -> int:
    """Return bytes a number of the transformer's dtype."""
    return 2 if recipe.model.dtype == "bfloat16" else 4


def check_machine(recipe: Recipe) -> None:
    """Refuse a recipe that this machine can never hold, before Ray starts.

    A cluster that is joined by address is checked once it is joined.

    Raises:
        ClusterError: the roles ask for more CPUs or GPUs than there are.
    """
    from rlvid.launch.cluster import check_demand, demanded

    if recipe.cluster.address is not None:
        return
    import torch

    has_cpus = recipe.cluster.num_cpus or demanded(recipe)["CPU"]
    check_demand(recipe, {"CPU": float(has_cpus), "GPU": float(torch.cuda.device_count())})


def render(planned: Plan) -> RenderableType:
    """Return the plan as tables for a terminal."""
    from rich.console import Group
    from rich.table import Table

    roles = Table(title=f"{planned.name}: who runs", title_justify="left")
    for heading in ("role", "processes", "CPUs", "GPUs", "memory each", "of which"):
        roles.add_column(heading, justify="left" if heading in ("role", "of which") else "right")
    for role in planned.roles:
        parts = ", ".join(
            f"{name} {size_text(mib)}" for name, mib in role.memory_mib.items() if mib
        )
        roles.add_row(
            role.role,
            str(role.num_processes),
            f"{role.num_processes * role.num_cpus:g}",
            f"{role.num_processes * role.num_gpus:g}",
            size_text(role.total_mib),
            parts,
        )
    size = planned.size
    lines = (
        f"transformer {size.transformer_parameters:,} parameters, "
        f"{size.trainable_parameters:,} trained; {size.tokens} tokens a clip",
        f"a step: {planned.rollouts_per_step} rollouts, {planned.sampling_forwards:.0f} forwards "
        f"to sample, {planned.learning_forwards:.0f} forwards with gradient to learn; "
        f"{planned.num_steps} steps",
        "memory is an estimate of what scales with the model (assumptions: launch/planner.py); "
        "each process adds about 600 MiB of Python and libraries",
    )
    return Group(roles, *lines)


def size_text(mib: float) -> str:
    """Return MiB or GiB, whichever reads better."""
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"
