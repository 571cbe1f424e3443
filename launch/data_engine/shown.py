"""The best and the worst clips of a data set, as videos that a person can look at.

    <phase>/shown/best_00.mp4  best_00.png  ...  worst_00.mp4  ...  shown.json

The data set holds latents; the reward pool decodes these few while it is there. They are kept small
and in the form in which the report embeds them, which then has nothing to decode.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid import durable
from rlvid.data.engine.records import ClipRecord
from rlvid.data.engine.store import open_rows
from rlvid.launch.data_engine.plan import PlannedClips, Rendering
from rlvid.observability.clips import encode_mp4, encode_strip, shrunk
from rlvid.observability.recorder import Recorder
from rlvid.records import Prompt, Rollout, RolloutGroup

FOLDER, LIST = "shown", "shown.json"
VIDEO_PX, STRIP_PX = 320, 64
"""Most of the shorter side: clips of 720p would make a page of 200 MB."""
Decode = Callable[[RolloutGroup], Tensor]
"""Clips of a group, [G, T, 3, H, W] uint8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extremes:
    """The clips at both ends of a data set, at most one of a prompt at either end."""

    best: Sequence[ClipRecord]
    """Highest reward first."""
    worst: Sequence[ClipRecord]
    """Lowest reward first."""


def find_extremes(records: Iterable[ClipRecord], num: int) -> Extremes:
    """Return the `num` best and the `num` worst rendered clips; one pass, a bounded memory.

    Args:
        records: with their rewards, those of one prompt behind one another as a plan has them. What
            has no reward is left out.
    """
    best: list[tuple[float, int, ClipRecord]] = []
    worst: list[tuple[float, int, ClipRecord]] = []
    groups = groupby(records, key=lambda record: record.prompt_id)
    for place, (_, clips) in enumerate(groups):
        scored = [(c.reward, c) for c in clips if c.reward is not None and c.kind != "real"]
        if not scored:
            continue
        for heap, sign in ((best, 1.0), (worst, -1.0)):
            reward, clip = max(scored, key=lambda pair: sign * pair[0])
            heapq.heappush(heap, (sign * reward, -place, clip))
            if len(heap) > num:
                heapq.heappop(heap)
    first, last = ([c for _, _, c in sorted(heap, reverse=True)] for heap in (best, worst))
    return Extremes(best=first, worst=last)


def write_shown(
    folder: Path,
    dataset: Path,
    extremes: Extremes,
    *,
    rendering: Rendering,
    decode: Decode,
    fps: int,
    recorder: Recorder,
) -> None:
    """Write the clips and the list of them into `<folder>/shown`, and show them in TensorBoard."""
    target = folder / FOLDER
    durable.make_folder(target)
    rows: list[dict[str, Any]] = []
    for side, record, number in _named(extremes):
        clip = decode(_group(dataset, record, rendering))[0].float() / 255.0
        clip, name = shrunk(clip, VIDEO_PX), f"{side}_{number:02d}"
        durable.write_file(target / f"{name}.mp4", [encode_mp4(clip, fps)])
        durable.write_file(target / f"{name}.png", [encode_strip(shrunk(clip, STRIP_PX))])
        recorder.write_video(f"data_engine/{name}", 0, clip, fps)
        rows.append({"side": side, "name": name, "clip": record.to_json()})
    durable.write_file(target / LIST, [(json.dumps(rows, indent=1) + "\n").encode()])


def _named(extremes: Extremes) -> Iterator[tuple[str, ClipRecord, int]]:
    for side, records in (("best", extremes.best), ("worst", extremes.worst)):
        for number, record in enumerate(records):
            yield side, record, number


def _group(dataset: Path, record: ClipRecord, rendering: Rendering) -> RolloutGroup:
    """Return a clip on the disk as the group that a decoder takes."""
    latents = open_rows(dataset, record.file)[record.row]
    planned = PlannedClips(
        place=0,
        kind=record.kind,
        prompt=Prompt(prompt_id=record.prompt_id, text=record.text),
        dimension=record.dimension,
        num_clips=1,
    )
    nothing = torch.zeros(0)
    rollout = Rollout(
        index=0,
        noise_seed=record.seed,
        step_seed=record.seed,
        latents=latents,
        trained_latents=nothing,
        trained_next_latents=nothing,
        behaviour_mean=nothing,
        behaviour_log_prob=nothing,
    )
    return RolloutGroup(
        group_id=f"shown-{record.clip_id}",
        lease_id="",
        prompt=planned.prompt,
        plan=rendering.task(planned, "shown").plan,
        rollouts=(rollout,),
        policy_version=0,
        weights_digest=rendering.policy_digest,
        actor_id="",
        sample_s=0.0,
        num_forwards=0,
    )
