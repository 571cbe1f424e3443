"""The records that cross process borders, from prompt to learner batch.

Letters in shapes: G rollouts in a group, S trained denoising steps, C latent channels, F latent
frames, H W latent height and width, B a batch. Records are frozen; stages return new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the user asked for."""

    prompt_id: str
    """Stable name of the text and media (`rlvid.seeds.prompt_id`)."""
    text: str
    enhanced_text: str | None = None
    """What a prompt enhancer made of `text`; the model sees this one when it is there."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a checker may know of the wanted video, e.g. {"colour": "red", "motion": "falls"}."""
    questions: tuple[str, ...] = ()
    """Yes/no questions written for this prompt, "yes" being good; a judge may ask them."""
    media: Mapping[str, str] = field(default_factory=dict)
    """Name of `rlvid.media.SUFFIXES` to a file, e.g. {"first_frame": "/shared/beach.png"}; a path
    that holds on every machine of the run."""

    @property
    def model_text(self) -> str:
        return self.enhanced_text or self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSettings:
    """The noise of a stochastic denoising step."""

    schedule: str
    """Name in `rlvid.flow.sde.NOISE_SCHEDULES`."""
    eta: float
    """Strength; 0 is the ODE."""
    truncation: float
    """tau of the truncated schedule."""
    first_sigma: float
    """sigmas[1] of the plan: the Flash schedule's slope, and Flow-SDE's stand-in near sigma = 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Which denoising steps of a group are stochastic and which are trained.

    One plan serves a whole group (isotemporal grouping, Flash-GRPO, arXiv:2605.15980): rewards of a
    group are comparable only if its rollouts differ by the same kind of choice.
    """

    sigmas: tuple[float, ...]
    """[K+1] noise levels, 1 down to 0."""
    stochastic_steps: tuple[int, ...]
    """Indices into the K denoising steps, ascending; the SDE is used there and Euler elsewhere."""
    trained_steps: tuple[int, ...]
    """Subset of `stochastic_steps` that carries a gradient."""
    noise: NoiseSettings
    num_noises: int
    """Distinct initial noises of the group: 1 shared, `group_size` independent, else branches."""
    num_nodes: tuple[int, ...] = ()
    """Distinct states of the group after each of `stochastic_steps`, ascending, each a divisor of
    the group's size; () where every rollout goes its own way from the first of them on."""
    branch_scale: float | None = None
    """s of the noise (x_0 + s x_i) / sqrt(1 + s^2) that children of one state get, x_0 being theirs
    together (BranchGRPO, arXiv:2509.06040); None draws each by itself."""
    own_steps: tuple[int, ...] = ()
    """[G] the one step that each rollout takes with noise and trains, one of `trained_steps`; it
    follows the ODE of its initial noise up to there and an ODE of its own behind it (TempFlow-GRPO,
    arXiv:2508.04324). () where all rollouts take the same steps."""

    @property
    def num_steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def num_recorded(self) -> int:
        """S of a rollout: the steps that it trains."""
        return 1 if self.own_steps else len(self.trained_steps)

    def noise_index(self, rollout_index: int, group_size: int) -> int:
        """Which of the group's initial noises the rollout starts from."""
        return rollout_index * self.num_noises // group_size

    def nodes_before(self, step: int, group_size: int) -> int:
        """Distinct states of the group at the start of a step; node n has the rollouts i with
        i * nodes // group_size == n, unless they have steps of their own."""
        if self.own_steps:
            is_shared = step <= max(self.own_steps)
            return is_shared * self.num_noises + sum(own < step for own in self.own_steps)
        taken = sum(j < step for j in self.stochastic_steps)
        if not taken:
            return self.num_noises
        return self.num_nodes[taken - 1] if self.num_nodes else group_size

    def nodes_after(self, step: int, group_size: int) -> int:
        """Likewise at its end."""
        return self.nodes_before(step + 1, group_size)

    def num_starts(self, step: int, group_size: int) -> int:
        """Distinct states from which a step is trained."""
        return self.num_noises if self.own_steps else self.nodes_before(step, group_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTask:
    """One group to sample: everything but the weights, so that it replays anywhere."""

    group_id: str
    """Unique in the run: "step-position", e.g. "000012-0003"."""
    lease_id: str
    prompt: Prompt
    plan: StepPlan
    noise_seeds: tuple[int, ...]
    """[G]; equal seeds share their initial noise and the work up to the first stochastic step."""
    step_seeds: tuple[int, ...]
    """[G]."""
    guidance_scale: float
    is_pinned: bool = False
    """A measurement: sampled with the plain model, whatever `rollout.inference` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled video and what the learner needs to score its trained steps again."""

    index: int
    """Place in the group, 0 to G-1."""
    noise_seed: int
    """Seeds the initial noise; shared by rollouts of one `noise_index`."""
    step_seed: int
    """Seeds the noise of every stochastic step; its own in every rollout."""
    latents: Tensor
    """[C, F, H, W] float32, the clean end of the trajectory, normalised as the model sees it."""
    trained_latents: Tensor
    """[S, C, F, H, W] state before each trained step, of which S is `plan.num_recorded`."""
    trained_next_latents: Tensor
    """[S, C, F, H, W] state after each trained step."""
    behaviour_mean: Tensor
    """[S, C, F, H, W] mean of the transition when it was sampled."""
    behaviour_log_prob: Tensor
    """[S] float32, summed over elements, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The rollouts of one prompt under one step plan."""

    group_id: str
    """Unique in the run: "step-position", e.g. "000012-0003"."""
    lease_id: str
    """Which lease of the group this answers; a late answer of an expired lease is refused by it."""
    prompt: Prompt
    plan: StepPlan
    rollouts: tuple[Rollout, ...]
    policy_version: int
    weights_digest: str
    """Digest of the manifest of the weights that sampled it."""
    actor_id: str
    sample_s: float
    """Seconds the actor spent sampling the group."""
    num_forwards: int
    """Latents handed to the model; with guidance its transformer saw each of them twice."""
    swap_s: float = 0.0
    """Seconds by which new weights held the group up; 0 where none were waiting."""

    def summary(self, digest: str = "") -> GroupSummary:
        """Return what the driver may know; `digest` is `group_digest.digest_of_group`'s."""
        return GroupSummary(
            group_id=self.group_id,
            lease_id=self.lease_id,
            actor_id=self.actor_id,
            policy_version=self.policy_version,
            weights_digest=self.weights_digest,
            sample_s=self.sample_s,
            num_forwards=self.num_forwards,
            swap_s=self.swap_s,
            digest=digest,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """What the driver may know of a sampled group; the group itself never passes through it."""

    group_id: str
    lease_id: str
    actor_id: str
    policy_version: int
    weights_digest: str
    sample_s: float
    num_forwards: int
    swap_s: float = 0.0
    digest: str = ""
    """Of what was sampled (`rlvid.group_digest`); "" where nobody took it."""
    peak_mib: float = 0.0
    """Most memory its process had held by then (`rlvid.observability.memory_peak`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What one scorer said of one rollout."""

    group_id: str
    index: int
    scorer: str
    value: float | None
    """None when the scorer failed; the sample is then masked and counted, never scored 0."""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerBatch:
    """The trained steps of one group with their credit, ready for the loss. N = G * S rows.

    Rollouts that are still one node of a tree at a step have equal rows there; the first of them is
    trained for all.
    """

    prompt: Prompt
    sigma: Tensor
    """[N] float32."""
    sigma_next: Tensor
    """[N] float32."""
    latents: Tensor
    """[N, C, F, H, W]."""
    next_latents: Tensor
    """[N, C, F, H, W]."""
    behaviour_mean: Tensor
    """[N, C, F, H, W]."""
    behaviour_log_prob: Tensor
    """[N]."""
    advantage: Tensor
    """[N]; 0 where `trained` is False."""
    trained: Tensor
    """[N] bool; a False row is forwarded, so that batches are the rollout's, but not learned."""
    step_weight: Tensor
    """[N], the W of methods section 3.2, already normalised over the whole update."""
    forward_row: Tensor
    """[N] int64: row of `unique_rows` whose forward serves row n (same state and step)."""
    unique_rows: Tensor
    """[U] int64: rows that need a forward of their own; U = N unless initial noise is shared."""
    noise: NoiseSettings
    pulled: Tensor | None = None
    """[N] bool: rows on which the KL acts; None is all."""
    is_on_policy: bool = True
    """Sampled with the very weights that the update starts from: its importance weight is 1."""
    proximal_log_ratio: Tensor | None = None
    """[N] log ratio of the policy at the start of the update to the behaviour; None in the first
    update on the rows, whose own forward is that policy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsBucket:
    """One flat buffer of a weights publish."""

    index: int
    num_bytes: int
    digest: str
    """xxh3-128 of the bytes, hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsTensor:
    """Where one parameter lies in the buckets."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bucket: int
    offset: int
    """Bytes from the start of the bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsManifest:
    """What a publish contains; an actor takes the weights only if all of it holds."""

    incarnation: int
    """Starts of the learner in the run, this one counted; one that starts again publishes its
    versions again, and they are the newer ones."""
    version: int
    parent_version: int
    kind: str
    """"full" or "lora"."""
    base_digest: str
    """Digest of the model folder the weights belong to; an actor with another base refuses."""
    tensors: tuple[WeightsTensor, ...]
    buckets: tuple[WeightsBucket, ...]
    num_bound: int
    """Modules of the transformer that the published adapter binds; 0 for "full"."""
    canary_tolerance: float
    """Largest difference between the learner's canary velocity and an actor's."""
    digest: str
    """xxh3-128 over versions, names, shapes, dtypes, offsets and bucket digests, hex."""

    @property
    def order(self) -> tuple[int, int]:
        """What makes one publish newer than another."""
        return (self.incarnation, self.version)

    @property
    def num_bytes(self) -> int:
        return sum(bucket.num_bytes for bucket in self.buckets)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReceipt:
    """An actor's word that it holds a verified publish, and samples with it from its next group."""

    actor_id: str
    version: int
    incarnation: int
    digest: str
    """Of the manifest it took."""
    num_bytes: int
    transport_s: float
    """Seconds until the bytes had reached the actor, where the actor itself fetches them."""
    copy_s: float
    """Seconds of copying them into the spare buffer."""
    verify_s: float
    """Seconds of hashing them."""
    swap_s: float
    """Seconds of making them the live ones; 0 where that is left to the next group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimiser step says about itself; `metrics` uses names of the metrics table."""

    step: int
    metrics: Mapping[str, float]
    trained_group_ids: Sequence[str] = ()
    dropped_group_ids: Sequence[str] = ()
