"""Which clips go to which replica when, and what becomes of them when it does not answer.

Plain logic: no Ray, no clock of its own, no waiting. Whoever owns processes and time (`pool.py`)
tells it what happened and does what `poll` returns.

    submitted --> decoder's queue --> clips --> a queue each scorer --> batches --> scores --> done
                                        |  known in the cache ------------------------^
    a call failed   --> its clips back off, then go to another replica, `max_attempts` in all
    a replica died, fell silent or overran its deadline --> replaced; others get what it had
    nothing helps in time --> missing, with the reason; never 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlvid.rewards.base import Endpoint, RewardError, RewardTimeoutError
from rlvid.rewards.breaker import CircuitBreaker
from rlvid.rewards.decoding import ClipInfo
from rlvid.rewards.dispatch.cache import ScoreCache
from rlvid.rewards.dispatch.fleet import Fleet
from rlvid.rewards.dispatch.heartbeats import Heartbeats
from rlvid.rewards.dispatch.known_scores import KnownScores
from rlvid.rewards.dispatch.lane import Lane, LaneSettings, QueueItem, backoff_s
from rlvid.rewards.dispatch.metrics import PoolMetrics
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import DECODER, Action, Call, Finished, Host, Process
from rlvid.rewards.dispatch.sender import Sender
from rlvid.rewards.scoring import ItemResult, ScorerInfo

LONGEST_SLEEP_S = 1.0


class Dispatcher:
    """The pool's decisions. Times are seconds of any one clock, given by the caller."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        hosts: Sequence[Host],
        *,
        max_attempts: int,
        deadline_s: float,
        start_deadline_s: float,
        heartbeat_s: float,
        stall_s: float,
        max_lost_in_a_row: int = 4,
        cache: ScoreCache,
        metrics: PoolMetrics,
        seed: int = 0,
    ) -> None:
        """`lanes` are the scorers in the recipe's order, and DECODER."""
        self._lanes = dict(lanes)
        self._fleet = Fleet(
            hosts,
            start_deadline_s=start_deadline_s,
            max_lost_in_a_row=max_lost_in_a_row,
            metrics=metrics,
        )
        self._heartbeats = Heartbeats(
            self._fleet.processes, heartbeat_s=heartbeat_s, stall_s=stall_s
        )
        self._max_attempts = max_attempts
        self._deadline_s = deadline_s
        self._known = KnownScores(cache, metrics)
        self._metrics = metrics
        self._groups: dict[int, PoolGroup] = {}
        self._sender = Sender(self._lanes, self._fleet, self._groups, seed=seed)
        self._actions: list[Action] = []

    # What happened

    def submit(self, group: PoolGroup, now: float) -> None:
        """Take a group; its clips are decoded first unless they came with it."""
        self._groups[group.ticket] = group
        if group.labels:
            self._metrics.submitted(now)
        if group.info is not None:
            self._queue_clips(group, now)
            return
        item = QueueItem((group.ticket, 0), None, 0, (), "", now)
        self._lanes[DECODER].add([item])

    def opened(self, process_id: int, infos: Mapping[str, ScorerInfo], now: float) -> None:
        """A process is ready; `infos` says what its scorers turned out to be."""
        process = self._fleet.processes.get(process_id)
        if process is None:
            return
        for service, info in infos.items():
            lane = self._lanes[service]
            assert lane.config is not None, "every scorer has an entry in the recipe"
            self._known.infos[service] = info
            lane.takes_groups = info.is_groupwise
            lane.settings = LaneSettings.of(lane.config, info.serving)
            if not self._fleet.run_as(process, lane.settings):
                return
        self._fleet.opened(process, now)

    def waits_for_servers(self, process_id: int, waits: bool, now: float) -> None:
        """A process is ready but for its servers, or they answer now and it is being told."""
        process = self._fleet.processes.get(process_id)
        if process is not None and process.waits_for_servers != waits:
            process.waits_for_servers, process.started = waits, now

    def open_failed(self, process_id: int, error: Exception, now: float) -> None:
        """Opening raised. RewardError or what it raised when no process of its kind ever opened."""
        process = self._fleet.processes.get(process_id)
        if process is not None and not process.host.has_opened:
            raise error
        self.lost(process_id, f"could not open: {error}", now)

    def decoded(self, call_id: int, info: ClipInfo, frames: Any, now: float) -> None:
        """A group's clips are there, as `frames`; scorers get them, the driver never does."""
        call = self._fleet.end_call(call_id, now)
        if call is None:
            return
        self._fleet.succeeded(call)
        self._metrics.decoded(info.decode_s)
        group = self._groups.get(call.items[0].ticket)
        if group is None:  # its deadline came while its lost clips were decoded again
            return
        group.clips_are(info, frames, now)
        self._queue_clips(group, now)

    def scored(
        self, call_id: int, results: Sequence[ItemResult], seconds: float, now: float
    ) -> None:
        """A batch was answered.

        Raises:
            RewardError: the answer is not one result for each clip that was sent.
        """
        call = self._fleet.end_call(call_id, now)
        if call is None:
            return
        sent = {item.item_id: item for item in call.items}
        if sorted(result.item_id for result in results) != sorted(sent):
            raise RewardError(
                f"rewards {call.service!r}: expected one result for each of {len(sent)} clips, "
                f"got {len(results)} with ids {[result.item_id for result in results][:4]}..."
            )
        failed = [result for result in results if result.is_failure]
        if len(failed) == len(results):
            self._call_came_to_nothing(call, failed[0].error, now)
        else:
            self._fleet.succeeded(call)
        self._metrics.call_done(
            call.service,
            now - call.sent,
            len(results),
            max(self._lanes[call.service].settings.batch_size, len(results)),
        )
        for result in results:
            item = sent[result.item_id]
            if item.ticket in self._groups:
                self._groups[item.ticket].score_s += seconds / len(results)
            if result.is_failure:
                self._try_again(call, item, result.error, now)
                continue
            if result.value is not None:
                self._known.keep(item.cache_key, result.value)
            self._settle(call.service, item, result.value, result.error)

    def call_failed(self, call_id: int, error: Exception, now: float) -> None:
        """A call raised where the process lives on.

        Raises:
            Exception: `error` itself, when it says that a contract is broken or that a group of
                this run cannot be decoded; trying again would say the same.
        """
        call = self._fleet.end_call(call_id, now)
        if call is None:
            return
        if isinstance(error, RewardError):
            raise error
        if call.service == DECODER:
            group = self._groups.get(call.items[0].ticket)
            if group is None or group.promised is None:
                raise error
            self._fleet.breaker(call).call_withdrawn()
            group.clips_are(group.promised, None, now)
            self._miss_all(group, f"{type(error).__name__}: {error}")
            return
        text = f"{type(error).__name__}: {error}"
        self._call_came_to_nothing(call, text, now)
        for item in call.items:
            self._try_again(call, item, text, now)

    def frames_lost(self, call_id: int, now: float) -> None:
        """The clips of a call are gone with their node: decode those groups once more."""
        call = self._fleet.end_call(call_id, now)
        if call is None:
            return
        self._fleet.breaker(call).call_withdrawn()
        for ticket in {item.ticket for item in call.items}:
            group = self._groups.get(ticket)
            if group is None or group.frames is None:  # another call of the group said so before
                continue
            for lane in self._lanes.values():
                lane.remove([item for item in lane.items if item.ticket == ticket])
            if group.payload is None:
                self._miss_all(group, "its clips were lost with the node that held them")
                continue
            group.frames = None
            item = QueueItem((ticket, 0), None, 0, (), "", now)
            self._lanes[DECODER].add([item])

    def lost(self, process_id: int, reason: str, now: float, *, is_late: bool = False) -> None:
        """A process died, or is given up: replace it and give what it had to the others.

        Raises:
            RewardTimeoutError: it was late to open for the first time.
            RewardError: it died while it opened for the first time, or processes of its kind die
                faster than they work.
        """
        process = self._fleet.replace(process_id, reason, now, is_late=is_late)
        if process is not None:
            self._requeue(process, reason, now, is_late=is_late)

    def answered(self, process_id: int, now: float) -> None:
        """A process says that it lives, whatever else it does."""
        self._heartbeats.answered(process_id, now)

    def connected(self, service: str, endpoints: Sequence[Endpoint]) -> None:
        """The scorer asks these endpoints from now on; their models are part of its version."""
        self._known.connected(service, endpoints)

    def scale(self, service: str, num_replicas: int) -> None:
        """Keep so many processes of the scorer from now on."""
        self._fleet.scale(service, num_replicas)

    def num_replicas(self, service: str) -> int:
        """Return how many there are, those that are starting included, those that leave not."""
        return sum(not process.is_leaving for process in self._fleet.of(service))

    # What to do

    def poll(self, now: float) -> list[Action]:
        """Return what is to be done now, in order."""
        self._expire_groups(now)
        self._end_late(now)
        self._give_up_where_all_are_open(now)
        self._fleet.fit({service: len(lane) for service, lane in self._lanes.items()}, now)
        self._actions += self._sender.send(now)
        self._actions += self._heartbeats.due(now)
        self._hand_out_done(now)
        actions, self._actions = self._fleet.take_actions() + self._actions, []
        return actions

    def next_wakeup(self, now: float) -> float:
        """Return when `poll` should be called again if nothing happens before."""
        times = [now + LONGEST_SLEEP_S, self._heartbeats.next_due()]
        times += [
            group.scoring_since + self._deadline_s
            for group in self._groups.values()
            if group.info is not None
        ]
        for process in self._fleet.processes.values():
            if process.calls:
                times.append(process.head_since + self._limit(process.calls[0].service))
        for lane in self._lanes.values():
            due = lane.next_due(now)
            if due is not None:
                times.append(due)
        return max(min(times), now)

    # State for others

    @property
    def num_replaced(self) -> int:
        """Processes that died or were given up since the start."""
        return self._fleet.num_replaced

    @property
    def incomplete(self) -> dict[str, tuple[int, int]]:
        """(processes not open, processes wanted) of each kind with less than it starts with."""
        return self._fleet.incomplete()

    @property
    def infos(self) -> Mapping[str, ScorerInfo]:
        """What is known of the scorers that opened."""
        return self._known.infos

    def version(self, service: str) -> str:
        """Return the version of a scorer that opened, the models it asks included."""
        return self._known.version(service)

    def processes(self) -> dict[int, tuple[str, ...]]:
        """Return the services of every process that is open."""
        everyone = list(self._fleet.processes.values())  # a copy: other threads ask too
        return {p.process_id: p.host.services for p in everyone if p.is_open}

    def live(self) -> dict[str, dict[str, float]]:
        """Return queue and replicas of every scorer."""
        return {
            service: {
                "queue_now": float(len(lane)),
                "replicas": float(sum(process.is_open for process in self._fleet.of(service))),
            }
            for service, lane in self._lanes.items()
            if service != DECODER
        }

    # Inside

    def _queue_clips(self, group: PoolGroup, now: float) -> None:
        """Give the clips to every scorer that has not answered for them; known scores are taken."""
        info = group.info
        assert info is not None, "only a group with clips can be scored"
        kind = (info.fps, info.num_frames, info.height, info.width)
        for label in group.labels:
            rows = group.lacking(label)
            try:
                self._known.check(label, info, is_submitted=group.promised is not None)
            except RewardError as error:
                if group.promised is None:
                    raise
                self._miss(group, label, f"{error}")  # a file somebody sent, not this run's clips
                continue
            keys = [self._known.key(label, info, row) for row in rows]
            unknown = []
            for row, key, value in zip(rows, keys, self._known.look_up(label, keys), strict=True):
                item = QueueItem((group.ticket, row), info.prompt, row, kind, key, now)
                if value is None:
                    unknown.append(item)
                else:
                    self._settle(label, item, value)
            self._lanes[label].add(unknown)
            self._metrics.queued(label, len(self._lanes[label]))

    def _settle(self, label: str, item: QueueItem, value: float | None, error: str = "") -> None:
        group = self._groups.get(item.ticket)
        if group is None or group.info is None:
            return
        if value is None:
            self._metrics.count(label, "errors")
        group.settle(label, group.info.indices[item.row], value, error)

    def _miss_all(self, group: PoolGroup, reason: str) -> None:
        assert group.info is not None, "who is missing must be known"
        for label in group.labels:
            self._miss(group, label, reason)

    def _miss(self, group: PoolGroup, label: str, reason: str) -> None:
        assert group.info is not None, "who is missing must be known"
        for row in group.lacking(label):
            self._metrics.count(label, "errors")
            group.settle(label, group.info.indices[row], None, reason)

    def _is_wanted(self, service: str, item: QueueItem) -> bool:
        """Return whether to ask for it again: clips that are being decoded anew come back so."""
        group = self._groups.get(item.ticket)
        return group is not None and (service == DECODER or group.frames is not None)

    def _try_again(self, call: Call, item: QueueItem, error: str, now: float) -> None:
        """Queue the item again after a pause, or count it as missing after its last attempt."""
        service = call.service
        item.num_attempts += 1
        item.error = error
        if not self._is_wanted(service, item):
            return
        if item.num_attempts >= self._max_attempts:
            group = self._groups[item.ticket]
            if service == DECODER and group.promised is not None:
                group.clips_are(group.promised, None, now)
                self._miss_all(group, error)
                return
            if service == DECODER:
                raise RewardError(
                    f"rewards: one group failed {item.num_attempts} decoders in turn; the last "
                    f"one: {error}. See the actor's log in the Ray session folder."
                )
            times = f" (attempt {item.num_attempts} of {self._max_attempts})"
            self._settle(service, item, None, error + times)
            return
        self._metrics.count(service, "retries")
        item.not_before = now + backoff_s(item.num_attempts, call.jitter)
        self._lanes[service].add([item])

    def _call_came_to_nothing(self, call: Call, reason: str, now: float) -> None:
        breaker = self._fleet.breaker(call)
        breaker.failed(now, reason)
        self._count_openings(call.service, breaker)

    def _count_openings(self, service: str, breaker: CircuitBreaker) -> None:
        if breaker.num_openings:
            self._metrics.count(service, "openings", breaker.num_openings)
            breaker.num_openings = 0

    def _requeue(self, process: Process, reason: str, now: float, *, is_late: bool) -> None:
        """Charge the call a lost process worked on, and queue the one that only waited behind."""
        for place, call in enumerate(process.calls):
            breaker = process.breakers[call.service]
            if place:
                breaker.call_withdrawn()
                wanted = [item for item in call.items if self._is_wanted(call.service, item)]
                self._lanes[call.service].items.extendleft(reversed(wanted))
                continue
            if is_late:
                self._metrics.count(call.service, "timeouts")
            # A hang that leaves no time for another attempt costs one deadline, not one a batch.
            is_hopeless = all(item.ticket not in self._groups for item in call.items)
            hang_s = self._limit(call.service) if is_late and is_hopeless else 0.0
            breaker.failed(now, reason, opens_for_s=hang_s)
            self._count_openings(call.service, breaker)
            for item in call.items:
                item.goes_alone = not is_late and not self._lanes[call.service].takes_groups
                self._try_again(call, item, reason, now)

    def _expire_groups(self, now: float) -> None:
        for group in self._groups.values():
            if group.info is None or now - group.scoring_since < self._deadline_s:
                continue
            reason = (
                f"{RewardTimeoutError.__name__}: no score within rewards.deadline_s of "
                f"{self._deadline_s:g} s"
            )
            for label in group.labels:
                late = [item for item in self._lanes[label].items if item.ticket == group.ticket]
                self._lanes[label].remove(late)
                if group.lacking(label):
                    self._metrics.count(label, "timeouts")
            self._miss_all(group, reason)

    def _end_late(self, now: float) -> None:
        for process in list(self._fleet.processes.values()):
            limit = self._limit(process.calls[0].service) if process.calls else 0.0
            if process.calls and now - process.head_since >= limit:
                self._hand_out_done(now)  # so that a hang is seen to have nobody waiting for it
                reason = f"{RewardTimeoutError.__name__}: one call took more than {limit:g} s"
                self.lost(process.process_id, reason, now, is_late=True)
        for process_id, reason in self._fleet.late_to_open(now):
            self.lost(process_id, reason, now, is_late=True)
        for process_id, reason in self._heartbeats.silent(now):
            self.lost(process_id, reason, now)

    def _hand_out_done(self, now: float) -> None:
        for group in [group for group in self._groups.values() if group.is_done]:
            del self._groups[group.ticket]
            for lane in self._lanes.values():
                lane.remove([item for item in lane.items if item.ticket == group.ticket])
            if group.labels:
                self._metrics.group_done(now)
            self._actions.append(
                Finished(ticket=group.ticket, scores=group.scores(), frames=group.frames)
            )

    def _give_up_where_all_are_open(self, now: float) -> None:
        """Count what waits for a scorer as missing while no replica of it is to be asked."""
        for service, lane in self._lanes.items():
            if service == DECODER or not len(lane):
                continue
            breakers = [process.breakers[service] for process in self._fleet.of(service)]
            if breakers and all(breaker.is_open(now) for breaker in breakers):
                for item in list(lane.items):
                    reason = f"no replica is to be asked, the last failure: {breakers[0].reason}"
                    self._settle(service, item, None, reason)
                lane.items.clear()

    def _limit(self, service: str) -> float:
        """Return the seconds one call may take; longer than a group may take is no use."""
        return min(self._lanes[service].settings.deadline_s, self._deadline_s)
