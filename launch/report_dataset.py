"""Collects from the folder of a data set, and of the phase that made it, what the report shows."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlvid.config import Recipe
from rlvid.config.data_engine import DataEngineConfig
from rlvid.data.engine.filters import REASONS
from rlvid.data.engine.manifest import FOLDER as MANIFEST
from rlvid.data.engine.manifest import read_manifest, read_summary
from rlvid.data.engine.records import ClipRecord, Weakness
from rlvid.data.intake.drops import DropCounts
from rlvid.launch.data_engine.shown import FOLDER as SHOWN
from rlvid.launch.data_engine.shown import LIST
from rlvid.launch.data_engine.written import WrittenSet
from rlvid.launch.phases.base import Artifacts
from rlvid.observability.data_section import (
    ClipsRow,
    DataSetData,
    DimensionRow,
    DropRow,
    ShownClip,
    WeakRow,
    WordGroup,
)

NUM_LOWEST = 6
"""Prompts shown of each weak dimension."""
NO_DIMENSION = "no dimension"
"""Clips that were made for no dimension: real ones, and renderings of real captions."""
JUDGED = {
    "none": "Nobody judged whether a prompt could be filmed.",
    "grammar": "Plausible is what is a caption of the tiny world.",
    "llm": "A language model judged whether a prompt could be filmed.",
}
SOURCES = {
    "tiny_world": "Drawn by the tiny world when they are needed; nothing is dropped.",
    "videos": "Taken in from {sources}.",
    "none": "None were asked for.",
}


def dataset_data(recipe: Recipe, artifacts: Artifacts) -> DataSetData | None:
    """Return the data set that the run made, None when it made none."""
    engine = recipe.data_engine
    if "data_engine" not in recipe.phases or engine.name not in artifacts.datasets:
        return None
    folder = Path(artifacts.datasets[engine.name])
    summary = read_summary(folder)
    written = WrittenSet.load(folder.parent / "written.json")
    clips = clips_rows(read_manifest(folder))
    rendered = sum(row.num_clips.get(k, 0) for row in clips for k in ("synthetic", "recaption"))
    num_real = sum(row.num_clips.get("real", 0) for row in clips)
    num_weak = len(written.weaknesses)
    return DataSetData(
        name=engine.name,
        summary=(
            f"{rendered:,} rendered clips of prompts for {num_weak} weak "
            f"dimension{'s' if num_weak > 1 else ''}, each scored once, and {num_real:,} real ones."
        ),
        facts=_facts(folder, summary, engine, rendered + num_real),
        dimensions=_dimensions(written),
        below=engine.weakness.below,
        weak=[_weak(weakness) for weakness in written.weaknesses],
        prompts=_prompts(written.counts),
        prompts_note=_prompts_note(written.counts, engine),
        real=_real(DropCounts.from_json(summary["real"])),
        real_note=SOURCES[engine.real.source].format(sources=", ".join(engine.real.intake.sources)),
        clips=clips,
        shown=_shown(folder.parent / SHOWN),
    )


@dataclass(slots=True)
class _Tally:
    """Of the clips of one dimension; a reward takes eight bytes, whatever the size of the set."""

    prompts: set[str] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)
    rewards: array[float] = field(default_factory=lambda: array("d"))
    own: array[float] = field(default_factory=lambda: array("d"))
    num_missing: int = 0

    def add(self, record: ClipRecord) -> None:
        self.prompts.add(record.prompt_id)
        self.kinds[record.kind] += 1
        if record.dimension in record.scores:
            self.own.append(record.scores[record.dimension])
        if record.reward is not None:
            self.rewards.append(record.reward)
        elif record.kind != "real":
            self.num_missing += 1


def clips_rows(records: Iterable[ClipRecord]) -> list[ClipsRow]:
    """Return a row a dimension, in the order of the set, and last what is of none."""
    tallies: dict[str, _Tally] = {}
    for record in records:
        tallies.setdefault(record.dimension, _Tally()).add(record)
    return [
        ClipsRow(
            name=name or NO_DIMENSION,
            num_prompts=len(tally.prompts),
            num_clips=tally.kinds,
            rewards=tally.rewards,
            num_missing=tally.num_missing,
            own_mean=sum(tally.own) / len(tally.own) if tally.own else None,
        )
        for name, tally in sorted(tallies.items(), key=lambda item: not item[0])
    ]


def _facts(
    folder: Path, summary: Mapping[str, Any], engine: DataEngineConfig, num_rows: int
) -> list[tuple[str, str, str]]:
    render = summary["render"]
    rate = render["num_rendered"] / max(render["wall_s"], 1e-9)
    note = f"{rate:.2f} a second; {render['num_kept']:,} kept of an earlier attempt"
    if render["num_quarantined"]:
        note += f"; {render['num_quarantined']:,} left out, whose prompts cost actors"
    parts = f"{summary['num_parts']} files in {folder / MANIFEST}"
    return [
        ("manifest", f"{num_rows:,} rows", parts),
        ("digest", summary["digest"], "of all rows in their order, whatever the files"),
        ("policy", summary["policy"], "digest of the weights that rendered it"),
        ("rendered", f"{render['num_rendered']:,} clips", note),
        ("writer", engine.prompts.writer, f"{engine.clips_per_prompt} clips of each prompt"),
    ]


def _dimensions(written: WrittenSet) -> list[DimensionRow]:
    weak = {weakness.dimension for weakness in written.weaknesses}
    return [
        DimensionRow(
            name=row["dimension"],
            mean=row["mean"],
            low=row["low"],
            high=row["high"],
            num_clips=row["num_clips"],
            is_weak=row["dimension"] in weak,
        )
        for row in written.dimension_scores
    ]


def _weak(weakness: Weakness) -> WeakRow:
    scores: list[float | None] = list(weakness.seed_scores)
    texts = weakness.seed_prompts[:NUM_LOWEST]
    return WeakRow(
        name=weakness.dimension,
        description=weakness.description,
        groups=[
            WordGroup(words=" ".join(c.words), num_prompts=c.num_prompts, mean=c.mean)
            for c in weakness.clusters
        ],
        lowest=list(zip(texts, (scores or [None] * len(texts)), strict=False)),
    )


def _prompts(counts: Mapping[str, Mapping[str, int]]) -> list[DropRow]:
    """Return what was written and kept, and the reasons that came up in either form."""
    forms = (counts["base"], counts["long"])
    rows = [
        DropRow(name="written", numbers=[sum(form.values()) for form in forms]),
        DropRow(name="kept", numbers=[form["kept"] for form in forms]),
    ]
    return rows + [
        DropRow(name=f"dropped: {words(reason)}", numbers=[form[reason] for form in forms])
        for reason in REASONS
        if any(form[reason] for form in forms)
    ]


def _prompts_note(counts: Mapping[str, Mapping[str, int]], engine: DataEngineConfig) -> str:
    note = JUDGED[engine.prompts.plausibility]
    bad = ", ".join(f"{words(name)} {n}" for name, n in counts.get("llm", {}).items() if n)
    return f"{note} Answers of the language model that could not be read: {bad}." if bad else note


def _real(counts: DropCounts) -> list[DropRow]:
    found = counts.to_json()["dropped"]
    return [
        DropRow(name="seen", numbers=[counts.seen]),
        DropRow(name="kept", numbers=[counts.kept]),
        *(DropRow(name=f"dropped: {words(reason)}", numbers=[n]) for reason, n in found.items()),
    ]


def _shown(folder: Path) -> list[ShownClip]:
    return [
        ShownClip(
            is_best=row["side"] == "best",
            prompt=row["clip"]["text"],
            dimension=row["clip"]["dimension"],
            reward=row["clip"]["reward"],
            scores=row["clip"]["scores"],
            video=(folder / f"{row['name']}.mp4").read_bytes(),
            strip=(folder / f"{row['name']}.png").read_bytes(),
        )
        for row in json.loads((folder / LIST).read_text())
    ]


def words(name: str) -> str:
    """Return a name of the code as a person would write it."""
    return name.replace("_", " ")
