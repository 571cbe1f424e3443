"""The rollout actors of a run on Ray: does what the fleet says, and tells it what happens.

    submit(task) --> fleet --> actor samples --> collect() --> SampledGroup
                                  |  died, stuck or failed
                                  +--> replaced and brought to the newest weights; LostGroup

The driver owns the pool. Every decision is the fleet's (`fleet.py`), which a thread of the pool
drives: Ray's futures and the driver's calls wake it, nothing is polled. Which actor samples a group
does not matter to the result, because every seed is in the task.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray

from rlvid.actors.answers import ActorView, LostGroup, SampledGroup
from rlvid.actors.fleet import Fleet
from rlvid.actors.fleet_records import FleetTask, Publish, RolloutLostError
from rlvid.actors.fleet_shell import Canary
from rlvid.actors.pool_loop import PoolLoop
from rlvid.actors.pool_settings import fleet_settings, gang_settings
from rlvid.actors.worker import WorkerSettings
from rlvid.bell import Bell
from rlvid.config import LearnerConfig, ModelConfig, RolloutConfig, WeightsConfig
from rlvid.config.inference import InferenceConfig
from rlvid.config.node_group import said_of
from rlvid.models.policy import Policy
from rlvid.records import GroupTask, WeightsManifest, WeightsReceipt

__all__ = ["LostGroup", "RolloutLostError", "RolloutPool", "SampledGroup"]


class RolloutPool:
    """Rollout actors under supervision; their number may change at any time."""

    def __init__(
        self,
        policy: Policy,
        model_config: ModelConfig,
        rollout_config: RolloutConfig,
        learner_config: LearnerConfig | None,
        *,
        num_threads: int,
        start_deadline_s: float,
        weights_config: WeightsConfig | None = None,
        bell: Bell | None = None,
    ) -> None:
        """`bell` is rung when there is something to collect, or the pool has ended by an error."""
        settings = WorkerSettings(
            use=rollout_config.worker,
            policy=policy,
            model_config=model_config,
            learner_config=learner_config,
            weights_config=weights_config,
            num_threads=num_threads,
            options=rollout_config.worker_options,
            # A pool that nobody publishes to measures policies: with the plain sampler only.
            inference=InferenceConfig() if learner_config is None else rollout_config.inference,
            gang=gang_settings(rollout_config, start_deadline_s),
        )
        weights_config = weights_config or WeightsConfig()
        fleet = Fleet(
            fleet_settings(
                rollout_config,
                weights_config,
                start_deadline_s=start_deadline_s,
                max_starting=max_starting(rollout_config),
            ),
            rollout_config.num_actors,
        )
        self._fleet = fleet
        """The thread's, as the shell is; only touched under `_loop.changed`."""
        self._loop = PoolLoop(fleet, settings, rollout_config, bell)
        self._shell = self._loop.shell
        self._start_deadline_s = start_deadline_s
        self._node_group = rollout_config.node_group
        self._num_outstanding = 0

    # Life

    def start(self) -> None:
        """Create the actors; they load their models while the caller goes on."""
        self._loop.start()

    def wait_ready(self) -> None:
        """Block until every actor has loaded its model.

        Raises:
            RolloutLostError: not all have in the time they may take.
            Exception: what loading raised, e.g. ValueError for a missing folder.
        """
        self._wait(lambda: self._fleet.is_complete, self._start_deadline_s, "loading the model")

    def shutdown(self) -> None:
        """End the thread and the actors; groups in flight are forgotten."""
        self._loop.stop()

    # Groups

    def submit(
        self, task: GroupTask, *, min_version: int = -1, max_version: int | None = None
    ) -> None:
        """Have a group sampled by an actor with weights of these versions.

        Groups are begun in the order of their ids. One that may only have weights that are older
        than the newest publish holds that publish back until it is sampled.

        Raises:
            ValueError: its lease is outstanding.
        """
        wanted = FleetTask(
            lease_id=task.lease_id,
            group_id=task.group_id,
            prompt_id=task.prompt.prompt_id,
            min_version=min_version,
            max_version=max_version,
        )
        with self._loop.changed:
            self._loop.check_alive()
            self._fleet.submit(wanted, time.monotonic())
            self._shell.tasks[task.lease_id] = task
            self._num_outstanding += 1
        self._loop.wake()

    def collect(self, timeout_s: float) -> list[SampledGroup | LostGroup]:
        """Return what finished or was lost, waiting at most `timeout_s` for the first.

        Raises:
            RolloutLostError: more actors were lost than the crash budget allows.
            Exception: what sampling raised, e.g. ValueError for a clip size that does not divide.
        """
        loop, shell = self._loop, self._shell
        with loop.changed:
            if timeout_s > 0.0:
                loop.changed.wait_for(
                    lambda: shell.results or loop.error or not self._num_outstanding, timeout_s
                )
            results, shell.results = shell.results, []
            self._num_outstanding -= len(results)
            if not results:
                loop.check_alive()
            return results

    @property
    def num_outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        with self._loop.changed:
            return self._num_outstanding

    @property
    def losses_by_prompt(self) -> Mapping[str, int]:
        """Prompt id to the actors it cost and the exceptions it raised in this run."""
        with self._loop.changed:
            return dict(self._shell.losses)

    # Weights

    def begin_publish(self, manifest: WeightsManifest, payload: Any) -> None:
        """Bring every actor to these weights, each beside what it samples; returns at once.

        Raises:
            ValueError: they are not newer than the last.
        """
        with self._loop.changed:
            self._loop.check_alive()
            self._fleet.publish(Publish(*manifest.order), time.monotonic())
            self._shell.weights = (manifest, payload)
        self._loop.wake()

    def wait_version(self, version: int, deadline_s: float) -> list[WeightsReceipt]:
        """Block until every open actor has the newest publish, and return their receipts.

        Raises:
            ValueError: `version` was not published.
            RolloutLostError: an actor did not take it in time.
        """
        with self._loop.changed:
            newest = self._fleet.newest
            if newest is None or newest.version < version:
                raise ValueError(
                    f"rollout: version {version} was not published, the newest is {newest}; "
                    "call begin_publish first"
                )
        self._wait(lambda: self._fleet.is_up_to_date, deadline_s, f"taking weights {version}")
        with self._loop.changed:
            open_ids = [actor.actor_id for actor in self._fleet.actors if actor.held is not None]
            return [self._shell.receipts[actor_id] for actor_id in open_ids]

    def publish(
        self, manifest: WeightsManifest, payload: Any, deadline_s: float
    ) -> list[WeightsReceipt]:
        """Hand the weights to every actor and return their receipts; see `begin_publish`."""
        self.begin_publish(manifest, payload)
        return self.wait_version(manifest.version, deadline_s)

    def use_policy(self, policy: Policy, deadline_s: float) -> None:
        """Make every actor sample with a policy from files (evaluation)."""
        with self._loop.changed:
            self._loop.check_alive()
            # A replacement loads it too.
            self._shell.settings = replace(self._shell.settings, policy=policy)
            self._shell.weights = self._shell.canary = None
            self._shell.receipts.clear()
            self._fleet.reload(time.monotonic())
        self._loop.wake()
        self._wait(lambda: self._fleet.is_complete, deadline_s, "loading a policy")

    def set_canary(
        self,
        latents: Any,
        sigma: Any,
        text: str,
        velocity: Any,
        tolerance: float,
        order: tuple[int, int] | None = None,
    ) -> None:
        """Compare each actor's velocity with the learner's, now and whenever one joins.

        An actor that holds other weights than those of `order` is not asked until it does; one
        whose answer differs is replaced, and ends the run when no other's ever fitted.

        Args:
            order: (incarnation, version) of the weights that gave `velocity`; None: the newest.
        """
        with self._loop.changed:
            self._loop.check_alive()
            publish = Publish(*order) if order else self._fleet.newest
            if publish is None:
                raise ValueError("rollout: a canary needs a publish; call begin_publish first")
            self._shell.canary = Canary(publish, (latents, sigma, text), velocity, tolerance)
            self._fleet.set_canary(publish, time.monotonic())
        self._loop.wake()

    def wait_canary(self, deadline_s: float) -> None:
        """Block until every open actor with the canary's weights has answered it rightly."""
        self._wait(lambda: self._fleet.is_checked, deadline_s, "answering the canary")

    # Numbers

    def scale(self, num_actors: int) -> None:
        """Have so many actors from now on; those that go finish their group first."""
        with self._loop.changed:
            self._loop.check_alive()
            self._fleet.scale(num_actors, time.monotonic())
        self._loop.wake()

    def note_learner_idle(self, frac: float) -> None:
        """The share of its time that the learner waits, for the autoscaler."""
        with self._loop.changed:
            self._fleet.note_learner_idle(frac)

    @property
    def num_actors(self) -> int:
        """Actors wanted; `metrics` tells how many of them work."""
        with self._loop.changed:
            return self._fleet.num_actors

    @property
    def num_lost(self) -> int:
        """Actors lost since the start."""
        with self._loop.changed:
            return self._fleet.metrics.num_lost

    @property
    def actor_ids(self) -> tuple[str, ...]:
        with self._loop.changed:
            return tuple(actor.actor_id for actor in self._fleet.actors)

    @property
    def receiver_ids(self) -> tuple[str, ...]:
        """Of the actors that would take a publish now: their policy is loaded."""
        with self._loop.changed:
            return tuple(actor.actor_id for actor in self._fleet.actors if actor.is_open)

    def actors(self) -> list[ActorView]:
        """Return what every actor does now, in the order of `actor_ids`."""
        with self._loop.changed:
            return self._fleet.views(time.monotonic())

    def metrics(self) -> dict[str, float]:
        """Return the present numbers: actors by state, queue, versions."""
        with self._loop.changed:
            return {**self._fleet.gauges(), **self._loop.actors.gauges()}

    def step_metrics(self) -> dict[str, float]:
        """Return what happened since the last call, and the present numbers."""
        with self._loop.changed:
            self._fleet.note_time(time.monotonic())
            seconds, self._shell.seconds = self._shell.seconds, {}
            gauges = {**self._fleet.gauges(), **self._loop.actors.gauges()}
            return {**self._fleet.metrics.take(), **gauges, **seconds}

    # Chaos

    def kill_actor(self, index: int) -> None:
        """End the actor of a slot as a crash would."""
        self._loop.actors.crash(self._id_of(index))

    def stop_actor(self, index: int) -> None:
        """Stop its process (SIGSTOP), which Ray never notices."""
        self._loop.actors.send_signal(self._id_of(index), signal.SIGSTOP)

    def continue_actor(self, index: int) -> None:
        """Let a stopped process go on (SIGCONT)."""
        self._loop.actors.send_signal(self._id_of(index), signal.SIGCONT)

    def _id_of(self, index: int) -> str:
        with self._loop.changed:
            found = {actor.slot.index: actor.actor_id for actor in self._fleet.actors}
        if index not in found:
            raise ValueError(f"rollout: no actor in slot {index}, there are {sorted(found)}")
        return found[index]

    # Waiting

    def _wait(self, is_done: Callable[[], bool], deadline_s: float, doing: str) -> None:
        """Block until `is_done`.

        Raises:
            RolloutLostError: it is not within `deadline_s`.
            BaseException: what ended the pool's thread.
        """
        with self._loop.changed:
            in_time = self._loop.changed.wait_for(
                lambda: self._loop.error is not None or is_done(), deadline_s
            )
            self._loop.check_alive()
            if not in_time:
                states = ", ".join(
                    f"{actor.actor_id} is {actor.state}" for actor in self._fleet.actors
                )
                raise RolloutLostError(
                    f"rollout: {doing} took more than {deadline_s:g} s ({states}); raise "
                    "cluster.start_deadline_s or weights.deadline_s, look at the actors' logs in "
                    "the Ray session folder, or give the cluster room for pending ones."
                    + said_of(self._node_group, "rollout.node_group")
                )


def max_starting(config: RolloutConfig) -> int | None:
    """Return how many actors may start at once beside others, by the cores there are."""
    if config.max_starting is not None or config.num_gpus:
        return config.max_starting
    num_nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return num_nodes * max(1, (os.cpu_count() or 1) // 2)
