"""What the fleet of rollout actors knows, and what it wants done. Plain records, no Ray."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from rlvid.config.elasticity import AutoscaleConfig

MAX_TASKS = 2
"""Groups an actor is given: one it samples and one that waits there, which hides the way back."""
MAX_REFUSALS = 3
"""Times an actor may refuse one publish; it fetches anew each time, then it is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """What the recipe says; see `RolloutConfig` and `WeightsConfig` for the meaning of each."""

    deadline_s: float
    stall_s: float
    heartbeat_s: float
    start_deadline_s: float
    crash_budget: int
    crash_window_s: float
    weights_deadline_s: float = 120.0
    prefetch: bool = True
    autoscale: AutoscaleConfig | None = None
    max_starting: int | None = None
    """None is no limit."""
    node_group: str | None = None
    """For messages."""


class RolloutLostError(RuntimeError):
    """Rollout actors died or did not answer, and more of them would not help."""


class Publish(NamedTuple):
    """Orders publishes: a restarted learner starts from an older version, and is still newer."""

    incarnation: int
    """Learner starts before it in this run."""
    version: int


class State(StrEnum):
    """How far an actor has come."""

    PENDING = "pending"
    """Asked for; the cluster has not started its process yet."""
    LOADING = "loading"
    """Its process answers and loads the model."""
    JOINING = "joining"
    """Takes its first weights, then answers the canary where one is set."""
    READY = "ready"


class Cause(StrEnum):
    """Why a group came back, or why an actor was replaced."""

    DIED = "died"
    STUCK = "stuck"
    FAILED = "failed"
    """Sampling raised; as a reason to replace: loading did."""
    STALE = "stale"
    """Sampled, or only to be sampled, with other versions than the task allows; nobody's fault."""
    WEIGHTS = "weights"
    """The actor refused a publish `MAX_REFUSALS` times."""
    CANARY = "canary"
    """Its velocity differs from the learner's."""

    @property
    def blames_prompt(self) -> bool:
        """Whether it may be the prompt that does it; quarantine counts these."""
        return self in (Cause.DIED, Cause.STUCK, Cause.FAILED)

    @property
    def replaces(self) -> bool:
        """Whether an actor may be replaced for it."""
        return self is not Cause.STALE


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTask:
    """A group to sample, as far as the fleet must know it."""

    lease_id: str
    """Unique; a group that is leased again comes under another one."""
    group_id: str
    """Tasks are given out in the order of group ids, so the oldest step goes first."""
    prompt_id: str
    min_version: int = -1
    max_version: int | None = None


@dataclass(slots=True, eq=False)
class Held:
    """A task at an actor."""

    task: FleetTask
    is_withdrawing: bool = False


@dataclass(slots=True, eq=False)
class Slot:
    """A place for an actor; the actor in it is replaced when it dies."""

    index: int
    is_wanted: bool = True
    actor_id: str | None = None
    num_spawned: int = 0
    failures_in_a_row: int = 0
    """Actors lost here since the last group one of them finished."""
    respawn_at: float | None = None


@dataclass(slots=True, eq=False)
class Actor:
    """One process; a replacement is another one."""

    actor_id: str
    slot: Slot
    since: float
    """When its present state began."""
    state: State = State.PENDING
    is_reported: bool = False
    """Whether it was said aloud that it is pending."""
    is_leaving: bool = False
    """Finishes what it samples, takes nothing more, then ends."""
    tasks: deque[Held] = field(default_factory=deque)
    head_since: float = 0.0
    """When it began with the first of its tasks."""
    device: str = ""
    num_steps: int = 0
    """Denoising steps it said it has done."""
    progressed: float = 0.0
    """When that number last grew."""
    next_probe: float = 0.0
    probe_sent: float | None = None
    held: Publish | None = None
    """The newest weights it said it has taken; its next group is sampled with these or newer."""
    staging: Publish | None = None
    staging_since: float = 0.0
    num_refusals: int = 0
    checked: Publish | None = None
    """Weights with which it answered the canary rightly."""
    canary_since: float | None = None
    armed_at: float | None = None
    place: tuple[int, int] | None = None
    """(tasks, version) under which it is listed as able to take tasks."""

    @property
    def version(self) -> int:
        """Version of its weights; -1 is the policy from files."""
        return -1 if self.held is None else self.held.version

    @property
    def is_open(self) -> bool:
        return self.state in (State.JOINING, State.READY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """Start a process; answer `appeared`, then `opened` or `open_failed`."""

    actor_id: str
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """Have an open actor load the present policy from files; answer `opened` or `open_failed`."""

    actor_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Send a task; the actor does its tasks one after the other. Answer `sampled` or `failed`."""

    actor_id: str
    task: FleetTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """Take back a task that waits at an actor; answer `withdrawn`."""

    actor_id: str
    lease_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Have an actor take weights beside what it does; answer `staged`, `stage_refused` or
    `stage_unreachable`."""

    actor_id: str
    publish: Publish


@dataclass(frozen=True, slots=True, kw_only=True)
class AskCanary:
    """Ask for the velocity of the fixed input; answer `canary_answered`."""

    actor_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Ask for the denoising steps done so far; answer `progress`."""

    actor_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """End a process, whatever it does."""

    actor_id: str
    is_stuck: bool
    """A stopped process hears no polite word: it needs SIGKILL from outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Hand a group back: it must be leased anew, or given up."""

    task: FleetTask
    actor_id: str
    cause: Cause
    reason: str


Action = Spawn | Reload | Sample | Withdraw | Stage | AskCanary | Probe | Kill | Lost
