"""A chunk of a batch: each rank fetches its share, all admit the whole, the share is cut up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlvid.algorithms.base import GroupCredit
from rlvid.learners.admission import GroupFacts, GroupUnavailableError, facts_of
from rlvid.learners.objective import Objective
from rlvid.learners.open_batch import MicroBatch, OpenBatch
from rlvid.learners.published import Published
from rlvid.learners.ranks import Ranks
from rlvid.records import RolloutGroup


@dataclass(frozen=True, slots=True)
class Chunk:
    """The groups of one call."""

    groups: Mapping[str, RolloutGroup]
    ids: Mapping[int, str]
    """Row of the batch to group id."""

    def group(self, row: int) -> RolloutGroup:
        return self.groups[self.ids[row]]


class ChunkCutter:
    """Makes the forwards of one rank out of chunks."""

    def __init__(self, ranks: Ranks, objective: Objective, published: Published) -> None:
        """`published` is the learner's own, which it keeps up to date."""
        self._ranks = ranks
        self._objective = objective
        self._published = published

    def fetch(
        self, chunk: Chunk, rows: Iterable[int]
    ) -> tuple[dict[int, RolloutGroup], list[GroupFacts]]:
        """Return this rank's groups by row, and the facts of all ranks' in order of rows.

        A collective, which all ranks leave alike: where one cannot fetch a group, all raise.
        """
        share: dict[int, RolloutGroup] = {}
        missing: list[tuple[str, str]] = []
        for row in self._mine(rows):
            try:
                share[row] = chunk.group(row)
            except GroupUnavailableError as error:
                missing.append((chunk.ids[row], error.reason))
        mine = [facts_of(row, group).to_json() for row, group in share.items()]
        parts = self._ranks.gather_json([mine, missing])
        gone = [tuple(pair) for _, absent in parts for pair in absent]
        if gone:
            raise GroupUnavailableError(sorted({name for name, _ in gone}), gone[0][1])
        facts = [GroupFacts.from_json(tree) for present, _ in parts for tree in present]
        by_row = {fact.row: fact for fact in facts}  # ranks that share clips tell the same
        return share, [by_row[row] for row in sorted(by_row)]

    def micro_batches(
        self, batch: OpenBatch, chunk: Chunk, kept: Mapping[int, GroupCredit]
    ) -> list[MicroBatch[Any]]:
        """Fetch this rank's share of a chunk, admit the whole chunk, cut the share into forwards.

        ZeRO 2 and 3 reduce in every backward pass, so all ranks need equally many of them, and the
        same ones side by side whatever the chunks are: each turn of the ranks is filled up by
        itself, with forwards that train nothing, which go first.
        """
        if not kept:
            return []
        share, facts = self.fetch(chunk, kept)
        self._admit(batch, facts, {row: chunk.ids[row] for row in kept})
        cut = {row: self._cut(batch, row, group, kept[row]) for row, group in share.items()}
        for micro_batches in cut.values():
            batch.spare = micro_batches[0].emptied()
        if batch.spare is None:
            row = next(iter(kept))
            batch.spare = self._cut(batch, row, chunk.group(row), kept[row])[0].emptied()
        in_turn = self._ranks.data_parallel
        turns = sorted({row // in_turn for row in kept})
        mine = [cut.get(turn * in_turn + self._ranks.data_rank, []) for turn in turns]
        longest = self._ranks.max([float(len(part)) for part in mine])
        result: list[MicroBatch[Any]] = []
        for part, length in zip(mine, longest, strict=True):
            filling = part[0].emptied() if part else batch.spare
            result += [filling] * (int(length) - len(part)) + part
        return result

    def _mine(self, rows: Iterable[int]) -> list[int]:
        """Return the rows that this rank trains."""
        ranks = self._ranks
        return [row for row in rows if row % ranks.data_parallel == ranks.data_rank]

    def _admit(
        self, batch: OpenBatch, facts: Sequence[GroupFacts], expected: Mapping[int, str]
    ) -> None:
        self._published.check(facts, expected)
        for fact in facts:
            if fact.plan != batch.plans[fact.row]:
                raise ValueError(
                    f"learner: group {fact.group_id} has another step plan than the batch was "
                    f"opened with: expected {batch.plans[fact.row]}, got {fact.plan}"
                )

    def _cut(
        self, batch: OpenBatch, row: int, group: RolloutGroup, credit: GroupCredit
    ) -> list[MicroBatch[Any]]:
        is_fresh = self._published.is_fresh(group)
        return self._objective.cut(batch, row, group, credit, is_fresh=is_fresh)
