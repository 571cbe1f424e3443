"""The real pairs P_r V_r of a data set: simulated clips of the tiny world, or videos taken in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlvid import durable
from rlvid.config import Recipe
from rlvid.data.clips import TinyWorldClips, clip_shape
from rlvid.data.engine.records import ClipRecord, content_id
from rlvid.data.engine.store import numbered
from rlvid.data.intake.drops import DropCounts
from rlvid.data.tiny_world import caption
from rlvid.data.video_files import write_mp4
from rlvid.seeds import derive_seed, prompt_id

VIDEOS = "videos"
ROWS = "real.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class RealSet:
    """The rows of the real clips, on disk, and what was dropped on the way."""

    path: Path
    counts: DropCounts

    def records(self) -> Iterator[ClipRecord]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield ClipRecord.from_json(json.loads(line))

    def captions(self, num: int) -> list[str]:
        """Return the first `num` captions, each once."""
        found: dict[str, None] = {}
        for record in self.records():
            if len(found) >= num:
                break
            found[record.text] = None
        return list(found)


def open_real(recipe: Recipe, folder: Path) -> RealSet:
    """Return the real clips of the data set in `folder`; take them in unless that is done.

    Videos are cut, resampled and filtered once and kept as .mp4 files of the model's own shape. A
    clip of the tiny world is drawn when it is needed, from its caption and seed.
    """
    path, counts_path = folder / ROWS, folder / "real_counts.json"
    if not counts_path.is_file():
        durable.make_folder(folder)
        counts = DropCounts()
        rows = (
            json.dumps(record.to_json()).encode() + b"\n"
            for record in _rows(recipe, folder, counts)
        )
        durable.write_file(path, rows)
        durable.write_file(counts_path, [json.dumps(counts.to_json()).encode()])
    return RealSet(path=path, counts=DropCounts.from_json(json.loads(counts_path.read_text())))


def _rows(recipe: Recipe, folder: Path, counts: DropCounts) -> Iterator[ClipRecord]:
    real = recipe.data_engine.real
    if real.source == "tiny_world":
        yield from _simulated(recipe, counts)
    elif real.source == "videos":
        yield from _taken_in(recipe, folder, counts)


def _simulated(recipe: Recipe, counts: DropCounts) -> Iterator[ClipRecord]:
    real = recipe.data_engine.real
    clips = TinyWorldClips(
        clip_shape(recipe.model), num_clips=real.num_clips, clip_seed=real.clip_seed
    )
    for index in range(len(clips)):
        facts = clips.facts(index)
        text = caption(facts)
        seed = derive_seed(real.clip_seed, "clip", index)
        name = content_id("tiny_world", text, seed, *shape_key(recipe))
        yield ClipRecord(
            clip_id=name,
            kind="real",
            text=text,
            prompt_id=prompt_id(text),
            dimension="",
            facts=facts,
            origin="tiny_world",
            seed=seed,
            file="",
            row=0,
            content=name,
        )
    counts.seen = counts.kept = len(clips)


def _taken_in(recipe: Recipe, folder: Path, counts: DropCounts) -> Iterator[ClipRecord]:
    from rlvid.data.intake import Intake

    real = recipe.data_engine.real
    config = real.intake.model_copy(update={"max_clips": real.num_clips})
    intake = Intake(config, clip_shape(recipe.model))
    for number, clip in enumerate(intake.clips()):
        file = numbered(VIDEOS, number, ".mp4")
        durable.make_folder((folder / file).parent)
        write_mp4(folder / file, clip.video, recipe.model.fps)
        yield ClipRecord(
            clip_id=clip.digest,
            kind="real",
            text=clip.text,
            prompt_id=prompt_id(clip.text),
            dimension="",
            origin=clip.name,
            seed=0,
            file=file,
            row=0,
            content=clip.digest,
            scores={f"intake/{name}": value for name, value in clip.measures.items()},
        )
    counts.seen, counts.kept = intake.counts.seen, intake.counts.kept
    counts.dropped.update(intake.counts.dropped)


def shape_key(recipe: Recipe) -> tuple[int, int, int, float]:
    model = recipe.model
    return (model.num_frames, model.height, model.width, model.fps)
