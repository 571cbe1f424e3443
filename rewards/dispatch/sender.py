"""Fills the free places of the replicas with batches of what waits."""

from __future__ import annotations

import random
from collections.abc import Mapping

from rlvid.rewards.dispatch.fleet import Fleet
from rlvid.rewards.dispatch.lane import Lane, QueueItem
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import (
    DECODER,
    MAX_CALLS,
    Action,
    Decode,
    Process,
    ScoreBatch,
)
from rlvid.rewards.scoring import ScoreItem


class Sender:
    """Takes from the lanes and begins calls; lanes, fleet and groups are the dispatcher's own."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        fleet: Fleet,
        groups: Mapping[int, PoolGroup],
        *,
        seed: int,
    ) -> None:
        """`seed` draws the jitter of the back-off after a call that fails."""
        self._lanes = lanes
        self._fleet = fleet
        self._groups = groups
        self._rng = random.Random(seed)
        self._actions: list[Action] = []

    def send(self, now: float) -> list[Action]:
        """Give batches out, to whoever has fewest calls first, until nobody can take one.

        Returns:
            The calls to make.
        """
        decoding = len(self._lanes[DECODER]) if DECODER in self._lanes else 0
        decoding += self._fleet.num_calls(DECODER)
        while True:
            ready = [
                process
                for process in self._fleet.processes.values()
                if process.is_usable and len(process.calls) < MAX_CALLS and not _is_alone(process)
            ]
            ready.sort(key=lambda process: (len(process.calls), process.process_id))
            if not any(self._send_one(process, now, decoding > 0) for process in ready):
                actions, self._actions = self._actions, []
                return actions

    def _send_one(self, process: Process, now: float, more_coming: bool) -> bool:
        """Give the process one batch of the service that waits longest; the decoder comes first."""
        lanes = [self._lanes[service] for service in process.host.services]
        lanes = [lane for lane in lanes if len(lane)]
        lanes.sort(key=lambda lane: (lane.service != DECODER, lane.items[0].entered))
        for lane in lanes:
            if not process.breakers[lane.service].allows(now):
                continue
            others = [
                other
                for other in self._fleet.of(lane.service)
                if other is not process and other.is_usable
            ]
            batch = lane.next_batch(
                now,
                process=process.process_id,
                has_other=any(other.breakers[lane.service].allows(now) for other in others),
                more_coming=more_coming,
                only_full=bool(process.calls),
            )
            if batch:
                self._call(process, lane.service, batch, now)
                return True
        return False

    def _call(self, process: Process, service: str, batch: list[QueueItem], now: float) -> None:
        call = self._fleet.begin_call(process, service, batch, self._rng.random(), now)
        if service == DECODER:
            payload = self._groups[batch[0].ticket].payload
            self._actions.append(Decode(call=call, payload=payload))
            return
        tickets = list(dict.fromkeys(item.ticket for item in batch))
        self._actions.append(
            ScoreBatch(
                call=call,
                items=tuple(_score_item(item, tickets.index(item.ticket)) for item in batch),
                frames=tuple(self._groups[ticket].frames for ticket in tickets),
                fps=batch[0].kind[0],
            )
        )


def _is_alone(process: Process) -> bool:
    """Return whether it works on a clip that may end it: nothing is sent to wait behind that.

    An answer that is done may die with its process before it is sent, and would be charged.
    """
    return any(item.goes_alone for call in process.calls for item in call.items)


def _score_item(item: QueueItem, source: int) -> ScoreItem:
    assert item.prompt is not None, "a clip has a prompt"
    return ScoreItem(item_id=item.item_id, prompt=item.prompt, source=source, row=item.row)
