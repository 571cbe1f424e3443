"""What a recipe will need: processes, CPUs, GPUs, memory and transformer forwards a step.

Memory is an estimate, of the device that a process computes on and of its node's RAM; formulas
and how well they do are in `launch/memory.py`, `launch/activations.py` and `launch/host_memory.py`.
What phases cost in FLOPs, hours and disk: `launch/estimate/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from rlvid.config import AlgorithmConfig, LearnerConfig, Recipe, RolloutConfig
from rlvid.launch.host_memory import (
    node_has_mib,
    node_needs_mib,
    offloaded,
    published,
    texts_apart,
)
from rlvid.launch.memory import (
    actor_memory,
    branches,
    distillation_memory,
    dpo_memory,
    enhancer_memory,
    learner_memory,
    plan_to_count,
    sft_memory,
)
from rlvid.launch.model_size import ModelSize, read_model_size, sizes_are_published
from rlvid.launch.role_plan import SAMPLING_PHASES, RolePlan
from rlvid.models import MODELS
from rlvid.plugins import resolve

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rlvid.records import StepPlan

SAMPLED_PLANS = 64
"""Step plans drawn to average the forwards over."""


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
    """Of the RL phase; 0 without one, as the three before."""
    published_as: str = ""
    """Hub id whose sizes stand for a model folder that is not there."""
    untimed: tuple[str, ...] = ()
    """Scorers whose time is in no hours, of a plan with GPUs: those that ask no server."""


def plan(recipe: Recipe) -> Plan:
    """Return the plan of the recipe's phases.

    Raises:
        ValueError: there is no such family, the model folder is missing, its clip does not divide,
            or no step plan can be made.
    """
    resolve(recipe.model.use, MODELS, where="model.use")
    has_rl = "grpo" in recipe.phases
    sampling, learning = forwards_per_step(recipe) if has_rl else (0.0, 0.0)
    rollout, roles = recipe.rollout, (*sampling_roles(recipe), *learner_roles(recipe))
    return Plan(
        name=recipe.name,
        size=read_model_size(recipe.model, main_learner(recipe)),
        roles=roles,
        rollouts_per_step=rollout.groups_per_step * rollout.group_size if has_rl else 0,
        sampling_forwards=sampling,
        learning_forwards=learning,
        num_steps=recipe.grpo.num_steps if has_rl else 0,
        published_as=sizes_are_published(recipe.model),
        untimed=_untimed(recipe) if any(role.num_gpus for role in roles) else (),
    )


def _untimed(recipe: Recipe) -> tuple[str, ...]:
    from rlvid.launch.demand import rewards_of

    if not set(recipe.phases) & set(SAMPLING_PHASES):
        return ()
    return tuple(scorer.label for scorer in rewards_of(recipe).scorers if not scorer.server)


def learner_of(recipe: Recipe, phase: str) -> LearnerConfig:
    """Return the section of a phase that trains the video model; grpo's for any other phase."""
    own = {
        "sft": recipe.sft.learner,
        "dpo": recipe.dpo.learner,
        "distillation": recipe.distillation.learner,
    }
    return own.get(phase, recipe.learner)


def main_learner(recipe: Recipe) -> LearnerConfig:
    """Return the section of the last phase that trains, distillation only where no other does."""
    trains = [phase for phase in recipe.phases if phase in ("sft", "dpo", "grpo")]
    if not trains and "distillation" in recipe.phases:
        trains = ["distillation"]
    return learner_of(recipe, trains[-1] if trains else "grpo")


def sampling_roles(recipe: Recipe) -> tuple[RolePlan, ...]:
    """Return who samples and scores, in the phases that do."""
    from rlvid.launch.reward_roles import reward_roles

    phases = tuple(phase for phase in recipe.phases if phase in SAMPLING_PHASES)
    if not phases:
        return ()
    size, rollout = read_model_size(recipe.model, recipe.learner), recipe.rollout
    actor = RolePlan(
        role="rollout actor",
        num_processes=rollout.num_actors * rollout.sequence_parallel,
        num_cpus=rollout.num_cpus,
        num_gpus=rollout.num_gpus,
        memory_mib=actor_memory(recipe, size),
        phases=phases,
        moved_mib=texts_apart(recipe, size),
    )
    return (actor, *reward_roles(recipe, size))


def learner_roles(recipe: Recipe) -> tuple[RolePlan, ...]:
    """Return the ranks of the phases that train, that of the RL phase last."""
    found = []
    for phase, name, learner, memory in (
        ("sft", "sft learner rank", recipe.sft.learner, sft_memory),
        ("dpo", "dpo learner rank", recipe.dpo.learner, dpo_memory),
        ("distillation", "distillation rank", recipe.distillation.learner, distillation_memory),
        (
            "prompt_enhancement",
            "enhancer rank",
            recipe.prompt_enhancement.learner,
            lambda recipe, size: enhancer_memory(recipe),
        ),
        ("grpo", "learner rank", recipe.learner, learner_memory),
    ):
        if phase not in recipe.phases:
            continue
        size = read_model_size(recipe.model, learner)
        moved = {}
        if phase != "prompt_enhancement":
            moved = offloaded(recipe, learner, size) | texts_apart(recipe, size)
        found.append(
            RolePlan(
                role=name,
                num_processes=learner.num_ranks,
                num_cpus=learner.num_cpus,
                num_gpus=learner.num_gpus,
                memory_mib=memory(recipe, size),
                phases=(phase,),
                moved_mib=moved | published(recipe, size) if phase == "grpo" else moved,
            )
        )
    sampler = recipe.prompt_enhancement.sampler
    if "prompt_enhancement" in recipe.phases and sampler.kind == "vllm":
        found.append(
            RolePlan(
                role="vLLM server: rewriter",
                num_processes=sampler.server.num_replicas,
                num_cpus=sampler.server.num_cpus,
                num_gpus=sampler.server.num_gpus,
                memory_mib={"weights": enhancer_memory(recipe)["weights"]},
                phases=("prompt_enhancement",),
            )
        )
    return tuple(found)


def forwards_per_step(recipe: Recipe) -> tuple[float, float]:
    """Return (sampling, learning) forwards of one optimiser step, averaged over step plans.

    Up to and including the first stochastic step, rollouts of one initial noise share a forward, in
    a tree those of one node.
    Engines on the forward process train noised final videos instead, without guidance.
    """
    config = recipe.rollout
    sampling, learning = [], []
    for number in range(SAMPLED_PLANS):
        drawn = plan_to_count(recipe, prompt_id=str(number), step=number)
        nodes = [drawn.nodes_before(j, config.group_size) for j in range(drawn.num_steps)]
        sampling.append(sum(nodes))
        learning.append(learned_forwards(recipe, drawn))
    groups = config.groups_per_step * branches(config.guidance_scale)
    updates = recipe.algorithm.updates_per_batch
    if recipe.algorithm.is_forward:
        rows = config.groups_per_step * forward_rows(recipe.algorithm, config.group_size)
        return groups * fmean(sampling), updates * rows
    if recipe.algorithm.use == "refl":
        return groups * fmean(sampling), groups * updates * refl_forwards(recipe.algorithm, config)
    return groups * fmean(sampling), groups * updates * fmean(learning)


def learned_forwards(recipe: Recipe, plan: StepPlan) -> int:
    """Return the states of a group that are forwarded with a gradient.

    Leaves that a tree prunes are left out where the replay can do without them.
    """
    from rlvid.algorithms.tree_credit import num_trained

    size, tree = recipe.rollout.group_size, recipe.algorithm.tree
    starts = {j: plan.num_starts(j, size) for j in plan.trained_steps}
    if recipe.learner.replay == "as_sampled":
        return sum(starts.values())
    return sum(min(number, num_trained(plan, j, size, tree)) for j, number in starts.items())


def forward_rows(algorithm: AlgorithmConfig, group_size: int) -> float:
    """Return the rows of a group whose final videos are noised again, nothing masked.

    Forwards of the old policy and the reference count a third of a row, as they have no backward.
    """
    most = group_size if algorithm.advantage.best_of_n is None else algorithm.advantage.best_of_n
    if algorithm.use == "dpo":
        most = 2 * min(most // 2, algorithm.dpo.max_pairs or most // 2)
    others = len(algorithm.held_policies)
    return most * algorithm.forward.num_noise_levels * (1.0 + others / 3)


def refl_forwards(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> float:
    """Return the forwards of a group whose last steps are taken again; decoder and reward apart.

    Those without a backward, of earlier steps and of the reference, count a third.
    """
    refl = algorithm.refl
    kept = float(refl.num_gradient_steps)
    exits = fmean(refl.exit_frac) * rollout.num_denoising_steps
    before = max(exits - kept, 0.0) if refl.start == "noise" else 0.0
    return rollout.group_size * (kept + (before + len(algorithm.held_policies)) / 3)


def check_machine(recipe: Recipe) -> None:
    """Refuse a recipe that this machine can never hold, before Ray starts.

    A cluster that is joined by address is checked once it is joined.

    Raises:
        ClusterError: the roles ask for more CPUs or GPUs than there are.
    """
    from rlvid.launch.demand import check_demand, demanded

    if recipe.cluster.address is not None:
        return
    import torch

    has_cpus = recipe.cluster.num_cpus or demanded(recipe)["CPU"]
    check_demand(recipe, {"CPU": float(has_cpus), "GPU": float(torch.cuda.device_count())})


def short_of_memory(recipe: Recipe, planned: Plan) -> str:
    """Return a warning where all roles together do not fit into this machine's RAM, else "".

    Nothing is known of the nodes of a cluster that is joined by address.
    """
    needs, has = node_needs_mib(planned.roles), node_has_mib()
    if recipe.cluster.address is not None or needs <= has:
        return ""
    return (
        f"the processes of its largest phase need {size_text(needs)} of RAM, this machine has "
        f"{size_text(has)}; take fewer actors, ranks or rows (rollout.num_actors, "
        "learner.num_ranks, learner.micro_batch_rows) or a machine with more"
    )


def render(planned: Plan) -> RenderableType:
    """Return the plan as tables for a terminal."""
    from rich.console import Group
    from rich.table import Table

    roles = Table(title=f"{planned.name}: who runs", title_justify="left")
    for heading in ("role", "processes", "CPUs", "GPUs", "memory each", "of which", "RAM each"):
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
            size_text(role.host_total_mib) if role.host_mib else "-",
        )
    return Group(roles, *remarks(planned))


def remarks(planned: Plan) -> list[str]:
    """Return what stands below the table of roles."""
    size = planned.size
    lines = [
        f"transformer {size.transformer_parameters:,} parameters, "
        f"{size.trainable_parameters:,} trained; {size.tokens} tokens a clip",
        "memory: where a process computes, its GPU or RAM, without Python and libraries, which are "
        "in RAM (formulas: launch/memory.py, launch/host_memory.py)",
    ]
    if planned.num_steps:
        lines.insert(
            1,
            f"a step: {planned.rollouts_per_step} rollouts, {planned.sampling_forwards:.0f} "
            f"forwards to sample, {planned.learning_forwards:.0f} forwards with gradient to "
            f"learn; {planned.num_steps} steps",
        )
    unsaid = [label for role in planned.roles for label in role.not_counted]
    if unsaid:
        lines.append(f"not counted: the memory in which these scorers work: {', '.join(unsaid)}")
    if planned.untimed:
        lines.append(f"not in the hours: the time of the scorers {', '.join(planned.untimed)}")
    if planned.published_as:
        lines.append(f"the model's folder is not here; sizes are those of {planned.published_as}")
    return lines


def size_text(mib: float) -> str:
    """Return MiB or GiB, whichever reads better."""
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"
