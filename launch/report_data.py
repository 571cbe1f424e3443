"""Collects from a run folder what its report shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlvid.config import Recipe
from rlvid.data.video_files import read_mp4
from rlvid.launch.ledger import open_ledger
from rlvid.launch.local_disk import LEDGER
from rlvid.launch.phases.base import Artifacts
from rlvid.launch.phases.evaluate import DIMENSIONS
from rlvid.launch.report_dataset import dataset_data
from rlvid.launch.report_plan import plan_rows
from rlvid.launch.report_stages import stages_data
from rlvid.launch.run_folder import RunFolder
from rlvid.launch.stage_table import REWARD
from rlvid.observability.recorder import read_rows
from rlvid.observability.report import ClipPair, EvaluationRow, ReportData
from rlvid.observability.reward_section import AlarmRow
from rlvid.observability.time_section import PhaseTime, read_phase_time
from rlvid.observability.trace import RoleTotal, read_totals


def report_data(folder: RunFolder, recipe: Recipe, artifacts: Artifacts) -> ReportData:
    """Read metrics, evaluation, clips and timings of a finished run."""
    metrics = folder.path / "metrics.jsonl"
    rows = read_rows(metrics) if metrics.exists() else []
    tree = _evaluation(artifacts)
    return ReportData(
        title=f"rlvid run {recipe.name}",
        summary=_summary(recipe, artifacts, tree) + _quarantined(folder),
        rows=rows,
        alarms=_alarms(folder, rows),
        evaluation=[_row(row) for row in tree["rows"]] if tree else [],
        confidence=tree["confidence"] if tree else recipe.evaluate.confidence,
        clips=_clips(Path(artifacts.evaluation).parent, tree) if artifacts.evaluation else [],
        stages=stages_data(Path(artifacts.evaluation), tree) if artifacts.evaluation else (),
        dataset=dataset_data(recipe, artifacts),
        fps=recipe.model.fps,
        times=_times(folder),
        planned=plan_rows(recipe, rows),
        timings=_timings(folder, artifacts),
        recipe=folder.recipe.read_text(),
        versions=json.loads((folder.path / "versions.json").read_text()),
    )


def _alarms(folder: RunFolder, rows: list[dict[str, Any]]) -> list[AlarmRow] | None:
    """Return the alarms of the run; None when no phase of it watched for any."""
    path = folder.path / "alarms.jsonl"
    if path.exists():
        names = ("phase", "step", "kind", "subject", "message")
        return [AlarmRow(**{name: row[name] for name in names}) for row in read_rows(path)]
    watched = any(name.startswith("alarms/") for row in rows for name in row["metrics"])
    return [] if watched else None


def _evaluation(artifacts: Artifacts) -> dict[str, Any]:
    if artifacts.evaluation is None:
        return {}
    tree: dict[str, Any] = json.loads(Path(artifacts.evaluation).read_text())
    return tree


def _row(row: dict[str, Any]) -> EvaluationRow:
    return EvaluationRow(
        scorer=row["name"],
        trained_on=row["trained"],
        before=row["before"],
        after=row["after"],
        mean_difference=row["difference"],
        low=row["low"],
        high=row["high"],
        win_rate=row["win_rate"],
        num_pairs=row["num_pairs"],
    )


def _summary(recipe: Recipe, artifacts: Artifacts, tree: dict[str, Any]) -> list[str]:
    """Return the lines at the head: the reward, and the judges or what stands for all of them."""
    rows = [row for row in tree.get("rows", []) if row["name"] == REWARD or not row["trained"]]
    if any(row["name"] == DIMENSIONS for row in rows):
        rows = [row for row in rows if row["name"] in (REWARD, DIMENSIONS)]
    lines = [_sentence(row, tree["confidence"]) for row in rows]
    enhanced = tree.get("enhanced")
    if enhanced:
        lines.append(
            f"The newest policy was shown rewritten prompts: {enhanced['rewritten']} of "
            f"{enhanced['prompts']}; {enhanced['drifted']} of them lost a wish of the user's."
        )
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in artifacts.timings_s.items())
    lines.append(f"Model {recipe.model.path}, recipe seed {recipe.seed}.")
    lines.append(f"Wall time from the first start to the end: {seconds}.")
    return lines


def _sentence(row: dict[str, Any], confidence: float) -> str:
    name = {DIMENSIONS: "mean of the dimensions"}.get(row["name"], row["name"])
    tag = "" if row["name"] == REWARD else " (did not train)"
    return (
        f"Held-out {name}{tag} {row['before']:.3f} -> {row['after']:.3f}: "
        f"{row['difference']:+.3f}, {confidence:.0%} interval "
        f"[{row['low']:+.3f}, {row['high']:+.3f}], {row['num_pairs']} pairs."
    )


def _quarantined(folder: RunFolder) -> list[str]:
    """Return a line for each prompt that was taken out of a phase's training."""
    lines = []
    for path in sorted(folder.path.glob(f"phases/*/{LEDGER}")):
        ledger = open_ledger(path)
        lines += [f"Quarantined a prompt: {text}." for text in ledger.quarantined().values()]
        ledger.close()
    return lines


def _clips(folder: Path, tree: dict[str, Any]) -> list[ClipPair]:
    """Return the clips the evaluation kept: of the first prompts, seed index 0."""
    scored = {pair["position"]: pair for pair in tree["pairs"] if pair["seed_index"] == 0}
    pairs = []
    for path in sorted((folder / "clips").glob("*_base.mp4")):
        pair = scored.get(int(path.name.partition("_")[0]))
        if pair is None:  # a scorer missed it, so there is no reward to show beside it
            continue
        after = path.with_name(path.name.replace("_base", "_after"))
        pairs.append(
            ClipPair(
                prompt=_shown(pair),
                before=read_mp4(path)[0],
                after=read_mp4(after)[0],
                scores={name: (both[0], both[1]) for name, both in pair["scores"].items()},
            )
        )
    return pairs


def _shown(pair: dict[str, Any]) -> str:
    """Return what a pair of clips is labelled with: the user's words, and a rewrite of them."""
    rewrite = pair.get("enhanced_prompt")
    return f"{pair['prompt']} -- rewritten: {rewrite}" if rewrite else str(pair["prompt"])


def _times(folder: RunFolder) -> list[PhaseTime]:
    """Return the timelines of the phases that kept one."""
    found = [read_phase_time(path) for path in sorted(folder.path.glob("phases/*"))]
    return [time for time in found if time is not None]


def _timings(folder: RunFolder, artifacts: Artifacts) -> list[RoleTotal]:
    totals = [
        RoleTotal(role="phase", work=name, seconds=seconds, count=1)
        for name, seconds in artifacts.timings_s.items()
    ]
    for trace in sorted(folder.path.glob("phases/*/trace.json")):
        totals += read_totals(trace)
    return totals
