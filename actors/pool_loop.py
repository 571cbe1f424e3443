"""The thread of the rollout pool: wakes the fleet, has its actions done, and waits for events."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from rlvid.actors.fleet import Fleet
from rlvid.actors.fleet_shell import FleetShell
from rlvid.actors.ray_actor import ActorSet
from rlvid.actors.worker import WorkerSettings
from rlvid.bell import Bell
from rlvid.config import RolloutConfig

LONGEST_SLEEP_S = 60.0


class PoolLoop:
    """Owns the processes; `changed` guards fleet and shell too, and is notified after each turn."""

    def __init__(
        self, fleet: Fleet, settings: WorkerSettings, config: RolloutConfig, bell: Bell | None
    ) -> None:
        self.fleet = fleet
        self.changed = threading.Condition(threading.RLock())
        self.error: BaseException | None = None
        """What ended the thread."""
        self._bell = bell
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.actors = ActorSet(config, post=self._events.put)
        self.shell = FleetShell(fleet, self.actors, settings, on_sampled=self._has_result)
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="rollout-pool", daemon=True)

    # Other threads

    def start(self) -> None:
        """Start the actors."""
        with self.changed:
            self.fleet.start(time.monotonic())
        self._thread.start()

    def wake(self) -> None:
        """Have the thread look at the fleet again."""
        self._events.put(_nothing)

    def stop(self) -> None:
        """End the thread and the actors; groups in flight are forgotten."""
        with self.changed:
            self._stops = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join(timeout=30.0)
        self.actors.kill_all()

    def check_alive(self) -> None:
        """Raise what ended the thread."""
        if self.error is not None:
            raise self.error

    # The thread

    def _run(self) -> None:
        """Do what the fleet says and tell it what happens, until the pool is shut down."""
        try:
            while self._turn():
                pass
        except BaseException as error:  # carried to whoever waits in another thread
            with self.changed:
                self.error = error
                self.changed.notify_all()
            self._ring()

    def _turn(self) -> bool:
        with self.changed:
            if self._stops:
                return False
            num_results = len(self.shell.results)
            for action in self.fleet.poll(time.monotonic()):
                self.shell.do(action)
            if self.actors.lacks_spare and self.fleet.is_complete:
                self.actors.add_spare(self.shell.settings)
            has_news = len(self.shell.results) > num_results
            timeout_s = min(self.fleet.next_wakeup() - time.monotonic(), LONGEST_SLEEP_S)
            self.changed.notify_all()
        if has_news:
            self._ring()
        self._handle_events(max(0.0, timeout_s))
        return True

    def _handle_events(self, timeout_s: float) -> None:
        try:
            event = self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait()
            with self.changed:
                while not self._stops:
                    event()
                    event = self._events.get_nowait()
        except queue.Empty:
            return

    def _has_result(self) -> None:
        self.changed.notify_all()
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.ring()


def _nothing() -> None:
    """Wakes the thread."""
