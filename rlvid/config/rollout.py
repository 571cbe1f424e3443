"""The `rollout` section: how groups are sampled."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section, refuse_unread
from rlvid.config.elasticity import AutoscaleConfig
from rlvid.config.inference import InferenceConfig
from rlvid.config.node_group import NodeGroup
from rlvid.config.step_plan import StepPlanConfig

NoiseScheduleName = Literal["flow", "dance", "flash", "truncated", "sage", "cps"]


class RolloutConfig(Section):
    """Sampling of groups on the rollout actors."""

    num_actors: int = Field(default=1, ge=1)
    group_size: int = Field(default=8)
    """Rollouts per prompt; the advantage is group-relative, so at least 2."""
    groups_per_step: int = Field(default=8, ge=1)
    """Prompts per optimiser step."""
    num_denoising_steps: int = Field(default=10, ge=1)
    shift: float | None = Field(default=None, gt=0.0)
    """Time shift of even noise levels: sigma = shift u / (1 + (shift - 1) u). None takes the levels
    of the model's own scheduler at the clip's size; of the shipped tiny model it takes shift 3,
    which all its figures were measured with. A model that is no flow model takes no number."""
    guidance_scale: float = Field(default=3.0, ge=1.0)
    """Classifier-free guidance in rollouts and in grpo's training; 1 turns it off. nft needs 1, and
    awm and dpo train without it, however they sample."""
    noise_schedule: NoiseScheduleName = "flash"
    eta: float = Field(default=1.0, ge=0.0)
    """Noise strength: a of Flow-SDE, eta of Dance-SDE, factor of Flash, noise level of CPS."""
    truncation: float = Field(default=0.45, gt=0.0)
    """tau of the truncated schedule (LongCat-Video, arXiv:2510.22200)."""
    initial_noise: Literal["shared", "independent"] = "shared"
    """Whether a group's rollouts start from one noise; `branch` and `tree` plans set their own."""
    step_plan: StepPlanConfig = StepPlanConfig()
    max_staleness: int = Field(default=0, ge=0, le=16)
    """Versions a group may be behind when it is consumed. 0 is synchronous training: nothing of a
    step is sampled before the step ahead of it is published. From 1 on sampling, scoring, training
    and publishing overlap, and at most (max_staleness + 1) steps of groups are on their way."""
    num_spares: int = Field(default=0, ge=0)
    """Processes kept ready for actors that join or replace a lost one, which spares them the
    seconds that imports take. Each holds some 400 MB and no policy. Not for actors with a GPU."""
    sequence_parallel: int = Field(default=1, ge=1)
    """Processes that share the tokens of each clip (Ulysses), all of one actor and on one node, for
    clips whose activations do not fit on one device or take too long on it. It divides the
    transformer's heads and a clip's tokens; `rlvid.models.token_plans` has the families. Each
    process holds the transformer; a group is what one process samples, within rounding. A forward
    may take three quarters of `stall_s`, then a process is missed."""
    num_cpus: float = Field(default=1.0, gt=0.0)
    """Ray CPUs per process of an actor."""
    num_gpus: float = Field(default=0.0, ge=0.0)
    """Ray GPUs per process of an actor; 0 or 1 where several share clips."""
    deadline_s: float = Field(default=300.0, gt=0.0)
    """Seconds a lease on one group lasts; then the group is issued again."""
    heartbeat_s: float = Field(default=2.0, gt=0.0)
    """Seconds between two questions to an actor how many denoising steps it has done."""
    stall_s: float = Field(default=120.0, gt=0.0)
    """Seconds without an answer, or without a denoising step while it samples, after which an actor
    is stuck and replaced; longer than one denoising step of a whole group takes."""
    crash_budget: int = Field(default=4, ge=1)
    """Actors that may be lost within `crash_window_s`, for each wanted one; more stop the run."""
    crash_window_s: float = Field(default=600.0, gt=0.0)
    max_deaths_per_prompt: int = Field(default=3, ge=1)
    """A prompt whose groups cost so many actors in a row is quarantined: its groups are dropped,
    counted and named in the log."""
    max_starting: int | None = Field(default=None, ge=1)
    """Actors that start at once beside ones that sample, the others wait for their turn: a process
    needs seconds of a core before its first group, and where cores are few all would come late.
    None: half of this machine's cores for each node, and no limit for actors with a GPU."""
    autoscale: AutoscaleConfig | None = None
    """Let the number of actors follow who waits for whom; None keeps what was asked for."""
    node_group: NodeGroup | None = None
    """Ray resource that only the nodes of the actors have, e.g. "rollout"; None is any node."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray labels of the nodes that actors go to, e.g. {"ray.io/market-type": "spot"}."""
    fallback: tuple[dict[str, str], ...] = ()
    """Labels to make do with, in this order, where no node has those of `labels`."""
    worker: str = "diffusion"
    """What samples: "diffusion" the model, "sleeping" a stand-in with given costs and failures for
    measurements, or `package.module:factory` called as `rollout_worker.open_rollout_worker`."""
    inference: InferenceConfig = InferenceConfig()
    """Optimisations of the diffusion worker; held-out clips are always sampled without. The learner
    of grpo measures the replay drift they cause at every step and refuses more than
    `grpo.max_replay_drift_frac` of the clip range; other engines take exact ones only."""
    worker_options: dict[str, Any] = Field(default_factory=dict)
    """Of the worker; "sleeping" has those of `actors.sleeping.SleepingOptions`."""

    @property
    def max_actors(self) -> int:
        """The most actors there are at once without being asked for by hand."""
        most = self.autoscale.max_actors if self.autoscale else 0
        return max(self.num_actors, most)

    @property
    def cpus_per_actor(self) -> float:
        """Ray CPUs that an actor asks for, for all of its processes."""
        return self.sequence_parallel * self.num_cpus

    @property
    def gpus_per_actor(self) -> float:
        return self.sequence_parallel * self.num_gpus

    @model_validator(mode="after")
    def _check(self) -> RolloutConfig:
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2 (the advantage is group-relative), "
                f"got {self.group_size}"
            )
        branches = self.step_plan.num_branches
        if self.step_plan.kind == "branch" and self.group_size % branches:
            raise ValueError(
                f"group_size must be a multiple of step_plan.num_branches, "
                f"got {self.group_size} and {branches}"
            )
        if self.step_plan.kind == "tree":
            self._check_tree(self.step_plan)
        if self.step_plan.kind == "ode" and self.initial_noise == "shared":
            raise ValueError(
                "step_plan.kind ode adds no noise, so rollouts of one initial noise are one video: "
                "set initial_noise to independent, got shared"
            )
        low, high = self.step_plan.range_frac
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(
                f"step_plan.range_frac must be two ascending numbers in [0, 1], got {low}, {high}"
            )
        self._check_noise()
        return self

    def _check_noise(self) -> None:
        """Refuse settings of the noise that the step plan leaves without effect."""
        kind = self.step_plan.kind
        if kind in ("branch", "tree"):
            refuse_unread(self, ("initial_noise",), f"by step_plan.kind {kind}, which sets its own")
        if kind == "ode":
            names = ("noise_schedule", "eta", "truncation")
            refuse_unread(self, names, "by step_plan.kind ode, which adds no noise")
        if self.noise_schedule != "truncated":
            why = f"by noise_schedule {self.noise_schedule}, but by truncated"
            refuse_unread(self, ("truncation",), why)

    def _check_tree(self, plan: StepPlanConfig) -> None:
        splits, last = plan.split_steps, self.num_denoising_steps - 2
        if not splits or list(splits) != sorted(set(splits)) or not 0 <= splits[0] <= splits[-1]:
            raise ValueError(
                f"step_plan.split_steps must be ascending steps from 0 on, got {list(splits)}"
            )
        if splits[-1] > last:
            raise ValueError(
                f"step_plan.split_steps must be at most {last}, the last of "
                f"{self.num_denoising_steps} denoising steps that may be stochastic, got "
                f"{splits[-1]}"
            )
        leaves = plan.num_branches ** len(splits)
        if self.group_size % leaves:
            raise ValueError(
                f"group_size must be a multiple of {leaves}, the leaves of a tree of "
                f"step_plan.num_branches {plan.num_branches} at {len(splits)} split_steps, got "
                f"{self.group_size}"
            )
        prunable = last - splits[-1] if plan.between == "sde" else 0
        if plan.pruned_steps > prunable:
            raise ValueError(
                f"step_plan.pruned_steps must be at most {prunable}, the trained steps behind the "
                f"last split, got {plan.pruned_steps}"
            )
        if plan.between == "window" and plan.num_steps > last + 1:
            raise ValueError(
                f"step_plan.num_steps must be at most {last + 1}, the steps that the window of a "
                f"tree can hold, got {plan.num_steps}"
            )

    @model_validator(mode="after")
    def _check_inference(self) -> RolloutConfig:
        if self.inference != InferenceConfig() and self.worker != "diffusion":
            raise ValueError(
                f"inference must be left out where worker is not 'diffusion', got worker "
                f"{self.worker!r}: no other worker can apply it"
            )
        if self.inference.batch_prompts != 1:
            raise ValueError(
                f"inference.batch_prompts must be 1, got {self.inference.batch_prompts}: an actor "
                "samples the group of one prompt at a time"
            )
        if self.inference.slim_decoder is not None:
            raise ValueError(
                f"inference.slim_decoder must be left out, got {self.inference.slim_decoder!r}: "
                "actors hand latents on, and the reward pool decodes them with the model's VAE, "
                "held-out clips among them"
            )
        if self.inference.vae != "whole":
            raise ValueError(
                f"inference.vae must be left out, got {self.inference.vae!r}: actors hand latents "
                "on. Set model.vae_tile, by which every process decodes"
            )
        if self.step_plan.kind == "ode" and not self.inference.samples_exactly:
            raise ValueError(
                f"inference must sample exactly where step_plan.kind is ode, got "
                f"{self.inference.describe()!r}: no step is trained whose replay drift the learner "
                "could measure. Leave out what is not exact"
            )
        if self.inference.guidance_interval is not None and self.guidance_scale == 1.0:
            raise ValueError(
                "inference.guidance_interval: guidance_scale 1 has no guidance to leave out: "
                f"expected a scale above 1, got interval {list(self.inference.guidance_interval)}. "
                "Leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_sequence_parallel(self) -> RolloutConfig:
        if self.sequence_parallel == 1:
            return self
        where = f"sequence_parallel: {self.sequence_parallel} processes share each clip: "
        if self.num_gpus not in (0.0, 1.0):
            raise ValueError(
                f"{where}expected num_gpus 1, a whole one for each, or 0 on CPUs, got "
                f"{self.num_gpus:g}"
            )
        if self.worker != "diffusion":
            raise ValueError(
                f"{where}expected worker 'diffusion', got {self.worker!r}: no other worker has a "
                "transformer to spread. Set sequence_parallel to 1"
            )
        fast = self.inference
        changes_forwards = (
            fast.attention is not None
            or fast.step_cache.kind != "none"
            or fast.quantise != "none"
            or fast.compile != "none"
        )
        if changes_forwards:
            raise ValueError(
                f"{where}expected no other attention kernel, step cache, quantisation or "
                f"compilation in inference, got {fast.describe()!r}: they change the modules "
                "between which tokens are exchanged. Leave them out"
            )
        return self

    @model_validator(mode="after")
    def _check_fleet(self) -> RolloutConfig:
        if self.stall_s < 2 * self.heartbeat_s:
            raise ValueError(
                f"stall_s must be at least twice heartbeat_s, since progress is only seen at a "
                f"heartbeat, got {self.stall_s:g} and {self.heartbeat_s:g}"
            )
        if self.num_spares and self.num_gpus:
            raise ValueError(
                f"num_spares must be 0 where actors have GPUs, got {self.num_spares} and num_gpus "
                f"{self.num_gpus:g}: Ray would keep a GPU idle for each"
            )
        bounds = self.autoscale
        if bounds and not bounds.min_actors <= self.num_actors <= bounds.max_actors:
            raise ValueError(
                f"num_actors must lie within autoscale.min_actors and max_actors, "
                f"got {self.num_actors} and {bounds.min_actors} to {bounds.max_actors}"
            )
        return self
