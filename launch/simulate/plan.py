"""What is simulated, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlvid.config.elasticity import AutoscaleConfig
from rlvid.launch.simulate.costs import CostModel
from rlvid.launch.simulate.failures import FailureRates


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationPlan:
    """A run, without what it computes."""

    num_steps: int = 100
    groups_per_step: int = 8
    group_size: int = 8
    chunk_groups: int = 1
    """Groups of a chunk, as `schedule.chunk_size` says."""
    num_ranks: int = 1
    max_staleness: int = 0
    num_actors: int = 1
    num_reward_workers: int = 1
    num_prompts: int = 64
    checkpoint_every: int = 0
    """Steps; 0 never, so that a lost learner starts from the beginning."""
    evaluate_every: int = 0
    evaluate_groups: int = 0
    keeps_groups: bool = True
    """Scored groups are on disk, so that restarts lose none."""
    costs: CostModel = CostModel()
    failures: FailureRates = FailureRates()
    uniform_frac: float = 0.0
    """Share of groups whose rewards have no spread, which are dropped."""
    stops: Mapping[float, float] = field(default_factory=dict)
    """Seconds at which the run is asked to make room, to the seconds it is given."""
    deadly_prompts: frozenset[int] = frozenset()
    """Numbers of prompts that kill every actor."""
    dead_actors: frozenset[int] = frozenset()
    """Slots whose every process dies."""
    scale: Mapping[float, int] = field(default_factory=dict)
    """Seconds to the number of actors from then on."""
    autoscale: AutoscaleConfig | None = None
    prefetch: bool = True
    deadline_s: float = 300.0
    """As `rollout.deadline_s`."""
    stall_s: float = 60.0
    heartbeat_s: float = 10.0
    start_deadline_s: float = 240.0
    crash_budget: int = 3
    """Losses an actor within `crash_window_s`."""
    crash_window_s: float = 600.0
    max_deaths_per_prompt: int = 3
    reward_deadline_s: float = 60.0
    gpus_per_actor: float = 0.0
    gpus_per_rank: float = 0.0
    gpus_per_reward_worker: float = 0.0
    cpus_per_actor: float = 1.0
    cpus_per_rank: float = 1.0
    cpus_per_reward_worker: float = 1.0
    seed: int = 0

    @property
    def ideal_stages_s(self) -> dict[str, float]:
        """Seconds that each role needs for a step when nobody else holds it up."""
        costs, groups = self.costs, self.groups_per_step
        busy_actors = min(self.num_actors, groups * (self.max_staleness + 1))
        scoring = costs.decode_s.mean_s + costs.reward_s.mean_s
        return {
            "rollouts": groups * costs.sample_s.mean_s / busy_actors + costs.swap_s.mean_s,
            "rewards": groups * scoring / self.num_reward_workers,
            "learner": groups * costs.train_s.mean_s
            + costs.update_s.mean_s
            + costs.gather_s.mean_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """What a run took; shares and seconds a step leave out the start, before all roles had work."""

    num_actors: int
    max_staleness: int
    num_steps: int
    wall_s: float
    """From the start of the roles to the last publish."""
    step_s: float
    """Mean of a step."""
    ideal_s: float
    """Of the slowest role, were the others never in its way."""
    videos_per_s: float
    """Learned from."""
    learner_idle_frac: float
    rollout_busy_frac: float
    """Share of the actors' time in which they sampled."""
    reward_busy_frac: float
    exposed_reward_s: float
    """Seconds a step in which the learner waited for scores of groups that were all sampled."""
    exposed_rollout_s: float
    """The same for groups that were being sampled."""
    staleness: Mapping[int, int]
    """Versions behind to groups, of those learned from."""
    groups: Mapping[str, int]
    """issued, consumed, dropped, in flight."""
    failures: Mapping[str, int]
    """What was made to go wrong."""
    refused: Mapping[str, int]
    """lost, late, stale, quarantined groups."""
    wasted_sampling_frac: float
    """Share of the actors' work that no group came of."""
    steps_repeated: int
    """Optimiser steps that were done again."""
    ettr: float
    """Share of wall time that is in the policy (`rlvid.observability.recovery`)."""
    gpu_hours: float
    cpu_hours: float
    money: float
    wall_clock_s: float
    """What the simulation itself took."""

    def to_json(self) -> dict[str, Any]:
        return {
            name: dict(value) if isinstance(value := getattr(self, name), Mapping) else value
            for name in self.__slots__
        }
