"""The `evaluate.stages` section: what each phase of the run was worth, one column a stage."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import Field

from rlvid.config.base import Section
from rlvid.config.prompts import PromptsConfig

Axis = Literal["VQ", "MQ", "TA", "overall"]
"""Visual quality, motion quality, text alignment and all of it: those of arXiv:2604.25427."""


class StagesConfig(Section):
    """Every policy and enhancer that the run's phases left, each sampled by its own pinned sampler
    on the same held-out prompts from the same noise, beside the base and the stage before it.

    Where a stage has an enhancer, it and those after it are shown rewrites, and are judged by the
    user's words. How the paper's GSB breaks ties, and its number of raters, were NOT FOUND.
    """

    axes: dict[Axis, tuple[str, ...]] = Field(default_factory=dict)
    """Axis to labels of scorers or judges, whose mean is a clip's score on it; they should be on
    one scale. `overall` takes judges that did not train."""
    tie_margin: float = Field(default=0.1, ge=0.0)
    """Two clips whose scores differ by no more are the "same" of good / same / bad; in standard
    deviations of the base's scores. Ours."""
    vague_prompts: PromptsConfig | None = None
    """A second set of held-out prompts, asked of every stage beside `evaluate.prompts`: wishes in
    other words than the video model was trained on, which is what an enhancer is for. As many as
    `evaluate.num_prompts`."""
    undistilled_steps: int | None = Field(default=None, ge=1)
    """Beside distilled students, their teacher sampled in so few Euler steps without having been
    distilled: a column of its own, and what a student must be better than. None leaves it out."""
    num_clips: int = Field(default=2, ge=0)
    """Prompts of each set whose clips the report shows, one a stage."""


def check_stages(
    stages: StagesConfig, *, known: Collection[str], trained: Collection[str], use_ema: bool
) -> None:
    """Refuse axes of scorers that are not there, and an overall that marks its own work.

    Args:
        known: labels of all scorers and judges.
        trained: those that the run trains on.
        use_ema: `evaluate.use_ema`.
    """
    for axis, labels in stages.axes.items():
        where = f"evaluate.stages.axes.{axis}"
        if axis in known:
            raise ValueError(
                f"{where}: {axis!r} is also the name of a scorer, and a line of the table has one "
                "name; set another `name` on the scorer"
            )
        if not labels:
            raise ValueError(f"{where}: expected labels of scorers or judges, got none; remove it")
        for label in labels:
            if label not in known:
                raise ValueError(
                    f"{where}: {label!r} is no judge or scorer; there: {', '.join(sorted(known))}"
                )
        judges_itself = sorted(set(labels) & set(trained))
        if axis == "overall" and judges_itself:
            raise ValueError(
                f"{where}: expected judges that did not train, got {judges_itself[0]!r}; name "
                "others of evaluate.judges"
            )
    if use_ema:
        raise ValueError(
            "evaluate.use_ema: stages are what the phases handed on, got true; leave it off, or "
            "leave evaluate.stages out"
        )
