"""The pool's processes: how many of each kind, which are open, and what becomes of the lost."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence

from rlvid.rewards.base import RewardError, RewardTimeoutError
from rlvid.rewards.breaker import CircuitBreaker
from rlvid.rewards.dispatch.autoscale import Autoscaler
from rlvid.rewards.dispatch.lane import LaneSettings, QueueItem
from rlvid.rewards.dispatch.metrics import PoolMetrics
from rlvid.rewards.dispatch.processes import Action, Call, Host, Kill, Process, Spawn

logger = logging.getLogger(__name__)

NO_ROOM = (
    "Lower num_cpus, num_gpus or num_replicas of the scorers if the cluster, or the node group "
    "they name, has no room; or raise cluster.start_deadline_s when a model loads slowly, or nodes "
    "come slowly."
)


class Fleet:
    """Plain bookkeeping; times are given by the caller, processes by whoever does the actions."""

    def __init__(
        self,
        hosts: Sequence[Host],
        *,
        start_deadline_s: float,
        max_lost_in_a_row: int,
        metrics: PoolMetrics,
    ) -> None:
        """`max_lost_in_a_row` is that of RewardsConfig."""
        self._hosts = tuple(hosts)
        self._max_lost_in_a_row = max_lost_in_a_row
        self._start_deadline_s = start_deadline_s
        self._metrics = metrics
        self._ids = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self.processes: dict[int, Process] = {}
        self.actions: list[Action] = []
        """Spawn and Kill that nobody has done yet."""
        self.num_replaced = 0

    def of(self, service: str) -> list[Process]:
        """Return the processes, open or not, in which a service lives."""
        everyone = list(self.processes.values())  # a copy: other threads ask too
        return [process for process in everyone if service in process.host.services]

    def host_of(self, service: str) -> Host:
        return next(host for host in self._hosts if service in host.services)

    def begin_call(
        self, process: Process, service: str, items: Sequence[QueueItem], jitter: float, now: float
    ) -> Call:
        """Note that the process is given a batch; `jitter` is that of `Call`."""
        call = Call(next(self._ids), process.process_id, service, tuple(items), now, jitter)
        if not process.calls:
            process.head_since = now
        process.calls.append(call)
        process.breakers[service].call_started()
        self._calls[call.call_id] = call
        return call

    def end_call(self, call_id: int, now: float) -> Call | None:
        """Take an answered call off its process; None when it was given up before."""
        call = self._calls.pop(call_id, None)
        if call is None:
            return None
        process = self.processes[call.process_id]
        process.calls.remove(call)
        process.head_since = now
        for item in call.items:
            item.avoid = call.process_id
        return call

    def succeeded(self, call: Call) -> None:
        """The call came to something, so its process and its kind are sound."""
        self.breaker(call).succeeded()
        self.processes[call.process_id].host.failures_in_a_row = 0

    def breaker(self, call: Call) -> CircuitBreaker:
        return self.processes[call.process_id].breakers[call.service]

    def num_calls(self, service: str) -> int:
        return sum(call.service == service for call in self._calls.values())

    def opened(self, process: Process, now: float) -> None:
        process.is_open, process.host.has_opened = True, True
        process.head_since = now

    def run_as(self, process: Process, settings: LaneSettings) -> bool:
        """Take over how the one scorer of a first process turned out to want to be run.

        Returns:
            False when the process was started with other resources: it is then ended, and one
            with the right ones follows. A scorer that shares its process has no say.
        """
        host = process.host
        if host.has_opened or len(host.services) > 1:
            return True
        had = (host.num_cpus, host.num_gpus)
        host.num_cpus, host.num_gpus = settings.num_cpus, settings.num_gpus
        if not host.is_scaled:
            host.autoscaler = Autoscaler(
                settings.num_replicas, settings.max_replicas, settings.batch_size
            )
        if had == (host.num_cpus, host.num_gpus):
            return True
        for other in [p for p in self.processes.values() if p.host is host]:
            self._end(other)
        return False

    def replace(
        self, process_id: int, reason: str, now: float, *, is_late: bool = False
    ) -> Process | None:
        """End a lost process, start its successor and return what was lost; None if long gone.

        Raises:
            RewardTimeoutError: it was late to open for the first time.
            RewardError: it died while it opened for the first time, or processes of its kind die
                faster than they work.
        """
        process = self.processes.get(process_id)
        if process is None:
            return None
        host, names = process.host, describe(process.host)
        self._end(process)
        if not process.is_open and not host.has_opened:
            if is_late:
                raise RewardTimeoutError(f"rewards: a replica of {names} {reason}. {NO_ROOM}")
            raise RewardError(
                f"rewards: a replica of {names} died while it opened ({reason}). See the actor's "
                "log in the Ray session folder; memory is the usual reason."
            )
        self.num_replaced += 1
        host.failures_in_a_row += 1
        for service in host.services:
            self._metrics.count(service, "replaced")
        logger.warning("reward replica replaced services=%s reason=%r", names, reason)
        if host.failures_in_a_row > self._max_lost_in_a_row * max(host.autoscaler.low, 1):
            raise RewardError(
                f"rewards: {host.failures_in_a_row} replicas of {names} failed with nothing scored "
                f"between them; the last one: {reason}. See the actor's log in the Ray session "
                "folder, and deadline_s of the scorer when it was late; "
                f"rewards.max_lost_in_a_row is {self._max_lost_in_a_row} for each replica."
            )
        if not process.is_leaving:
            self._spawn(host, process.breakers, now)
        return process

    def scale(self, service: str, num_replicas: int) -> None:
        """Keep so many from now on; those in excess finish the calls that they have."""
        host = self.host_of(service)
        host.is_scaled = True
        host.autoscaler.low, host.autoscaler.high = num_replicas, num_replicas

    def late_to_open(self, now: float) -> list[tuple[int, str]]:
        """Return (process, reason) of those to replace since they do not open.

        One more than needed, for which the cluster has no room, is done without instead.
        """
        late = []
        for process in list(self.processes.values()):
            if process.is_open or process.waits_for_servers:
                continue
            if now - process.started <= self._start_deadline_s:
                continue
            scaler = process.host.autoscaler
            num_others = len(self.of(process.host.services[0])) - 1
            if num_others < scaler.low:
                reason = f"did not open in {self._start_deadline_s:g} s"
                late.append((process.process_id, reason))
                continue
            scaler.high = num_others
            self._end(process)
            logger.warning("no room for another replica of %s", describe(process.host))
        return late

    def fit(self, queued: Mapping[str, int], now: float) -> None:
        """Start and end processes so that each kind has as many as its queues want."""
        for host in self._hosts:
            everyone = [p for p in self.processes.values() if p.host is host]
            staying = [process for process in everyone if not process.is_leaving]
            wanted = host.autoscaler.wanted(
                now,
                queued=sum(queued[service] for service in host.services),
                num_replicas=len(staying),
                num_busy=sum(bool(process.calls) for process in staying),
            )
            for _ in range(wanted - len(staying)):
                self._spawn(host, {service: CircuitBreaker() for service in host.services}, now)
            staying.sort(key=lambda p: (p.is_open, len(p.calls), -p.process_id))
            for process in staying[: max(0, len(staying) - wanted)]:
                process.is_leaving = True
            for process in everyone:
                if process.is_leaving and not process.calls:
                    self._end(process)

    def incomplete(self) -> dict[str, tuple[int, int]]:
        """Return (processes not open, processes wanted) of each kind with less than it needs."""
        found = {}
        for host in self._hosts:
            num_open = sum(process.is_open for process in self.of(host.services[0]))
            if num_open < host.autoscaler.low:
                found[describe(host)] = (host.autoscaler.low - num_open, host.autoscaler.low)
        return found

    def take_actions(self) -> list[Action]:
        actions, self.actions = self.actions, []
        return actions

    def _spawn(self, host: Host, breakers: dict[str, CircuitBreaker], now: float) -> None:
        process = Process(next(self._ids), host, now, breakers)
        self.processes[process.process_id] = process
        self.actions.append(Spawn(process_id=process.process_id, host=host))

    def _end(self, process: Process) -> None:
        del self.processes[process.process_id]
        for call in process.calls:
            del self._calls[call.call_id]
        self.actions.append(Kill(process_id=process.process_id))


def describe(host: Host) -> str:
    """Return the names of what lives in a kind of process and its node group, for messages."""
    names = ", ".join(service or "the decoder" for service in host.services)
    return names if host.node_group is None else f"{names} (node_group {host.node_group!r})"
