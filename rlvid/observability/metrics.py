"""The table of everything rlvid measures: one row a metric, with unit, healthy range and meaning.

Names are `area/name/statistic`. A part in angle brackets stands for any one name, e.g. a scorer's.
Writing a metric that is not in the table is an error, so that no dashboard is ever empty by a typo.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Metric:
    """What one metric means."""

    unit: str
    """"1" for a plain number, "frac" for a share in [0, 1], "s", "nats", ..."""
    healthy: tuple[float | None, float | None] | None
    """(low, high) in which a good run stays, None where a bound does not matter; None: no range."""
    meaning: str


METRICS: dict[str, Metric] = {
    "rollout/reward/mean": Metric("1", None, "reward of the step's rollouts, scorers weighted"),
    "rollout/reward/std": Metric("1", (1e-6, None), "its spread over all rollouts of the step"),
    "rollout/reward/group_std": Metric("1", (1e-6, None), "mean spread inside a group"),
    "rollout/reward/min": Metric("1", None, "lowest reward of the step"),
    "rollout/reward/max": Metric("1", None, "highest reward of the step"),
    "rollout/groups/consumed": Metric("count", (1, None), "groups the step trained on"),
    "rollout/groups/dropped": Metric("count", (0, 0), "groups dropped for a stated reason"),
    "rollout/groups/uniform": Metric("count", None, "groups without spread, which teach nothing"),
    "rollout/groups/reissued": Metric("count", (0, 0), "leases that expired and were issued again"),
    "rollout/groups/refused": Metric("count", (0, 0), "late answers of expired leases"),
    "rollout/groups/stale": Metric("count", (0, 0), "groups older than max_staleness"),
    "rollout/staleness/mean": Metric("versions", (0, None), "policy versions behind when consumed"),
    "rollout/staleness/max": Metric("versions", (0, None), "the most any group was behind"),
    "stale/<versions>/count": Metric("count", None, "consumed groups that many versions behind"),
    "waste/<reason>/videos": Metric("count", (0, 0), "videos sampled that no step trained on"),
    "waste/<reason>/seconds": Metric("s", (0, 0), "work of actors and scorers that went with them"),
    "rollout/videos/per_s": Metric("1/s", (0, None), "videos consumed in a second of wall time"),
    "rollout/forwards/count": Metric(
        "count", (1, None), "latents handed to the model while sampling"
    ),
    "rollout/clips/count": Metric("count", (0, None), "clips of the step's groups, each decoded"),
    "rollout/actors/lost": Metric("count", (0, 0), "actors that died or stalled in the step"),
    "rollout/actors/alive": Metric("count", (1, None), "actors at the end of the step"),
    "rollout/actors/wanted": Metric("count", (1, None), "actors asked for"),
    "rollout/actors/pending": Metric("count", (0, 0), "actors the cluster has no room for as yet"),
    "rollout/actors/spare": Metric("count", (0, None), "processes ready for actors that join"),
    "rollout/actors/starting": Metric("count", (0, None), "actors that load or take weights"),
    "rollout/actors/draining": Metric("count", (0, None), "actors that end after their group"),
    "rollout/actors/busy": Metric("count", (0, None), "actors that sample now"),
    "rollout/replaced/<cause>": Metric("count", (0, 0), "actors replaced: died, stuck, failed"),
    "rollout/busy/frac": Metric("frac", (0, 1), "share of ready actors' time spent sampling"),
    "rollout/queued/frac": Metric("frac", (0, 1), "share of time groups waited for an actor"),
    "rollout/queue/length": Metric("count", (0, None), "groups that wait for an actor now"),
    "rollout/groups/late": Metric("count", (0, 0), "answers of actors that were replaced"),
    "rollout/groups/withdrawn": Metric("count", (0, None), "groups moved to an idle actor"),
    "rollout/canary/passed": Metric("count", (0, None), "actors whose canary fitted"),
    "rollout/canary/unchecked": Metric("count", (0, None), "actors that joined without a canary"),
    "rewards/<scorer>/mean": Metric("1", None, "unweighted score of one scorer"),
    "rewards/<scorer>/std": Metric("1", (1e-6, None), "its spread over the step's rollouts"),
    "rewards/<scorer>/weight": Metric("1", None, "its weight in force, moved by a curriculum"),
    "rewards/<scorer>/missing_frac": Metric("frac", (0, 0.1), "share of samples it did not score"),
    "servers/<server>/up": Metric("count", (1, None), "replicas of a model server that answer"),
    "servers/<server>/restarts": Metric("count", (0, 0), "restarts of its replicas in the run"),
    "servers/<server>/reattached": Metric(
        "count", (0, None), "replicas that an earlier driver had started and kept"
    ),
    "servers/<server>/start_s": Metric("s", (0, None), "slowest start of its replicas"),
    "rewards/<scorer>/calls": Metric("count", (0, None), "batches it answered"),
    "rewards/<scorer>/latency_p50_s": Metric("s", (0, None), "median time of a call, queue apart"),
    "rewards/<scorer>/latency_p95_s": Metric("s", (0, None), "95 % of its calls take no longer"),
    "rewards/<scorer>/latency_p99_s": Metric("s", (0, None), "99 % of its calls take no longer"),
    "rewards/<scorer>/busy_s": Metric("s", (0, None), "work of its calls, waits for servers too"),
    "rewards/<scorer>/tflop": Metric("TFLOP", (0, None), "of the scores in the step's groups"),
    "rewards/<scorer>/peak_tflops": Metric("TFLOP/s", None, "dense bf16 of its replicas' devices"),
    "rewards/<scorer>/mfu_frac": Metric("frac", (0, 1), "as mfu/<role>/frac, by counted FLOPs"),
    "rewards/<scorer>/batch_fill_frac": Metric("frac", (0, 1), "clips per call over batch_size"),
    "rewards/<scorer>/queue_now": Metric("count", (0, None), "clips that wait for it"),
    "rewards/<scorer>/queue_max": Metric("count", (0, None), "the most that waited at once"),
    "rewards/<scorer>/errors": Metric("count", (0, 0), "clips it gave no score for"),
    "rewards/<scorer>/retries": Metric("count", (0, 0), "clips tried again after a failed call"),
    "rewards/<scorer>/timeouts": Metric("count", (0, 0), "calls and groups over their deadline"),
    "rewards/<scorer>/cache_hit_frac": Metric("frac", (0, 1), "clips whose score was known"),
    "rewards/<scorer>/replicas": Metric("count", (1, None), "replicas that are open"),
    "rewards/<scorer>/replaced": Metric("count", (0, 0), "replicas that died or were given up"),
    "rewards/<scorer>/breaker_openings": Metric(
        "count", (0, 0), "times a replica was given nothing for a while"
    ),
    "reward_pool/decode/seconds": Metric("s", (0, None), "work of turning latents into clips"),
    "reward_pool/decode/groups": Metric("count", (0, None), "groups decoded, each once"),
    "reward_pool/exposed_tail/seconds": Metric(
        "s", (0, None), "from the last group of the step to its last score"
    ),
    "learner/loss/mean": Metric("1", None, "surrogate loss plus KL term"),
    "learner/policy_loss/mean": Metric("1", None, "surrogate loss alone"),
    "learner/ratio/mean": Metric("1", (0.99, 1.01), "tempered ratio of policy to behaviour"),
    "learner/ratio/max_deviation": Metric("1", None, "largest |ratio - 1| of the step"),
    "learner/replay_drift/max": Metric("1", None, "|ratio - 1| before an update; below clip range"),
    "learner/clip/frac": Metric("frac", (0, 0.5), "rows whose gradient the trust region cut off"),
    "learner/kl/mean": Metric("nats", (0, None), "closed-form KL to the reference or anchor"),
    "learner/anchor_kl/mean": Metric("nats", (0, None), "of a dual pull, to the moving anchor"),
    "learner/pulled/frac": Metric("frac", (0, 1), "rows on which a selective KL acts"),
    "learner/advantage/std": Metric("1", (1e-6, None), "spread of the advantages after clipping"),
    "learner/advantage/clipped_frac": Metric("frac", (0, 0.1), "advantages cut to the clip value"),
    "learner/step_weight/mean": Metric("1", None, "mean weight of the trained steps"),
    "learner/grad_norm/total": Metric("1", (0, None), "gradient norm before clipping"),
    "learner/learning_rate/value": Metric("1", (0, None), "learning rate of the step"),
    "learner/rows/count": Metric("count", (1, None), "transitions in the step's loss"),
    "learner/forwards/count": Metric("count", (1, None), "transformer evaluations of the update"),
    "learner/forwards/seconds": Metric("s", (0, None), "their forward and backward passes took"),
    "learner/forward_rows/count": Metric(
        "count", (1, None), "latents handed to the model; with guidance it sees each twice"
    ),
    "learner/chunks/count": Metric("count", (1, None), "pieces in which the batch came"),
    "learner/importance/mean": Metric("1", (0.9, 1.1), "mean truncated importance weight"),
    "learner/importance/truncated_frac": Metric(
        "frac", (0, 0.05), "rows whose importance weight was cut to the cap"
    ),
    "learner/old_distance/mean": Metric("1", (0, None), "mean square of velocity minus old one"),
    "learner/reference_distance/mean": Metric("1", (0, None), "likewise to the reference"),
    "learner/implicit_margin/mean": Metric("nats", None, "by how much dpo's pairs are in order"),
    "learner/pairs_right/frac": Metric("frac", (0, 1), "dpo's pairs that are in order"),
    "learner/data_loss/mean": Metric("1", (0, None), "flow-matching loss of the clips beside"),
    "learner/differentiable_reward/mean": Metric("1", None, "what refl's own reward says"),
    "learner/devices/peak_tflops": Metric("TFLOP/s", None, "dense bf16 of all ranks, where known"),
    "learner/memory/peak_mb": Metric("MB", None, "most a rank held on its GPU, or its own in RAM"),
    "rollout/memory/peak_mb": Metric("MB", None, "likewise an actor"),
    "reward_pool/devices/peak_tflops": Metric("TFLOP/s", None, "dense bf16 of all that decode"),
    "reward_pool/memory/peak_mb": Metric("MB", None, "likewise a process that decodes"),
    "dpo/loss/mean": Metric("1", (0, None), "of stored pairs; log 2 before the first step"),
    "dpo/implicit_margin/mean": Metric("nats", None, "by how much stored pairs are in order"),
    "dpo/pairs_right/frac": Metric("frac", (0, 1), "stored pairs that are in order"),
    "dpo/grad_norm/total": Metric("1", (0, None), "gradient norm before clipping"),
    "dpo/learning_rate/value": Metric("1", (0, None), "learning rate of the step"),
    "dpo/pairs/per_s": Metric("1/s", (0, None), "pairs trained on in a second"),
    "tiny_base/vae_loss/mean": Metric("1", (0, None), "weighted L1 and KL of the tiny VAE"),
    "data_engine/clips/planned": Metric("count", (1, None), "clips to be rendered"),
    "data_engine/clips/kept": Metric("count", (0, None), "those an earlier attempt had rendered"),
    "data_engine/clips/rendered": Metric("count", (0, None), "those rendered by this attempt"),
    "data_engine/clips/quarantined": Metric("count", (0, 0), "clips of prompts that cost actors"),
    "data_engine/clips/per_s": Metric("1/s", (0, None), "clips rendered, scored and on the disk"),
    "data_engine/prompts_<form>/written": Metric("count", (1, None), "prompts, base or long form"),
    "data_engine/prompts_<form>/kept": Metric("count", (1, None), "those that passed the filters"),
    "data_engine/prompts_<form>/dropped_<reason>": Metric("count", None, "dropped for the reason"),
    "data_engine/llm/broken_<kind>": Metric("count", (0, 0), "answers that could not be read"),
    "data_engine/llm/given_up_<kind>": Metric("count", (0, 0), "requests without a read answer"),
    "intake/clips/seen": Metric("count", (1, None), "real clips that the sources hold"),
    "intake/clips/kept": Metric("count", (1, None), "those that were taken in"),
    "intake/clips/dropped": Metric("count", None, "those that were not, for a stated reason"),
    "intake/dropped/<reason>": Metric("count", None, "real clips dropped for the reason"),
    "sft/loss/mean": Metric("1", (0, None), "flow-matching loss"),
    "sft/grad_norm/total": Metric("1", (0, None), "gradient norm before clipping"),
    "sft/learning_rate/value": Metric("1", (0, None), "learning rate of the step"),
    "sft/projection/conflicts": Metric(
        "count", (0, None), "pairs of dimensions whose gradients went against each other"
    ),
    "sft/clips/per_s": Metric("1/s", (0, None), "clips trained on in a second"),
    "distillation/loss/mean": Metric("1", (0, None), "regression of a causal teacher or student"),
    "distillation/dmd_gradient/mean": Metric(
        "1", (0, None), "mean |gradient| of an element of the student's clips"
    ),
    "distillation/gan_gradient/mean": Metric("1", (0, None), "the same of the weighted GAN term"),
    "distillation/discriminator_loss/mean": Metric(
        "nats", (0, None), "GAN loss of the discriminator, weighted; 2 log 2 times it if undecided"
    ),
    "distillation/grad_norm/total": Metric("1", (0, None), "student's norm before clipping"),
    "distillation/learning_rate/value": Metric("1", (0, None), "learning rate of the student"),
    "distillation/fake_loss/mean": Metric("1", (0, None), "denoising loss of the fake score"),
    "distillation/fake_grad_norm/total": Metric("1", (0, None), "its norm before clipping"),
    "distillation/motion/mean": Metric(
        "1", (0, None), "mean |frame - frame before| of the student's clips, pixels in [0, 1]"
    ),
    "distillation/motion/teacher": Metric("1", (0, None), "the same of the teacher's clips"),
    "distillation/motion/is_faded": Metric("count", (0, 0), "1 where fading motion ends the stage"),
    "distillation/clips/per_s": Metric("1/s", (0, None), "clips trained on in a second"),
    "reward_model/loss/mean": Metric("nats", (0, None), "loss of the step's preference pairs"),
    "reward_model/accuracy/mean": Metric("frac", None, "winners found in the step's pairs"),
    "reward_model/grad_norm/total": Metric("1", (0, None), "gradient norm before clipping"),
    "reward_model/learning_rate/value": Metric("1", (0, None), "learning rate of the step"),
    "reward_model/projected/frac": Metric("frac", None, "1 where old pairs changed the gradient"),
    "reward_model/<part>/heldout_accuracy": Metric(
        "frac", (0.5, 1), "winners found among held-out pairs"
    ),
    "reward_model/<part>/calibration_error": Metric(
        "frac", (0, 0.2), "mean |predicted - observed| chance of A winning, held-out pairs"
    ),
    "enhance/lesson_loss/mean": Metric("nats", (0, None), "cold start's loss, weighted by length"),
    "enhance/lesson_grad_norm/total": Metric("1", (0, None), "its gradient norm before clipping"),
    "enhance/loss/mean": Metric("1", None, "clipped loss of the rewrites plus KL term"),
    "enhance/ratio/mean": Metric("1", (0.9, 1.1), "of policy to behaviour, a token"),
    "enhance/ratio/max_deviation": Metric("1", None, "largest |ratio - 1| of a token"),
    "enhance/clip/frac": Metric("frac", (0, 0.5), "tokens whose gradient the clip cut off"),
    "enhance/kl/mean": Metric("nats", (0, None), "k3 of a token to the rewriter before training"),
    "enhance/grad_norm/total": Metric("1", (0, None), "gradient norm before clipping"),
    "enhance/learning_rate/value": Metric("1", (0, None), "learning rate of the step"),
    "enhance/rows/count": Metric("count", (1, None), "rewrites that were learned from"),
    "enhance/tokens/mean": Metric("count", None, "tokens of an answer"),
    "enhance/sampling_drift/max": Metric(
        "nats", (0, 0.02), "largest difference of a token's log-probability, sampler to learner"
    ),
    "enhance/sampling_drift/mean": Metric("nats", (0, 0.02), "the same, in the mean"),
    "enhance/importance/mean": Metric("1", (0.95, 1.05), "truncated weight of a served token"),
    "enhance/asked_again/count": Metric("count", (0, 0), "requests that a server broke off"),
    "enhance/reward/mean": Metric("1", None, "weighted parts of the rewrites' reward, raw"),
    "enhance/reward/std": Metric("1", (1e-6, None), "its spread over the step's rewrites"),
    "enhance/part_<part>/mean": Metric("1", None, "one part: video, structure, length, intent"),
    "enhance/malformed/frac": Metric("frac", (0, 0.2), "answers without a prompt to be used"),
    "enhance/failure_<kind>/count": Metric("count", (0, 0), "answers malformed in this way"),
    "enhance/intent_dropped/count": Metric("count", (0, 0), "wishes of users that rewrites lost"),
    "enhance/intent_contradicted/count": Metric("count", (0, 0), "wishes that they contradict"),
    "enhance/groups/dropped": Metric("count", None, "prompts whose rewrites taught nothing"),
    "enhance/clips/per_s": Metric("1/s", (0, None), "clips rendered and scored"),
    "enhance/heldout_plain/mean": Metric("1", None, "reward of held-out prompts as written"),
    "enhance/heldout_gain/mean": Metric("1", (0, None), "reward that rewriting them adds"),
    "enhance/heldout_malformed/frac": Metric("frac", (0, 0.2), "of them not rewritten, as written"),
    "enhance/heldout_drifted/frac": Metric("frac", (0, 0.2), "rewrites that lost a wish or more"),
    "heldout/reward/mean": Metric("1", None, "reward on held-out prompts, pinned ODE sampler"),
    "heldout/reward/std": Metric("1", None, "its spread over held-out clips"),
    "heldout/<scorer>/mean": Metric("1", None, "one scorer or judge on held-out prompts"),
    "heldout/<scorer>/change": Metric("1", None, "mean change since the first evaluation"),
    "heldout/<scorer>/change_low": Metric("1", None, "lower end of its bootstrap interval"),
    "heldout/<scorer>/change_high": Metric("1", None, "upper end of its bootstrap interval"),
    "guards/<guard>/mean": Metric("frac", None, "over_exposure, ... of rollouts; more is worse"),
    "guards/<guard>/heldout_mean": Metric("frac", None, "the same of held-out clips"),
    "correlation/<pair>/pearson": Metric("1", None, "of two scorers over the window's rollouts"),
    "correlation/<pair>/spearman": Metric("1", None, "of their ranks over the window's rollouts"),
    "correlation/<pair>/pearson_in_group": Metric("1", None, "inside groups, which is what trains"),
    "correlation/<pair>/spearman_in_group": Metric("1", None, "of their ranks inside groups"),
    "alarms/<kind>/active": Metric("count", (0, 0), "signs of reward hacking that are on"),
    "weights/version/value": Metric("version", (0, None), "policy version after the step"),
    "weights/publish/mb": Metric("MB", (0, None), "bytes of the publish"),
    "weights/unreachable/count": Metric(
        "count", (0, 0), "times the bytes of a publish were gone with their node"
    ),
    "weights/rejected/count": Metric("count", (0, 0), "publishes refused by a digest or canary"),
    "weights/gather/seconds": Metric("s", (0, None), "collecting a publish from the ranks"),
    "weights/d2h/seconds": Metric("s", (0, None), "copying it from devices to host memory"),
    "weights/hash/seconds": Metric("s", (0, None), "hashing it, of the slowest rank"),
    "weights/transport/seconds": Metric("s", (0, None), "slowest way of a publish to an actor"),
    "weights/verify/seconds": Metric("s", (0, None), "slowest check of its digests at an actor"),
    "weights/swap_pause/seconds": Metric("s", (0, 1), "longest an actor paused to swap weights"),
    "weights/version_lag/max": Metric("versions", (0, None), "most an actor is behind the newest"),
    "numerics/canary/max_diff": Metric("1", (0, None), "largest canary velocity difference"),
    "idle/<role>/frac": Metric("frac", (0, 1), "share of the step in which the role did no work"),
    "idle/<role>/on_<whom>_frac": Metric("frac", (0, 1), "share in which it waited for that role"),
    "overlap/<role>/seconds": Metric("s", (0, None), "work of the role, were nobody else there"),
    "overlap/step/over_ideal": Metric(
        "1", (1, None), "step time over that of the busier of actors and learner"
    ),
    "ft/<role>/restarts": Metric("count", (0, 0), "restarts of the role in the step"),
    "ft/lost/seconds": Metric("s", (0, 0), "wall time so far that is not in the policy"),
    "ft/ettr/frac": Metric("frac", (0.9, 1), "share of wall time so far that is in the policy"),
    "mfu/<role>/frac": Metric("frac", (0, 1), "matrix FLOPs over the devices' dense bf16 peak"),
    "storage/groups/written": Metric("count", (0, None), "scored groups written to the disk"),
    "storage/groups/failed": Metric("count", (0, 0), "groups whose write failed"),
    "storage/groups/late": Metric("count", (0, 0), "writes over storage.disk_deadline_s"),
    "storage/groups/backlog": Metric("count", (0, None), "groups not on the disk yet"),
    "storage/write/mb": Metric("MB", (0, None), "bytes of the groups written"),
    "storage/disk/mb": Metric("MB", (0, None), "groups on the disk after the step before"),
    "storage/write/seconds": Metric("s", (0, None), "their writes' seconds, each from its start"),
    "time/step/seconds": Metric("s", (0, None), "wall time of the whole step"),
    "time/<stage>/seconds": Metric("s", (0, None), "wall time of one stage of the step"),
}
"""Name to meaning; docs, recorder and report all read this table."""


def metric(name: str) -> Metric:
    """Return the row of a metric.

    Raises:
        ValueError: the name is not in the table.
    """
    return METRICS[pattern_of(name)]


@lru_cache(maxsize=4096)
def pattern_of(name: str) -> str:
    """Return the row's own name, with the angle brackets: "rewards/<scorer>/mean".

    Raises:
        ValueError: the name is not in the table.
    """
    if name in METRICS:
        return name
    for pattern in METRICS:
        if "<" in pattern and re.fullmatch(re.sub(r"<\w+>", r"[^/]+", pattern), name):
            return pattern
    near = difflib.get_close_matches(name, list(METRICS), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"metric {name!r}: not in the table; {hint}"
        "New ones are added to METRICS in rlvid/observability/metrics.py with unit and meaning."
    )


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError at the first name that is not in the table."""
    for name in names:
        metric(name)


def unhealthy(metrics: Mapping[str, float]) -> list[str]:
    """Return a line for each value outside its healthy range."""
    lines = []
    for name, value in metrics.items():
        row = metric(name)
        low, high = row.healthy or (None, None)
        below = low is not None and value < low
        above = high is not None and value > high
        if below or above or value != value:  # NaN is never healthy
            bounds = f"{'' if low is None else low}..{'' if high is None else high}"
            lines.append(f"{name} = {value:.4g} is outside {bounds}: {row.meaning}")
    return lines
