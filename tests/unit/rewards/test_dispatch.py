"""The pool's decisions with processes that are played here and a clock that is turned by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from rlvid.config.rewards import RewardsConfig
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, RewardError, Serving
from rlvid.rewards.decoding import ClipInfo
from rlvid.rewards.dispatch.cache import ScoreCache
from rlvid.rewards.dispatch.dispatcher import Dispatcher
from rlvid.rewards.dispatch.metrics import PoolMetrics
from rlvid.rewards.dispatch.placement import plan_pool
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import DECODER, Decode, Finished, Kill, ScoreBatch, Spawn
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
            cache=ScoreCache(config.cache_entries),
            metrics=self.metrics,
        )
        self.labels = tuple(scorer.label for scorer in config.scorers)
        self._groupwise = set(groupwise)
        self._serving = serving or Serving()
        self.now = 0.0
        self.calls: list[Decode | ScoreBatch] = []
        self.done: dict[int, GroupScores] = {}
        self.opens = opens
        self.alive: dict[int, tuple[str, ...]] = {}
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
            case Finished():
                self.done[action.ticket] = action.scores
            case Decode() | ScoreBatch():
                self.calls.append(action)

    def open(self, process_id: int) -> None:
        infos = {
            label: ScorerInfo(
                clip_spec=ClipSpec(),
                serving=self._serving,
                version=f"v-{label}",
                is_groupwise=label in self._groupwise,
                uses_server=False,
            )
            for label in self.alive[process_id]
            if label != DECODER
        }
        self.dispatcher.opened(process_id, infos, self.now)

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

    def answer(self, call: ScoreBatch, value: Scorer = lambda ticket, row: 0.5) -> None:
        results = []
        for item in call.items:
            found = value(*item.item_id)
            error = "" if found is not None else "OSError: played"
            results.append(
                ItemResult(item_id=item.item_id, value=found, error=error, is_failure=bool(error))
            )
        self.calls.remove(call)
        self.dispatcher.scored(call.call.call_id, results, 0.1, self.now)
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


# Batching


def test_batches_are_filled_across_groups_in_order() -> None:
    """The first call leaves half full, for an idle replica gains nothing by waiting."""
    pool = Pool(one(batch_size=8))
    for ticket in (1, 2, 3, 4):
        pool.submit(ticket)
    first, second = pool.batches("x")
    assert items(first) == [(1, row) for row in range(4)]
    assert items(second) == [(t, row) for t in (2, 3) for row in range(4)]
    assert second.frames == ("frames 2", "frames 3")
    assert [item.source for item in second.items] == [0] * 4 + [1] * 4


def test_a_partial_batch_waits_only_while_more_clips_are_on_their_way() -> None:
    pool = Pool(one(batch_size=8, max_wait_s=0.5))
    pool.submit(1)
    assert len(pool.batches("x")) == 1  # nothing else is known to come
    pool.answer_all("x")
    pool.submit(2, decoded=False)
    pool.submit(3)
    assert pool.batches("x") == []
    pool.wait(0.49)
    assert pool.batches("x") == []
    pool.wait(0.02)
    assert len(pool.batches("x")) == 1


def test_a_full_batch_waits_for_nothing() -> None:
    pool = Pool(one(batch_size=4, max_wait_s=9.0))
    pool.submit(1, decoded=False)
    pool.submit(2)
    assert len(pool.batches("x")) == 1


def test_a_group_reward_gets_one_whole_group_whatever_the_batch_size() -> None:
    pool = Pool(one(batch_size=2), groupwise=["x"])
    pool.submit(1, 4)
    pool.submit(2, 3)
    assert [len(call.items) for call in pool.batches("x")] == [4, 3]


def test_the_replica_with_fewest_calls_gets_the_next() -> None:
    pool = Pool(one(batch_size=4, num_replicas=3))
    for ticket in range(3):
        pool.submit(ticket)
    assert len({call.call.process_id for call in pool.batches("x")}) == 3


def test_a_group_is_decoded_once_for_all_scorers() -> None:
    pool = Pool([*one(), {"use": "realism"}])
    pool.submit(1, decoded=False)
    [decode] = pool.calls
    assert isinstance(decode, Decode)
    pool.calls.clear()
    pool.dispatcher.decoded(decode.call.call_id, clips_of(1, 4), "frames", 0.1)
    pool.poll()
    assert {call.call.service for call in pool.calls} == {"x", "realism"}
    assert all(isinstance(c, ScoreBatch) and c.frames == ("frames",) for c in pool.calls)


# Ids


def test_scores_go_to_the_clips_whose_ids_they_carry() -> None:
    """A replica may answer in any order; ids travel with scores."""
    pool = Pool(one())
    pool.submit(1, 3)
    [call] = pool.batches("x")
    results = [ItemResult(item_id=(1, row), value=float(row)) for row in (2, 0, 1)]
    pool.dispatcher.scored(call.call.call_id, results, 0.1, pool.now)
    pool.poll()
    assert pool.values(1) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("ids", [[(1, 0)], [(1, 0), (1, 0)], [(1, 0), (2, 1)]])
def test_an_answer_for_other_clips_stops_the_run(ids: list[tuple[int, int]]) -> None:
    """Too few, one twice, one that was never sent: some score would go to the wrong video."""
    pool = Pool(one())
    pool.submit(1, 2)
    [call] = pool.batches("x")
    results = [ItemResult(item_id=item_id, value=1.0) for item_id in ids]
    with pytest.raises(RewardError, match="'x': expected one result for each of 2 clips"):
        pool.dispatcher.scored(call.call.call_id, results, 0.1, pool.now)


# Retries


def test_a_clip_that_failed_is_tried_on_another_replica_after_a_pause() -> None:
    pool = Pool(one(num_replicas=2))
    pool.submit(1, 2)
    [call] = pool.batches("x")
    pool.answer(call, lambda ticket, row: None if row else 0.5)
    assert pool.batches("x") == []  # it backs off
    pool.wait(0.2)
    [again] = pool.batches("x")
    assert items(again) == [(1, 1)]
    assert again.call.process_id != call.call.process_id
    pool.answer(again)
    assert pool.values(1) == [0.5, 0.5]


def test_pauses_grow_and_the_last_attempt_leaves_the_clip_missing_with_the_reason() -> None:
    pool = Pool(one(), max_attempts=3)
    pool.submit(1, 1)
    starts = []
    while not pool.done:
        for call in pool.batches("x"):
            starts.append(pool.now)
            pool.answer(call, lambda ticket, row: None)
        pool.wait(0.01)
    assert len(starts) == 3
    assert starts[2] - starts[1] > starts[1] - starts[0] >= 0.05
    [score] = pool.done[1].scores
    assert (score.value, score.error) == (None, "OSError: played (attempt 3 of 3)")


def test_nan_is_missing_at_once() -> None:
    pool = Pool(one())
    pool.submit(1, 1)
    [call] = pool.batches("x")
    result = ItemResult(item_id=(1, 0), value=None, error="returned nan")
    pool.dispatcher.scored(call.call.call_id, [result], 0.1, pool.now)
    pool.poll()
    assert pool.done[1].scores[0].error == "returned nan"


def test_a_lost_process_is_replaced_and_loses_nothing() -> None:
    """The call it worked on is tried again, clip by clip; the one behind it was never tried."""
    pool = Pool(one(batch_size=2))
    pool.submit(1, 4)
    working, waiting = pool.batches("x")
    pool.die(working)
    assert pool.dispatcher.num_replaced == 1
    assert [items(call) for call in pool.batches("x")] == [items(waiting)]
    pool.answer_all("x")
    pool.wait(0.2)
    assert [len(call.items) for call in pool.batches("x")] == [1, 1]
    pool.answer_all("x")
    assert None not in pool.values(1)


def test_processes_that_die_without_a_score_between_them_stop_the_run() -> None:
    pool = Pool(one(), max_attempts=99)
    pool.submit(1, 1)

    def let_all_die() -> None:
        for _ in range(10):
            for call in pool.batches("x"):
                pool.die(call)
            pool.wait(6.0)

    with pytest.raises(RewardError, match="5 replicas of x failed with nothing scored"):
        let_all_die()


def test_a_process_that_dies_while_it_opens_for_the_first_time_stops_the_run() -> None:
    """Memory or a native crash; another start would end the same way."""
    pool = Pool(one(), opens=False)
    process = next(p for p, names in pool.alive.items() if names == ("x",))
    with pytest.raises(RewardError, match=r"a replica of x died while it opened \(no memory\)"):
        pool.dispatcher.lost(process, "no memory", pool.now)


def test_a_replacement_that_cannot_open_is_replaced_again() -> None:
    pool = Pool(one(num_replicas=2))
    process = next(p for p, names in pool.alive.items() if names == ("x",))
    pool.opens = False
    pool.dispatcher.lost(process, "it died", pool.now)
    pool.poll()
    pool.dispatcher.open_failed(max(pool.alive), OSError("disk full"), pool.now)
    pool.opens = True
    pool.poll()
    assert sum(names == ("x",) for names in pool.alive.values()) == 2
    assert pool.dispatcher.num_replaced == 2


def test_clips_lost_with_their_node_are_decoded_again_and_only_what_is_lacking_scored() -> None:
    pool = Pool([*one(), {"use": "realism"}])
    pool.submit(1, 2)
    pool.answer_all("realism")
    [call] = pool.batches("x")
    pool.calls.clear()
    pool.dispatcher.frames_lost(call.call.call_id, pool.now)
    pool.poll()
    [decode] = pool.calls
    assert isinstance(decode, Decode)
    pool.calls.clear()
    pool.dispatcher.decoded(decode.call.call_id, clips_of(1, 2), "new frames", pool.now)
    pool.poll()
    [again] = pool.calls
    assert isinstance(again, ScoreBatch)
    assert (again.call.service, again.frames) == ("x", ("new frames",))
    pool.answer(again)
    assert pool.values(1) == pool.values(1, "realism") == [0.5, 0.5]


def test_a_group_whose_clips_are_lost_still_ends_at_its_first_deadline() -> None:
    pool = Pool(one(), deadline_s=10.0)
    pool.submit(1, 2)
    pool.wait(9.0)
    [call] = pool.batches("x")
    pool.calls.clear()
    pool.dispatcher.frames_lost(call.call.call_id, pool.now)
    pool.poll()
    pool.wait(1.1)
    assert pool.values(1) == [None, None]
    [decode] = pool.calls
    pool.dispatcher.decoded(decode.call.call_id, clips_of(1, 2), "too late", pool.now)
    pool.poll()
    assert pool.batches("x") == []


# Deadlines and breakers


def test_a_group_ends_at_its_deadline_with_what_is_lacking_missing() -> None:
    pool = Pool([*one(), {"use": "realism"}], deadline_s=10.0)
    pool.submit(1, 2)
    pool.answer_all("realism")
    pool.wait(9.9)
    assert pool.done == {}
    pool.wait(0.2)
    assert pool.values(1, "realism") == [0.5, 0.5]
    assert pool.values(1, "x") == [None, None]
    assert "RewardTimeoutError: no score within rewards.deadline_s" in str(
        pool.done[1].scores[0].error
    )


def test_a_call_over_its_deadline_costs_the_replica_and_not_the_clip() -> None:
    pool = Pool(one(deadline_s=2.0), deadline_s=60.0)
    pool.submit(1, 2)
    [call] = pool.batches("x")
    pool.wait(2.5)
    [again] = pool.batches("x")
    assert again.call.process_id != call.call.process_id
    pool.answer(again)
    assert pool.values(1) == [0.5, 0.5]
    assert pool.dispatcher.num_replaced == 1


def test_a_late_answer_of_a_replaced_process_is_ignored() -> None:
    """A stopped process that goes on delivers what nobody waits for any more."""
    pool = Pool(one(deadline_s=2.0), deadline_s=60.0)
    pool.submit(1, 1)
    [call] = pool.batches("x")
    pool.wait(2.5)
    pool.dispatcher.scored(
        call.call.call_id, [ItemResult(item_id=(1, 0), value=9.0)], 0.1, pool.now
    )
    pool.answer_all("x")
    assert pool.values(1) == [0.5]


def test_a_hung_scorer_costs_one_deadline_once() -> None:
    """All that waits behind the hang, and what comes next, is missing at once."""
    pool = Pool(one(batch_size=2), deadline_s=10.0)
    for ticket in (1, 2, 3):
        pool.submit(ticket, 2)
    pool.wait(10.5)
    assert sorted(pool.done) == [1, 2, 3]
    pool.submit(4, 2)
    assert pool.values(4) == [None, None]
    assert "no replica is to be asked" in str(pool.done[4].scores[0].error)


def test_after_a_pause_one_call_tries_whether_the_scorer_works_again() -> None:
    pool = Pool(one(batch_size=2), deadline_s=10.0)
    pool.submit(1, 2)
    pool.wait(25.0)
    pool.submit(2, 2)
    pool.submit(3, 2)
    [trial] = pool.batches("x")
    pool.answer(trial)
    pool.answer_all("x")
    assert pool.values(2) == pool.values(3) == [0.5, 0.5]


# Scaling, resources, cache


def test_replicas_follow_the_queue_between_their_bounds() -> None:
    pool = Pool(one(batch_size=1, num_replicas=1, max_replicas=3))
    pool.submit(1, 60)

    def num_replicas() -> int:
        return sum(names == ("x",) for names in pool.alive.values())

    assert num_replicas() == 1
    pool.wait(30.0)
    assert num_replicas() == 3
    pool.answer_all("x")
    pool.wait(100.0)
    assert num_replicas() == 1


def test_scaling_down_by_hand_lets_a_replica_finish() -> None:
    pool = Pool(one(batch_size=2, num_replicas=2))
    pool.submit(1, 4)
    pool.dispatcher.scale("x", 1)
    pool.poll()
    assert len(pool.batches("x")) == 2
    pool.answer_all("x")
    assert None not in pool.values(1)
    assert sum(names == ("x",) for names in pool.alive.values()) == 1


def test_a_scorer_that_declares_other_resources_is_started_anew_with_them() -> None:
    """What it declares may be known only once it is open, in an environment of its own."""
    pool = Pool(one(python="/some/python"), serving=Serving(num_cpus=0.5, num_gpus=0.25))
    assert pool.resources[1:] == [(1.0, 0.0), (0.5, 0.25)]
    assert pool.dispatcher.incomplete == {}
    assert pool.dispatcher.num_replaced == 0


def test_a_known_clip_is_not_scored_again_and_a_missing_one_is() -> None:
    pool = Pool(one(), max_attempts=1)
    pool.submit(1, 2)
    pool.answer_all("x", lambda ticket, row: None if row else 0.5)
    assert pool.values(1) == [0.5, None]
    group = PoolGroup(2, payload=None, promised=None, labels=("x",))
    group.clips_are(clips_of(1, 2), "frames", pool.now)
    pool.dispatcher.submit(group, pool.now)
    pool.poll()
    [call] = pool.batches("x")
    assert items(call) == [(2, 1)]


def test_group_scores_are_known_only_for_the_same_group_in_the_same_order() -> None:
    pool = Pool(one(), groupwise=["x"])
    pool.submit(1, 2)
    pool.answer_all("x")
    for ticket, digests in ((2, ("1-0", "1-1")), (3, ("1-1", "1-0"))):
        info = clips_of(ticket, 2)
        group = PoolGroup(ticket, payload=None, promised=None, labels=("x",))
        fields = {name: getattr(info, name) for name in ClipInfo.__slots__}
        group.clips_are(ClipInfo(**{**fields, "digests": digests}), "frames", pool.now)
        pool.dispatcher.submit(group, pool.now)
        pool.poll()
    assert sorted(pool.done) == [1, 2]
    assert [len(call.items) for call in pool.batches("x")] == [2]


def test_exposed_tail_is_from_the_last_group_to_the_last_score() -> None:
    pool = Pool(one())
    pool.submit(1, 1)
    pool.wait(1.0)
    pool.submit(2, 1)
    pool.wait(0.25)
    pool.answer_all("x")
    row = pool.metrics.metrics(pool.dispatcher.live(), of_step=True)
    assert row["reward_pool/exposed_tail/seconds"] == pytest.approx(0.25, abs=1e-6)
    pool.metrics.start_step()
    row = pool.metrics.metrics(pool.dispatcher.live(), of_step=True)
    assert row["reward_pool/exposed_tail/seconds"] == 0.0
