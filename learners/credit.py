"""Credit of a chunk: which of its groups train, and how each of their rollouts counts."""

from __future__ import annotations

from rlvid.algorithms.base import Algorithm, ForwardAlgorithm, GroupCredit
from rlvid.algorithms.data_regulariser import pulled_rollouts
from rlvid.algorithms.refl import Refl
from rlvid.algorithms.score_table import RewardTable
from rlvid.config import AlgorithmConfig
from rlvid.learners.chunk import Chunk
from rlvid.learners.open_batch import OpenBatch


def credit_chunk(
    batch: OpenBatch,
    chunk: Chunk,
    rewards: RewardTable,
    algorithm: Algorithm | ForwardAlgorithm | Refl,
    config: AlgorithmConfig,
) -> dict[int, GroupCredit]:
    """Return the credit of the groups that train, by row; note in the batch what became of all.

    Every rank works it out from the same scores, so all of them keep the same groups.
    """
    if not chunk.ids:
        return {}
    credit = algorithm.credit(rewards.values, rewards.weights, config.advantage)
    pulled = pulled_rollouts(rewards.values, rewards.weights, config.selective_kl)
    dropped = {index for index, _ in credit.dropped}
    kept: dict[int, GroupCredit] = {}
    for index, (row, group_id) in enumerate(chunk.ids.items()):
        if index in dropped or not credit.trained[index].any():
            batch.dropped_ids.append(group_id)
            continue
        batch.trained_ids.append(group_id)
        kept[row] = GroupCredit(
            advantage=credit.advantage[index],
            trained=credit.trained[index],
            pulled=None if pulled is None else pulled[index],
        )
    batch.credits.append(credit)
    return kept
