"""The part of the report about the stages of a run: a table with a column each, and their clips.

`launch/` reads evaluation.json and gives a `StagesData`; `stages_view` makes plain values of it
that the template report_stages.html.jinja2 lays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlvid.observability.clips import data_url, encode_mp4, encode_strip


@dataclass(frozen=True, slots=True, kw_only=True)
class StageClip:
    """What one stage made of a prompt."""

    stage: str
    clip: Tensor
    """[T, 3, H, W] in [0, 1]."""
    rewrite: str | None = None
    """What it was shown in place of the user's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageClips:
    """One prompt, sampled by every stage from one noise."""

    prompt: str
    clips: Sequence[StageClip]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagesData:
    """The stages on one set of prompts."""

    title: str
    tie_margin: float
    lines: Sequence[Mapping[str, Any]]
    """{"name", "labels", "trained"} of evaluation.json; an axis has several labels or its own."""
    columns: Sequence[Mapping[str, Any]]
    """Those of evaluation.json, `sets` replaced by `cell`, what it says of these prompts."""
    rows: Sequence[StageClips]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCell:
    """A cell of the page: a number, and what stands under it."""

    value: str = ""
    notes: Sequence[str] = ()
    """Lines."""
    verdict: str = "undecided"
    """A class of the page: better, worse or undecided."""


def stages_view(data: StagesData, fps: int) -> dict[str, Any]:
    """Return what the template shows."""
    return {
        "title": data.title,
        "tie_margin": data.tie_margin,
        "columns": [
            {"name": _words(one["name"]), "before": _words(one["before"] or "")}
            for one in data.columns
        ],
        "rows": _rows(data),
        "facts": [
            ("share of its teacher's reward gain", [_share_of_gain(c) for c in data.columns]),
            ("motion", [_motion(column["cell"]) for column in data.columns]),
            (
                "function evaluations a clip",
                [ShownCell(value=str(c["num_function_evaluations"])) for c in data.columns],
            ),
            (
                "seconds a clip",
                [ShownCell(value=f"{c['cell']['seconds_per_clip']:.3g}") for c in data.columns],
            ),
        ],
        "clips": [clips_view(row, fps) for row in data.rows],
    }


def clips_view(row: StageClips, fps: int) -> dict[str, Any]:
    """Return what the template shows of one prompt."""
    return {
        "prompt": row.prompt,
        "sides": [
            {
                "label": _words(clip.stage),
                "video": data_url("video/mp4", encode_mp4(clip.clip, fps)),
                "strip": data_url("image/png", encode_strip(clip.clip, num_frames=3)),
                "rewrite": clip.rewrite,
            }
            for clip in row.clips
        ],
    }


def _rows(data: StagesData) -> list[dict[str, Any]]:
    """Return the lines of scores, axes with their GSB; a scorer that is an axis by itself once."""
    axes = [line for line in data.lines if list(line["labels"]) != [line["name"]]]
    alone = {line["labels"][0] for line in axes if len(line["labels"]) == 1}
    rows = []
    for line in data.lines:
        if line["name"] in alone:
            continue
        cells = [column["cell"]["lines"][line["name"]] for column in data.columns]
        row = {"name": line["name"], "trained": line["trained"], "labels": ""}
        if line in axes:
            row["labels"] = ", ".join(line["labels"])
        rows.append({**row, "cells": [_score(cell) for cell in cells]})
        if line in axes:
            gsb = {"name": f"GSB {line['name']}", "trained": line["trained"], "labels": ""}
            rows.append({**gsb, "cells": [_gsb(cell) for cell in cells]})
    return rows


def _score(cell: Mapping[str, Any]) -> ShownCell:
    """The mean, and under it the change against the stage before."""
    change = cell["vs_before"]
    value = f"{cell['mean']:.3f}"
    if change is None:
        return ShownCell(value=value)
    notes = (
        f"{change['difference']:+.3f}",
        f"[{change['low']:+.3f}, {change['high']:+.3f}]",
    )
    return ShownCell(value=value, notes=notes, verdict=_verdict(change["low"], change["high"]))


def _gsb(cell: Mapping[str, Any]) -> ShownCell:
    change = cell["vs_before"]
    if change is None:
        return ShownCell()
    return ShownCell(
        value=f"{change['gsb']:+.0%}",
        notes=(
            f"[{change['gsb_low']:+.0%}, {change['gsb_high']:+.0%}]",
            f"{change['good']} / {change['same']} / {change['bad']}",
        ),
        verdict=_verdict(change["gsb_low"], change["gsb_high"]),
    )


def _share_of_gain(column: Mapping[str, Any]) -> ShownCell:
    if not column["teacher"]:
        return ShownCell()
    share = column["cell"]["lines"]["reward"]["share_of_gain"]
    if share is None:
        return ShownCell(value="-", notes=("its teacher has", "no sure gain"))
    interval = f"[{share['low']:.0%}, {share['high']:.0%}]"
    return ShownCell(value=f"{share['value']:.0%}", notes=(interval,))


def _motion(cell: Mapping[str, Any]) -> ShownCell:
    share = cell["motion_share"]
    notes = (f"{share['value']:.0%} of", "its teacher's") if share else ()
    return ShownCell(value=f"{cell['motion']:.4f}", notes=notes)


def _verdict(low: float, high: float) -> str:
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def _words(name: str) -> str:
    """Return the name of a stage so that a narrow column can break it."""
    return name.replace("_", " ")
