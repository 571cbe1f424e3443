"""Which processes are asked whether they live, and which did not say so in time.

A deadline of a call is no substitute: it is as long as the slowest scorer needs, and a process
that is stopped would have its clips all that while. What is stopped answers nothing, not even this.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlvid.rewards.dispatch.processes import Probe, Process


class Heartbeats:
    """Asks each process in turn; `processes` is the fleet's own. Times are given by the caller."""

    def __init__(
        self, processes: Mapping[int, Process], *, heartbeat_s: float, stall_s: float
    ) -> None:
        """`heartbeat_s` and `stall_s` are those of RewardsConfig."""
        self._processes = processes
        self._heartbeat_s = heartbeat_s
        self._stall_s = stall_s

    def due(self, now: float) -> list[Probe]:
        """Return whom to ask now; a process that owes an answer is not asked again."""
        asked = []
        for process in self._processes.values():
            if process.probe_sent is None and now >= self._next_probe(process):
                process.probe_sent = now
                asked.append(Probe(process_id=process.process_id))
        return asked

    def answered(self, process_id: int, now: float) -> None:
        """It lives; the answer of one that is no longer ours changes nothing."""
        process = self._processes.get(process_id)
        if process is not None:
            process.probe_sent, process.answered = None, now

    def silent(self, now: float) -> list[tuple[int, str]]:
        """Return (process, reason) of those to give up."""
        reason = f"it did not answer for rewards.stall_s, {self._stall_s:g} s"
        return [
            (process.process_id, reason)
            for process in self._processes.values()
            if now >= self._given_up_at(process)
        ]

    def next_due(self) -> float:
        """Return when `due` or `silent` may next have something; infinity without processes."""
        times = [
            self._next_probe(process) if process.probe_sent is None else self._given_up_at(process)
            for process in self._processes.values()
        ]
        return min(times, default=float("inf"))

    def _next_probe(self, process: Process) -> float:
        return process.started if process.answered is None else process.answered + self._heartbeat_s

    def _given_up_at(self, process: Process) -> float:
        """Before its first answer there may be no process yet, and before one of its kind opened
        nobody knows how long imports keep it from answering: both have `start_deadline_s`."""
        if process.probe_sent is None or process.answered is None or not process.host.has_opened:
            return float("inf")
        return process.probe_sent + self._stall_s
