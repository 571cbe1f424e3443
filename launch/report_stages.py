"""Collects from an evaluation's folder what the report shows of the run's stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvid.data.video_files import read_mp4
from rlvid.launch.heldout import FULL, VAGUE
from rlvid.observability.stages_section import StageClip, StageClips, StagesData

TITLES = {FULL: "Held-out prompts", VAGUE: "Held-out prompts in a user's words"}
"""Of the sets of prompts."""


def stages_data(evaluation: Path, tree: Mapping[str, Any]) -> list[StagesData]:
    """Return the stages on each set of prompts; none where they were not measured.

    Args:
        evaluation: path of evaluation.json; clips lie beside it.
        tree: what is in it.
    """
    stages = tree.get("stages")
    if stages is None:
        return []
    return [
        StagesData(
            title=TITLES[name],
            tie_margin=stages["tie_margin"],
            lines=stages["lines"],
            columns=[{**column, "cell": column["sets"][name]} for column in stages["columns"]],
            rows=_clips(evaluation.parent, stages["columns"], name),
        )
        for name in stages["sets"]
    ]


def _clips(folder: Path, columns: Sequence[Mapping[str, Any]], prompts: str) -> list[StageClips]:
    """Return a row for each prompt whose clips were kept."""
    kept = {column["name"]: column["sets"][prompts]["clips"] for column in columns}
    first = columns[0]["sets"][prompts]["clips"]
    return [
        StageClips(
            prompt=clip["prompt"],
            clips=[
                StageClip(
                    stage=name,
                    clip=read_mp4(folder / clips[position]["path"])[0],
                    rewrite=clips[position].get("enhanced_prompt"),
                )
                for name, clips in kept.items()
            ],
        )
        for position, clip in enumerate(first)
    ]
