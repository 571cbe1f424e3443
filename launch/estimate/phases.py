"""From a recipe to what each of its phases costs, and what of it does not fit.

A role's hours are its FLOPs over the peak of its GPUs at the assumed utilisation. Roles that work
beside one another take as long as the slowest, and those that share a GPU take turns on it
(`launch/estimate/sharing.py`); GPUs are held for all of that, busy or not.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from rlvid.config import LearnerConfig, Recipe
from rlvid.config.distillation import DMD_STAGES, StageConfig
from rlvid.launch.activations import bytes_of
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.distillation import distillation_work, encoded_clips
from rlvid.launch.estimate.enhancement import enhancement_work
from rlvid.launch.estimate.records import (
    ACTORS,
    DECODER,
    LEARNER,
    REWRITER,
    Counted,
    Work,
    count_model,
)
from rlvid.launch.estimate.sampling import data_engine_work, evaluate_work, num_rendered
from rlvid.launch.estimate.sharing import (
    Held,
    held_devices,
    shared_devices,
    together,
    usable_devices,
)
from rlvid.launch.estimate.training import dpo_work, grpo_work, num_encoded, sft_work
from rlvid.launch.model_size import ModelSize, read_model_size
from rlvid.launch.planner import Plan, learner_of

MAKERS = {
    "data_engine": data_engine_work,
    "sft": sft_work,
    "dpo": dpo_work,
    "grpo": grpo_work,
    "prompt_enhancement": enhancement_work,
    "distillation": distillation_work,
    "evaluate": evaluate_work,
}
CHECKPOINT_BYTES = 12
"""Of a trained parameter: its float32 value and Adam's two moments; an average takes 4 more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEstimate:
    """What one phase costs."""

    phase: str
    work: tuple[tuple[Work, float | None], ...]
    """Each with its GPU-hours; None on CPUs, and where the FLOPs are not known."""
    hours: float
    """From begin to end, of what runs on GPUs."""
    num_gpus: float
    """Held in the phase."""
    peak_mib: float
    """Of the process that needs most, on a GPU if any is; 0 without processes."""
    disk_bytes: float
    """Clips, latents, checkpoints and the policy."""

    @property
    def flops(self) -> float:
        return sum(work.flops or 0.0 for work, _ in self.work)

    @property
    def gpu_hours(self) -> float:
        """Of GPUs that are busy."""
        return sum(hours or 0.0 for _, hours in self.work)

    @property
    def held_gpu_hours(self) -> float:
        return self.hours * self.num_gpus


def estimate(recipe: Recipe, planned: Plan, assumed: Assumptions) -> tuple[PhaseEstimate, ...]:
    """Return the phases that can be estimated, in order; () for a model of unknown FLOPs."""
    counted = count_model(recipe, assumed)
    if counted is None:
        return ()
    return tuple(_phase(recipe, planned, p, counted) for p in recipe.phases if p in MAKERS)


def misfits(planned: Plan, assumed: Assumptions) -> list[str]:
    """Return a line for each role whose process does not fit onto its GPUs."""
    lines = []
    for role in planned.roles:
        room = role.num_gpus * assumed.gpu_memory_gib
        needs = role.total_mib / 1024
        if role.num_gpus and needs > room:
            largest = max(role.memory_mib, key=lambda name: role.memory_mib[name])
            lines.append(
                f"{role.role}: needs {needs:.1f} GiB, its {role.num_gpus:g} GPU has "
                f"{room:.1f} GiB; most of it is {largest}. {_WAYS_OUT.get(largest, _OTHERWISE)}"
            )
    return lines


_OTHERWISE = "Give it more GPUs, or take a smaller model"
_WAYS_OUT = {
    "activations": "Set activation_checkpointing, or lower micro_batch_rows, clips_per_prompt, "
    "group_size or the clip's size",
    "gradients": "Raise zero_stage to 2 or num_ranks",
    "gradient bucket": "Train a LoRA (learner.mode), or take zero_stage 2 instead of 1",
    "optimiser": "Raise zero_stage or num_ranks, or set learner.offload, which keeps it in host "
    "memory",
}


def _phase(recipe: Recipe, planned: Plan, phase: str, counted: Counted) -> PhaseEstimate:
    work = tuple(
        (item, _hours_of(recipe, phase, item, counted)) for item in MAKERS[phase](recipe, counted)
    )
    here = [role for role in planned.roles if phase in role.phases]
    on_gpus = [role for role in here if role.num_gpus] or here
    held = [Held(num_processes=role.num_processes, num_gpus=role.num_gpus) for role in here]
    return PhaseEstimate(
        phase=phase,
        work=work,
        hours=_phase_hours(recipe, phase, work, shared_devices(held)),
        num_gpus=held_devices(held),
        peak_mib=max((role.total_mib for role in on_gpus), default=0.0),
        disk_bytes=disk_bytes(recipe, phase, counted.assumed),
    )


def _phase_hours(
    recipe: Recipe, phase: str, work: tuple[tuple[Work, float | None], ...], num_shared: int
) -> float:
    """Return the hours of the stages of a phase, one after the other."""
    stages: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for item, gpu_hours in work:
        if gpu_hours is not None:
            stages[item.stage][item.role] += gpu_hours
    total = 0.0
    for roles in stages.values():
        held = {role: held_by(recipe, phase, role) for role in roles}
        alone = {role: roles[role] / usable_devices(held[role], num_shared) for role in roles}
        total += together(roles, alone, held, num_shared)
    return total


def _hours_of(recipe: Recipe, phase: str, work: Work, counted: Counted) -> float | None:
    """Return the GPU-hours of work; None where its FLOPs are unknown, or its role is on CPUs."""
    if work.flops is None or not held_by(recipe, phase, work.role).num_gpus:
        return None
    return work.flops / (counted.assumed.peak * work.mfu) / 3600


def held_by(recipe: Recipe, phase: str, role: str) -> Held:
    """Return the GPUs that a role has in a phase."""
    rewards, rollout = recipe.rewards, recipe.rollout
    if role == ACTORS:
        return Held(num_processes=rollout.num_actors, num_gpus=rollout.gpus_per_actor)
    if role == DECODER:
        return Held(num_processes=rewards.decode_replicas, num_gpus=rewards.decode_gpus)
    if role == LEARNER:
        enhances = phase == "prompt_enhancement"
        learner = recipe.prompt_enhancement.learner if enhances else learner_of(recipe, phase)
        return Held(num_processes=learner.num_ranks, num_gpus=learner.num_gpus)
    own = recipe.prompt_enhancement.sampler.server
    server = own if role == REWRITER else rewards.servers.get(role)
    if server is None or server.urls:
        return Held(num_processes=0, num_gpus=0.0)
    return Held(num_processes=server.num_replicas, num_gpus=server.num_gpus)


def disk_bytes(recipe: Recipe, phase: str, assumed: Assumptions) -> float:
    """Return what a phase leaves on the disk, and the checkpoint it writes before one goes."""
    learner = learner_of(recipe, phase)
    size = read_model_size(recipe.model, learner)
    latents = 4 * size.latent_numbers
    if phase == "data_engine":
        real = recipe.data_engine.real
        clip = size.clip_numbers / 3 * assumed.mp4_bits_per_pixel / 8
        videos = real.num_clips * clip if real.source == "videos" else 0.0
        return sum(num_rendered(recipe)) * latents + videos
    checkpoint = {
        "sft": recipe.sft.checkpoint,
        "dpo": recipe.dpo.checkpoint,
        "grpo": recipe.grpo.checkpoint,
    }
    if phase in checkpoint:
        encoded = num_encoded(recipe) if phase == "sft" else 0
        checkpoints = _checkpoints(learner, size, checkpoint[phase].keep)
        return encoded * latents + checkpoints + _policy(recipe, learner, size)
    if phase == "distillation":
        return encoded_clips(recipe) * latents + _stages(recipe, size)
    return 0.0


def _stages(recipe: Recipe, size: ModelSize) -> float:
    """Return the bytes of checkpoints and policies of every stage of distillation."""
    config, total = recipe.distillation, 0.0
    for stage in config.stages:
        own: StageConfig = getattr(config, stage)
        learner = config.learner.model_copy(update={"ema": own.ema})
        total += _checkpoints(learner, size, config.checkpoint.keep)
        total += _policy(recipe, learner, size)
        if stage in DMD_STAGES:  # the fake score's
            total += _checkpoints(config.learner, size, config.checkpoint.keep)
        if stage == "causal_init" and config.causal_init.method == "consistency":
            total += (config.checkpoint.keep + 1) * 4 * size.trainable_parameters
    return total


def _checkpoints(learner: LearnerConfig, size: ModelSize, keep: int) -> float:
    each = CHECKPOINT_BYTES + (4 if learner.ema else 0)
    return (keep + 1) * each * size.trainable_parameters


def _policy(recipe: Recipe, learner: LearnerConfig, size: ModelSize) -> float:
    """Return the bytes of the policies a learner writes: whole pipelines, or adapters."""
    copies = 2 if learner.ema else 1
    if learner.mode == "lora":
        return copies * 4 * size.trainable_parameters
    frozen = size.transformer_parameters + size.text_encoder_parameters
    return copies * (frozen * bytes_of(recipe) + 4 * size.vae_parameters)
