"""The report of a run: one HTML file that needs nothing else, not even a network.

`launch/` gathers a `ReportData`; `build_report` turns it into text. Charts are inline SVG, clips
are H.264 embedded as base64, so the file can be mailed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rlvid.observability.charts import WIDE, Mark, Series, line_chart, number
from rlvid.observability.clips import data_url, encode_mp4, encode_strip
from rlvid.observability.data_section import DataSetData, data_view
from rlvid.observability.metrics import metric
from rlvid.observability.plan_section import HEADINGS, PlanRow
from rlvid.observability.reward_section import (
    AlarmRow,
    correlation_chart,
    correlation_matrix,
    guard_charts,
    marks_of,
    points,
    scorer_charts,
    weight_chart,
)
from rlvid.observability.share_charts import histogram, share_charts
from rlvid.observability.stages_section import StagesData, stages_view
from rlvid.observability.time_charts import rows_chart
from rlvid.observability.time_section import LAST_STEPS, PhaseTime, facts, staleness
from rlvid.observability.trace import RoleTotal

TEMPLATE = "report.html.jinja2"

LEARNER_CHARTS = (
    ("Loss, pulls included", "learner/loss/mean"),
    ("Loss of the policy alone", "learner/policy_loss/mean"),
    ("Largest |ratio - 1|", "learner/ratio/max_deviation"),
    ("Rows cut off by the trust region", "learner/clip/frac"),
    ("Gradient norm before clipping", "learner/grad_norm/total"),
    ("KL", "learner/kl/mean"),
    ("KL to the moving anchor", "learner/anchor_kl/mean"),
    ("Rows on which the KL acts", "learner/pulled/frac"),
    ("Distance to the old policy", "learner/old_distance/mean"),
    ("Distance to the reference", "learner/reference_distance/mean"),
    ("Implicit margin of the pairs", "learner/implicit_margin/mean"),
    ("Pairs in the right order", "learner/pairs_right/frac"),
    ("Reward whose gradient is followed", "learner/differentiable_reward/mean"),
    ("Flow-matching loss of the clips beside", "learner/data_loss/mean"),
    ("Spread of the rewards inside a group", "rollout/reward/group_std"),
    ("Replay drift before the update", "learner/replay_drift/max"),
    ("Flow-matching loss", "sft/loss/mean"),
    ("Gradient norm of the SFT phase", "sft/grad_norm/total"),
    ("Loss of the stored pairs", "dpo/loss/mean"),
    ("Implicit margin of the stored pairs", "dpo/implicit_margin/mean"),
    ("Stored pairs in the right order", "dpo/pairs_right/frac"),
    ("Gradient norm of the DPO phase", "dpo/grad_norm/total"),
    ("Loss of the enhancer's cold start", "enhance/lesson_loss/mean"),
    ("Reward of rewrites", "enhance/reward/mean"),
    ("Malformed rewrites", "enhance/malformed/frac"),
    ("Reward that rewriting adds, held-out prompts", "enhance/heldout_gain/mean"),
    ("Wishes of users that rewrites lost", "enhance/intent_dropped/count"),
    ("KL of the rewriter", "enhance/kl/mean"),
    ("Wall time of a step", "time/step/seconds"),
)
"""Title and metric of the single-line charts, where the run has the metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """One scorer of the paired evaluation on held-out prompts."""

    scorer: str
    trained_on: bool
    """False for a judge that took no part in training."""
    before: float
    """Mean score of the base policy."""
    after: float
    mean_difference: float
    low: float
    """Bootstrap interval of the difference."""
    high: float
    win_rate: float
    num_pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPair:
    """One held-out prompt, sampled by the base policy and by the trained one from one noise."""

    prompt: str
    before: Tensor
    """[T, 3, H, W] in [0, 1]."""
    after: Tensor
    """[T, 3, H, W] in [0, 1]."""
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Scorer to (before, after)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything the report shows."""

    title: str
    summary: Sequence[str]
    """The result in a few plain sentences, the most important one first."""
    rows: Sequence[Mapping[str, Any]]
    """Rows of metrics.jsonl: {"phase", "step", "metrics"}."""
    alarms: Sequence[AlarmRow] | None = None
    """None where nobody watched."""
    evaluation: Sequence[EvaluationRow] = ()
    confidence: float = 0.95
    clips: Sequence[ClipPair] = ()
    stages: Sequence[StagesData] = ()
    """One a set of prompts; none where the evaluation was of the newest policy alone."""
    dataset: DataSetData | None = None
    """None where the run made none."""
    fps: int = 8
    times: Sequence[PhaseTime] = ()
    """Of the phases whose loop kept a timeline."""
    planned: Sequence[PlanRow] = ()
    """Of the RL phase."""
    timings: Sequence[RoleTotal] = ()
    recipe: str = ""
    """The resolved recipe as YAML."""
    versions: Mapping[str, str] = field(default_factory=dict)


def build_report(data: ReportData) -> str:
    """Return the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    longest_s = max((total.seconds for total in data.timings), default=1.0) or 1.0
    reach = max((max(abs(r.low), abs(r.high)) for r in data.evaluation), default=1.0) or 1.0
    marks = marks_of(data.alarms or ())
    return environment.get_template(TEMPLATE).render(
        data=data,
        reward_chart=reward_chart(data.rows, marks),
        scorer_charts=scorer_charts(data.rows, marks),
        weight_chart=weight_chart(data.rows),
        guard_charts=guard_charts(data.rows, marks),
        correlation_chart=correlation_chart(data.rows),
        correlations=correlation_matrix(data.rows),
        learner_charts=learner_charts(data.rows),
        clips=[clip_view(pair, data.fps) for pair in data.clips],
        stages=[stages_view(one, data.fps) for one in data.stages],
        set=data_view(data.dataset) if data.dataset else None,
        times=[time_view(phase) for phase in data.times],
        plan_headings=HEADINGS,
        bars=[100.0 * total.seconds / longest_s for total in data.timings],
        forest=[forest_bar(row, reach) for row in data.evaluation],
    )


def time_view(phase: PhaseTime) -> dict[str, Any]:
    """Return what the template shows of the time of a phase."""
    return {
        "phase": phase.phase,
        "facts": facts(phase),
        "rows": rows_chart(phase, LAST_STEPS),
        "shares": [*share_charts(phase), histogram(staleness(phase.steps))],
    }


def reward_chart(rows: Sequence[Mapping[str, Any]], marks: Sequence[Mark] = ()) -> str:
    """Return the training reward and the held-out reward in one chart."""
    training = points(rows, "rollout/reward/mean")
    spread = dict(points(rows, "rollout/reward/std"))
    band = [spread.get(step, 0.0) for step, _ in training]
    held_out = points(rows, "heldout/reward/mean")
    return line_chart(
        "Reward",
        [
            Series(label="training rollouts (band: std)", points=training, band=band),
            Series(
                label="held-out prompts, ODE sampler", points=held_out, colour=1, marks_points=True
            ),
        ],
        note="Rollouts are sampled with noise; held-out clips by the deterministic sampler, from "
        "fixed seeds." + (" Dashed: an alarm was raised." if marks else ""),
        size=WIDE,
        marks=marks,
    )


def learner_charts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the charts that show whether the optimisation is healthy."""
    charts = [
        line_chart(
            title,
            [Series(label=title, points=points(rows, name))],
            unit=metric(name).unit,
            note=name,
        )
        for title, name in LEARNER_CHARTS
    ]
    return [chart for chart in charts if chart]


def clip_view(pair: ClipPair, fps: int) -> dict[str, Any]:
    """Return what the template shows of one pair."""
    return {
        "prompt": pair.prompt,
        "sides": [
            {
                "label": label,
                "video": data_url("video/mp4", encode_mp4(clip, fps)),
                "strip": data_url("image/png", encode_strip(clip)),
                "scores": {name: both[side] for name, both in pair.scores.items()},
            }
            for side, (label, clip) in enumerate([("before", pair.before), ("after", pair.after)])
        ],
    }


def forest_bar(row: EvaluationRow, reach: float) -> dict[str, float | str]:
    """Return places in percent on an axis from -reach to reach, and what the interval says."""
    verdict = "better" if row.low > 0 else "worse" if row.high < 0 else "undecided"
    return {
        "low": 50.0 + 46.0 * row.low / reach,
        "high": 50.0 + 46.0 * row.high / reach,
        "mean": 50.0 + 46.0 * row.mean_difference / reach,
        "verdict": verdict,
    }
