"""The rows of a batch shared out over ranks and micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlvid.learners.ranks import Ranks


def split_rows(rows: Sequence[int], ranks: Ranks, limit: int) -> list[tuple[list[int], Tensor]]:
    """Return this rank's micro-batches: rows of the batch, and whether each counts, 1 or 0.

    All ranks get equally many of equal size, which ZeRO's collectives need; where the rows do not
    divide, one that counts 0 fills up.

    Args:
        limit: rows of a micro-batch at most (`learner.micro_batch_rows`).
    """
    per_rank = math.ceil(len(rows) / ranks.world_size)
    mine = list(rows[ranks.rank :: ranks.world_size])
    counted = torch.ones(per_rank)
    counted[len(mine) :] = 0.0
    mine += [rows[0]] * (per_rank - len(mine))
    return [
        (mine[start : start + limit], counted[start : start + limit])
        for start in range(0, per_rank, limit)
    ]
