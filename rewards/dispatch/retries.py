"""What becomes of clips whose call failed: another attempt, or missing with the last reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rlvid.rewards.base import RewardError
from rlvid.rewards.breaker import CircuitBreaker
from rlvid.rewards.dispatch.fleet import Fleet
from rlvid.rewards.dispatch.group_book import GroupBook
from rlvid.rewards.dispatch.lane import Lane, QueueItem, backoff_s
from rlvid.rewards.dispatch.metrics import PoolMetrics
from rlvid.rewards.dispatch.processes import DECODER, Call, Process


class Retries:
    """Charges failures to processes and clips, and queues what may be tried again."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        fleet: Fleet,
        book: GroupBook,
        metrics: PoolMetrics,
        *,
        max_attempts: int,
        limit_s: Callable[[str], float],
    ) -> None:
        """Lanes, fleet and book are the dispatcher's own.

        Args:
            limit_s: seconds that one call of a service may take.
        """
        self._lanes = lanes
        self._fleet = fleet
        self._book = book
        self._metrics = metrics
        self._max_attempts = max_attempts
        self._limit_s = limit_s

    def try_again(self, call: Call, item: QueueItem, error: str, now: float) -> None:
        """Queue the item again after a pause, or count it as missing after its last attempt.

        Raises:
            RewardError: a group of this run failed that many decoders in turn.
        """
        service = call.service
        item.num_attempts += 1
        item.error = error
        if not self._book.is_wanted(service, item):
            return
        if item.num_attempts >= self._max_attempts:
            self._give_up(service, item, now)
            return
        self._metrics.count(service, "retries")
        item.not_before = now + backoff_s(item.num_attempts, call.jitter)
        self._lanes[service].add([item])

    def came_to_nothing(self, call: Call, reason: str, now: float) -> None:
        """Charge a call of which nothing was scored to its process."""
        breaker = self._fleet.breaker(call)
        breaker.failed(now, reason)
        self._count_openings(call.service, breaker)

    def requeue(self, process: Process, reason: str, now: float, *, is_late: bool) -> None:
        """Charge the call a lost process worked on, and queue the one that only waited behind."""
        for place, call in enumerate(process.calls):
            breaker = process.breakers[call.service]
            if place:
                breaker.call_withdrawn()
                wanted = [item for item in call.items if self._book.is_wanted(call.service, item)]
                self._lanes[call.service].items.extendleft(reversed(wanted))
                continue
            if is_late:
                self._metrics.count(call.service, "timeouts")
            # A hang that leaves no time for another attempt costs one deadline, not one a batch.
            is_hopeless = all(item.ticket not in self._book.groups for item in call.items)
            hang_s = self._limit_s(call.service) if is_late and is_hopeless else 0.0
            breaker.failed(now, reason, opens_for_s=hang_s)
            self._count_openings(call.service, breaker)
            for item in call.items:
                item.goes_alone = not is_late and not self._lanes[call.service].takes_groups
                self.try_again(call, item, reason, now)

    def give_up_where_all_are_open(self, now: float) -> None:
        """Count what waits for a scorer as missing while no replica of it is to be asked."""
        for service, lane in self._lanes.items():
            if service == DECODER or not len(lane):
                continue
            breakers = [process.breakers[service] for process in self._fleet.of(service)]
            if breakers and all(breaker.is_open(now) for breaker in breakers):
                for item in list(lane.items):
                    reason = f"no replica is to be asked, the last failure: {breakers[0].reason}"
                    self._book.settle(service, item, None, reason)
                lane.items.clear()

    def _give_up(self, service: str, item: QueueItem, now: float) -> None:
        if service != DECODER:
            times = f" (attempt {item.num_attempts} of {self._max_attempts})"
            self._book.settle(service, item, None, item.error + times)
            return
        group = self._book.groups[item.ticket]
        if group.promised is None:
            raise RewardError(
                f"rewards: one group failed {item.num_attempts} decoders in turn; the last "
                f"one: {item.error}. See the actor's log in the Ray session folder."
            )
        self._book.is_no_video(group, item.error, now)

    def _count_openings(self, service: str, breaker: CircuitBreaker) -> None:
        if breaker.num_openings:
            self._metrics.count(service, "openings", breaker.num_openings)
            breaker.num_openings = 0
