"""The rows of a batch: what of a stored set each visits, and how ranks share them out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.data.prompts import seeded_order
from rlvid.learners.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One row of every batch: goes through some of the clips, each pass in an order of its own."""

    members: tuple[int, ...]
    """Clips it goes through."""
    seed: int
    purpose: str
    first: int
    """Its place among the rows that share these clips."""
    stride: int
    """How many rows share them."""

    def clip(self, step: int) -> int:
        epoch, place = divmod(step * self.stride + self.first, len(self.members))
        return self.members[seeded_order(self.seed, self.purpose, epoch, len(self.members))[place]]


def split_rows(rows: Sequence[int], ranks: Ranks, limit: int) -> list[tuple[list[int], Tensor]]:
    """Return this rank's micro-batches: rows of the batch, and whether each counts, 1 or 0.

    All ranks get equally many of equal size, which ZeRO's collectives need; where the rows do not
    divide, one that counts 0 fills up.

    Args:
        limit: rows of a micro-batch at most (`learner.micro_batch_rows`).
    """
    per_rank = math.ceil(len(rows) / ranks.data_parallel)
    mine = list(rows[ranks.data_rank :: ranks.data_parallel])
    counted = torch.ones(per_rank)
    counted[len(mine) :] = 0.0
    mine += [rows[0]] * (per_rank - len(mine))
    return [
        (mine[start : start + limit], counted[start : start + limit])
        for start in range(0, per_rank, limit)
    ]
