"""`rlvid vbench2 judge`: a folder of videos, the benchmark's prompts, judges; a table comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlvid.evaluation.vbench2.dimensions import DIMENSIONS, dimension_result
from rlvid.evaluation.vbench2.items import load_items
from rlvid.launch.vbench2 import table
from rlvid.launch.vbench2.folder import judge_works, unjudged_reasons
from rlvid.launch.vbench2.panel import Panel, Verdict
from rlvid.launch.vbench2.served import ServedModel
from rlvid.launch.vbench2.specialists import Specialist, load_measurements, open_specialist
from rlvid.launch.vbench2.work import WorkList, find_work
from rlvid.rewards.base import Endpoint
from rlvid.rewards.judges.connection import AskSettings

Endpoints = tuple[Sequence[Endpoint], Sequence[Endpoint]]
"""Replicas of the model that sees, and of the one that reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """What of the benchmark is judged, and how."""

    dimensions: Sequence[str] = ()
    """All when empty."""
    measurements: Path | None = None
    specialists: Mapping[str, str] = field(default_factory=dict)
    """Dimension to a name of `specialists.BUILTIN` or package.module:Class."""
    ask: AskSettings = AskSettings(layout="images", num_frames=16)
    """The benchmark shows 64 frames; servers limit the images of a request."""
    max_tokens: int = 1024
    """Of a description."""


def judge_folder(
    videos: Path,
    items: Path,
    out: Path,
    *,
    open_judges: Callable[[], Endpoints],
    settings: JudgeSettings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Judge what can be judged, write vbench2.json and answers.jsonl, return the former's tree.

    Args:
        open_judges: called when files and settings are known to be right, since a server of our
            own takes a minute to start. Returns the replicas of the model that sees, and of the
            one that reads; of the latter none where the seer reads as well.

    Raises:
        ValueError: a wrong file, name or setting.
        RewardError: the judges do not answer, or do not see.
    """
    found = find_work(videos, load_items(items), settings.dimensions)
    specialists, names = _specialists(settings)
    seer, reader = open_judges()
    with _models(seer, reader, settings) as (sees, reads):
        panel = Panel(seer=sees, reader=reads, specialists=specialists, names=names)
        threads = settings.ask.concurrency
        verdicts = judge_works(found.works, panel, out, num_threads=threads, say=say)
        tree = table.result(rows(found, verdicts, panel), source=_source(panel, settings))
    tree["unjudged"] = unjudged_reasons(verdicts)
    tree["strangers"] = list(found.strangers)
    table.write(out / table.RESULT, tree)
    return tree


def rows(found: WorkList, verdicts: Mapping[str, Verdict], panel: Panel) -> list[table.Row]:
    """Return a row for each dimension asked for, those that nobody judged too."""
    made = []
    for name in DIMENSIONS:
        if name not in found.absent:
            continue
        works = [work for work in found.works if work.item.dimension == name]
        of_it = [verdicts[work.key] for work in works if work.key in verdicts]
        settled = [verdict.value for verdict in of_it if verdict.is_settled]
        counted = dimension_result(name, settled)
        asked = "models" if panel.judges(name) else "nobody"
        made.append(
            table.Row(
                name=name,
                value=counted.value,
                num_judged=counted.num_judged,
                num_excluded=counted.num_excluded,
                num_unjudged=len(works) - len(settled),
                num_absent=found.absent[name],
                by=panel.names.get(name, asked),
            )
        )
    return made


@contextmanager
def _models(
    seer: Sequence[Endpoint], reader: Sequence[Endpoint], settings: JudgeSettings
) -> Iterator[tuple[ServedModel, ServedModel]]:
    models = [ServedModel(seer, settings.ask, max_tokens=settings.max_tokens)]
    if reader:
        models.append(ServedModel(reader, settings.ask, max_tokens=settings.max_tokens))
    try:
        for model in models:
            model.connect()
        yield models[0], models[-1]
    finally:
        for model in models:
            model.close()


def _specialists(settings: JudgeSettings) -> tuple[dict[str, Specialist], dict[str, str]]:
    """Return who measures each dimension, and what they are called; a named class comes first."""
    found: dict[str, Specialist] = {}
    names: dict[str, str] = {}
    if settings.measurements is not None:
        found |= load_measurements(settings.measurements)
        names |= dict.fromkeys(found, str(settings.measurements))
    for dimension, name in settings.specialists.items():
        found[dimension], names[dimension] = open_specialist(dimension, name), name
    return found, names


def _source(panel: Panel, settings: JudgeSettings) -> dict[str, Any]:
    return {
        "back_end": "served",
        "seer": panel.seer.identity,
        "reader": panel.reader.identity,
        "specialists": dict(panel.names),
        "ask": asdict(settings.ask),
        "note": "The questions are worded by rlvid and the judges are not the benchmark's: the "
        "figures compare policies with one another, not with published ones.",
    }
