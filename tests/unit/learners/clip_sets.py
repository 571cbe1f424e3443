"""Small data sets on the disk, as phase data_engine leaves them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from rlvid.data.engine.manifest import write_manifest
from rlvid.data.engine.records import ClipRecord
from rlvid.data.engine.store import ClipStore
from rlvid.data.tiny_world.grammar import all_facts, caption
from rlvid.testing import tiny_model

DIMENSIONS = ("camera", "motion", "motion")
"""Of the three prompts: one dimension has twice the clips."""


def record(
    prompt: int, row: int, reward: float | None, dimensions: Sequence[str] = DIMENSIONS
) -> ClipRecord:
    facts = all_facts()[prompt]
    return ClipRecord(
        clip_id=f"{prompt}-{row}",
        kind="synthetic",
        text=caption(facts),
        prompt_id=str(prompt),
        dimension=dimensions[prompt],
        origin="policy:x",
        seed=row,
        file=ClipStore(Path()).file(prompt),
        row=row,
        content="",
        scores={} if reward is None else {dimensions[prompt]: reward / 2},
        reward=reward,
    )


def dataset(
    folder: Path,
    rewards: list[list[float]] | None = None,
    *,
    num_real: int = 6,
    dimensions: Sequence[str] = DIMENSIONS,
) -> Path:
    """Three prompts of two clips of the tiny model, and real ones of the tiny world."""
    given = rewards or [[0.1, 0.9], [0.5, 0.5], [0.3, 0.7]]
    store, records = ClipStore(folder), []
    shape = tiny_model(0).latent_shape(9, 16, 16)
    for prompt, row in enumerate(given):
        rows = [record(prompt, place, reward, dimensions) for place, reward in enumerate(row)]
        generator = torch.Generator().manual_seed(prompt)
        store.write(prompt, "plan", torch.randn(len(rows), *shape, generator=generator), rows)
        records += rows
    for number in range(num_real):
        facts = all_facts()[100 + number]
        real = dataclasses.replace(record(0, 0, None), kind="real", file="", facts=facts)
        records.append(dataclasses.replace(real, clip_id=f"real {number}", text=caption(facts)))
    made_by = {"rendering": {"shape": [9, 16, 16]}}
    write_manifest(folder, records, rows_per_part=100, made_by=made_by)
    return folder
