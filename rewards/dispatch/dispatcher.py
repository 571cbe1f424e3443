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
from types import MappingProxyType
from typing import Any

from rlvid.observability.mfu import TERA, total_peak
from rlvid.rewards.base import Endpoint, RewardError, RewardTimeoutError
from rlvid.rewards.decoding import ClipInfo
from rlvid.rewards.dispatch.cache import ScoreCache
from rlvid.rewards.dispatch.fleet import Fleet
from rlvid.rewards.dispatch.group_book import GroupBook
from rlvid.rewards.dispatch.heartbeats import Heartbeats
from rlvid.rewards.dispatch.known_scores import KnownScores
from rlvid.rewards.dispatch.lane import Lane, LaneSettings
from rlvid.rewards.dispatch.metrics import PoolMetrics
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import DECODER, Action, Host
from rlvid.rewards.dispatch.retries import Retries
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
        self._deadline_s = deadline_s
        self._known = KnownScores(cache, metrics)
        self._metrics = metrics
        self._book = GroupBook(self._lanes, self._known, metrics, deadline_s=deadline_s)
        self._retries = Retries(
            self._lanes,
            self._fleet,
            self._book,
            metrics,
            max_attempts=max_attempts,
            limit_s=self._limit_s,
        )
        self._sender = Sender(self._lanes, self._fleet, self._book.groups, seed=seed)
        self._actions: list[Action] = []

    # What happened

    def submit(self, group: PoolGroup, now: float) -> None:
        """Take a group; its clips are decoded first unless they came with it."""
        self._book.add(group, now)

    def opened(
        self,
        process_id: int,
        infos: Mapping[str, ScorerInfo],
        now: float,
        *,
        devices: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """A process is ready; `infos` says what its scorers turned out to be.

        Args:
            devices: service to the name of its GPU there, "" without one.
        """
        process = self._fleet.processes.get(process_id)
        if process is None:
            return
        process.devices = devices
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
        self._metrics.decoded(info.decode_s, info.peak_mib)
        group = self._book.groups.get(call.items[0].ticket)
        if group is not None:  # else its deadline came while its lost clips were decoded again
            self._book.clips_are(group, info, frames, now)

    def scored(
        self,
        call_id: int,
        results: Sequence[ItemResult],
        seconds: float,
        now: float,
        *,
        flops: float | None = None,
    ) -> None:
        """A batch was answered.

        Args:
            seconds: of work, queues apart.
            flops: of the clips that did not fail; None where they are not known.

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
            self._retries.came_to_nothing(call, failed[0].error, now)
        else:
            self._fleet.succeeded(call)
        self._metrics.call_done(
            call.service,
            now - call.sent,
            len(results),
            max(self._lanes[call.service].settings.batch_size, len(results)),
            seconds,
        )
        each = None if flops is None else flops / max(1, len(results) - len(failed))
        for result in results:
            item = sent[result.item_id]
            if item.ticket in self._book.groups:
                self._book.groups[item.ticket].score_s += seconds / len(results)
            if result.is_failure:
                self._retries.try_again(call, item, result.error, now)
                continue
            if item.ticket in self._book.groups:
                self._book.groups[item.ticket].worked(call.service, each)
            if result.value is not None:
                self._known.keep(item.cache_key, result.value)
            self._book.settle(call.service, item, result.value, result.error)

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
        text = f"{type(error).__name__}: {error}"
        if call.service == DECODER:
            group = self._book.groups.get(call.items[0].ticket)
            if group is None or group.promised is None:
                raise error
            self._fleet.breaker(call).call_withdrawn()
            self._book.is_no_video(group, text, now)
            return
        self._retries.came_to_nothing(call, text, now)
        for item in call.items:
            self._retries.try_again(call, item, text, now)

    def frames_lost(self, call_id: int, now: float) -> None:
        """The clips of a call are gone with their node: decode those groups once more."""
        call = self._fleet.end_call(call_id, now)
        if call is None:
            return
        self._fleet.breaker(call).call_withdrawn()
        for ticket in {item.ticket for item in call.items}:
            self._book.clips_lost(ticket, now)

    def lost(self, process_id: int, reason: str, now: float, *, is_late: bool = False) -> None:
        """A process died, or is given up: replace it and give what it had to the others.

        Raises:
            RewardTimeoutError: it was late to open for the first time.
            RewardError: it died while it opened for the first time, or processes of its kind die
                faster than they work.
        """
        process = self._fleet.replace(process_id, reason, now, is_late=is_late)
        if process is not None:
            self._retries.requeue(process, reason, now, is_late=is_late)

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
        self._book.expire(now)
        self._end_late(now)
        self._retries.give_up_where_all_are_open(now)
        self._fleet.fit({service: len(lane) for service, lane in self._lanes.items()}, now)
        self._actions += self._sender.send(now)
        self._actions += self._heartbeats.due(now)
        self._actions += self._book.take_done(now)
        actions, self._actions = self._fleet.take_actions() + self._actions, []
        return actions

    def next_wakeup(self, now: float) -> float:
        """Return when `poll` should be called again if nothing happens before."""
        times = [now + LONGEST_SLEEP_S, self._heartbeats.next_due(), *self._book.expiries()]
        for process in self._fleet.processes.values():
            if process.calls:
                times.append(process.head_since + self._limit_s(process.calls[0].service))
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
        """Return queue and replicas of every scorer, and the peak of all their devices.

        The peak is that of the decoder too; it is left out where a device's is not known.
        """
        found: dict[str, dict[str, float]] = {}
        for service, lane in self._lanes.items():
            replicas = [process for process in self._fleet.of(service) if process.is_open]
            peak = total_peak(process.devices.get(service, "") for process in replicas)
            found[service] = {} if peak is None else {"peak_tflops": peak / TERA}
            if service != DECODER:
                found[service] |= {
                    "queue_now": float(len(lane)),
                    "replicas": float(len(replicas)),
                }
        return found

    # Inside

    def _end_late(self, now: float) -> None:
        for process in list(self._fleet.processes.values()):
            limit = self._limit_s(process.calls[0].service) if process.calls else 0.0
            if process.calls and now - process.head_since >= limit:
                # Handed out first, so that a hang is seen to have nobody waiting for it.
                self._actions += self._book.take_done(now)
                reason = f"{RewardTimeoutError.__name__}: one call took more than {limit:g} s"
                self.lost(process.process_id, reason, now, is_late=True)
        for process_id, reason in self._fleet.late_to_open(now):
            self.lost(process_id, reason, now, is_late=True)
        for process_id, reason in self._heartbeats.silent(now):
            self.lost(process_id, reason, now)

    def _limit_s(self, service: str) -> float:
        """Return the seconds one call may take; longer than a group may take is no use."""
        return min(self._lanes[service].settings.deadline_s, self._deadline_s)
