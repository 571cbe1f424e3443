"""Processes that are played, and a clock that is turned by hand, around a real dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlvid.config.rewards import RewardsConfig
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Serving
from rlvid.rewards.decoding import ClipInfo
from rlvid.rewards.dispatch.cache import ScoreCache
from rlvid.rewards.dispatch.dispatcher import Dispatcher
from rlvid.rewards.dispatch.metrics import PoolMetrics
from rlvid.rewards.dispatch.placement import plan_pool
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import (
    DECODER,
    Decode,
    Finished,
    Kill,
    Probe,
    ScoreBatch,
    Spawn,
)
from rlvid.rewards.scoring import GroupScores, ItemResult, ScorerInfo

PROMPT = Prompt(prompt_id="0123456789abcdef", text="a red ball falls")
Scorer = Callable[[int, int], float | None]
"""(ticket, row) -> score; None raises."""


def clips_of(ticket: int, size: int) -> ClipInfo:
    return ClipInfo(
        group_id=f"g{ticket}",
        prompt=PROMPT,
        indices=tuple(range(size)),
        digests=tuple(f"{ticket}-{row}" for row in range(size)),
        num_frames=5,
        height=8,
        width=8,
        fps=8,
        decode_s=0.1,
    )


class Pool:
    """Plays processes: opens them at once, keeps calls until a test answers or fails them."""

    def __init__(
        self,
        scorers: Sequence[Mapping[str, Any]],
        *,
        groupwise: Sequence[str] = (),
        serving: Serving | None = None,
        opens: bool = True,
        clip_specs: Mapping[str, ClipSpec] | None = None,
        device: str = "",
        **rewards: Any,
    ) -> None:
        config = RewardsConfig.model_validate({"scorers": scorers, **rewards})
        lanes, hosts = plan_pool(config)
        self.metrics = PoolMetrics()
        self.dispatcher = Dispatcher(
            lanes,
            hosts,
            max_attempts=config.max_attempts,
            deadline_s=config.deadline_s,
            start_deadline_s=60.0,
            heartbeat_s=config.heartbeat_s,
            stall_s=config.stall_s,
            cache=ScoreCache(config.cache_entries),
            metrics=self.metrics,
        )
        self.labels = tuple(scorer.label for scorer in config.scorers)
        self._groupwise = set(groupwise)
        self._clip_specs = clip_specs or {}
        self._serving = serving or Serving()
        self._device = device
        self.now = 0.0
        self.calls: list[Decode | ScoreBatch] = []
        self.done: dict[int, GroupScores] = {}
        self.opens = opens
        self.alive: dict[int, tuple[str, ...]] = {}
        self.silent: set[int] = set()
        """Processes that do not say that they live."""
        self.resources: list[tuple[float, float]] = []
        self.poll()

    def poll(self) -> None:
        for _ in range(10):
            actions = self.dispatcher.poll(self.now)
            for action in actions:
                self._do(action)
            if not actions:
                return

    def _do(self, action: object) -> None:
        match action:
            case Spawn():
                self.alive[action.process_id] = action.host.services
                self.resources.append((action.host.num_cpus, action.host.num_gpus))
                if self.opens:
                    self.open(action.process_id)
            case Kill():
                self.alive.pop(action.process_id)
                self.calls = [c for c in self.calls if c.call.process_id in self.alive]
            case Probe() if action.process_id not in self.silent:
                self.dispatcher.answered(action.process_id, self.now)
            case Finished():
                self.done[action.ticket] = action.scores
            case Decode() | ScoreBatch():
                self.calls.append(action)

    def open(self, process_id: int) -> None:
        infos = {
            label: ScorerInfo(
                clip_spec=self._clip_specs.get(label, ClipSpec()),
                serving=self._serving,
                version=f"v-{label}",
                is_groupwise=label in self._groupwise,
                uses_server=False,
            )
            for label in self.alive[process_id]
            if label != DECODER
        }
        devices = dict.fromkeys(self.alive[process_id], self._device)
        self.dispatcher.opened(process_id, infos, self.now, devices=devices)

    def submit(self, ticket: int, size: int = 4, *, decoded: bool = True) -> None:
        group = PoolGroup(ticket, payload=f"latents {ticket}", promised=None, labels=self.labels)
        if decoded:
            group.clips_are(clips_of(ticket, size), f"frames {ticket}", self.now)
        self.dispatcher.submit(group, self.now)
        self.poll()

    def wait(self, seconds: float) -> None:
        """Turn the clock, waking up whenever the dispatcher asked to be."""
        end = self.now + seconds
        while True:
            wake = self.dispatcher.next_wakeup(self.now)
            self.now = min(end, max(wake, self.now + 1e-3))
            self.poll()
            if self.now >= end:
                return

    def batches(self, label: str) -> list[ScoreBatch]:
        return [
            call
            for call in self.calls
            if isinstance(call, ScoreBatch) and call.call.service == label
        ]

    def answer(
        self,
        call: ScoreBatch,
        value: Scorer = lambda ticket, row: 0.5,
        *,
        flops: float | None = None,
    ) -> None:
        results = []
        for item in call.items:
            found = value(*item.item_id)
            error = "" if found is not None else "OSError: played"
            results.append(
                ItemResult(item_id=item.item_id, value=found, error=error, is_failure=bool(error))
            )
        self.calls.remove(call)
        self.dispatcher.scored(call.call.call_id, results, 0.1, self.now, flops=flops)
        self.poll()

    def answer_all(self, label: str, value: Scorer = lambda ticket, row: 0.5) -> None:
        while batches := self.batches(label):
            self.answer(batches[0], value)

    def die(self, call: Decode | ScoreBatch) -> None:
        self.dispatcher.lost(call.call.process_id, "it died", self.now)
        self.poll()

    def values(self, ticket: int, label: str = "x") -> list[float | None]:
        return [score.value for score in self.done[ticket].scores if score.scorer == label]


def one(**settings: Any) -> list[dict[str, Any]]:
    return [{"use": "physics", "name": "x", **settings}]


def items(call: ScoreBatch) -> list[tuple[int, int]]:
    return [item.item_id for item in call.items]
