"""Which clips of a data set are shown, and that they come from their own rows."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlvid.data.engine.records import ClipRecord
from rlvid.data.engine.store import ClipStore
from rlvid.data.video_files import read_mp4
from rlvid.launch.data_engine.plan import Rendering
from rlvid.launch.data_engine.shown import find_extremes, write_shown
from rlvid.observability.recorder import Recorder
from rlvid.records import RolloutGroup

RENDERING = Rendering(
    policy_digest="abc", sigmas=(1.0, 0.5, 0.0), guidance_scale=1.0, shape=(5, 16, 16), seed=0
)


def clip_record(prompt: int, row: int, reward: float | None, **changes: object) -> ClipRecord:
    record = ClipRecord(
        clip_id=f"{prompt:016x}{row:016x}",
        kind="synthetic",
        text=f"prompt {prompt}",
        prompt_id=f"p{prompt}",
        dimension="motion",
        origin="policy:abc",
        seed=row,
        file=f"clips/000/{prompt:06d}.safetensors",
        row=row,
        content="c",
        scores={} if reward is None else {"motion": reward, "camera": 1.0},
        reward=reward,
    )
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_extremes_against_sorting_everything(seed: int) -> None:
    rng = random.Random(seed)
    records = [
        clip_record(p, row, rng.choice([None, rng.random(), 0.5]))
        for p in range(30)
        for row in range(rng.randint(1, 5))
    ]
    records += [clip_record(99, 0, 5.0, kind="real")]
    by_prompt: dict[str, list[float]] = {}
    for record in records:
        if record.reward is not None and record.kind != "real":
            by_prompt.setdefault(record.prompt_id, []).append(record.reward)
    found = find_extremes(iter(records), 6)
    assert [r.reward for r in found.best] == sorted(map(max, by_prompt.values()))[::-1][:6]
    assert [r.reward for r in found.worst] == sorted(map(min, by_prompt.values()))[:6]
    assert len({r.prompt_id for r in found.best}) == len({r.prompt_id for r in found.worst}) == 6


def test_none_are_shown_when_none_are_asked_for() -> None:
    found = find_extremes([clip_record(0, 0, 0.5)], 0)
    assert (found.best, found.worst) == ([], [])


def test_each_video_is_of_its_own_row(tmp_path: Path) -> None:
    """The latents of clip n of prompt p are all p + n / 10; the decoder paints what it is given."""
    store = ClipStore(tmp_path / "set")
    records = [clip_record(p, n, (p + n) / 10) for p in range(4) for n in range(2)]
    for p in range(4):
        latents = torch.stack([torch.full((1, 1, 1, 1), p / 5 + n / 10) for n in range(2)])
        store.write(p, "plan", latents, records[2 * p : 2 * p + 2])
    prompts: list[str] = []

    def decode(group: RolloutGroup) -> Tensor:
        prompts.append(group.prompt.text)
        levels = torch.stack([r.latents for r in group.rollouts]).reshape(-1, 1, 1, 1, 1) * 255
        return levels.round().to(torch.uint8).expand(-1, 5, 3, 16, 16)

    with Recorder(tmp_path, "00_data_engine") as recorder:
        write_shown(
            tmp_path,
            tmp_path / "set",
            find_extremes(records, 2),
            rendering=RENDERING,
            decode=decode,
            fps=8,
            recorder=recorder,
        )
    rows = json.loads((tmp_path / "shown" / "shown.json").read_text())
    assert [(row["side"], row["clip"]["text"]) for row in rows] == [
        ("best", "prompt 3"),
        ("best", "prompt 2"),
        ("worst", "prompt 0"),
        ("worst", "prompt 1"),
    ]
    assert prompts == [row["clip"]["text"] for row in rows]
    files = [tmp_path / "shown" / f"{row['name']}.mp4" for row in rows]
    means = [float(read_mp4(file)[0].mean()) for file in files]
    assert all(file.with_suffix(".png").read_bytes()[1:4] == b"PNG" for file in files)
    assert means == pytest.approx([0.7, 0.5, 0.0, 0.2], abs=0.02)
