"""Decisions about the actors of a run, in virtual time: 4 s a group, 2 s to load."""

from __future__ import annotations

import random

import pytest

from rlvid.actors.fleet_records import Cause, FleetTask, Publish, RolloutLostError
from tests.unit.actors.played_fleet import PlayedFleet, settings, task


def groups(num: int, *, min_version: int = -1) -> list[FleetTask]:
    return [task(f"{number:06d}-00", min_version=min_version) for number in range(num)]


def names(played: PlayedFleet) -> list[str]:
    return sorted(name for name, _, _ in played.sampled)


def test_every_group_is_sampled_once_and_in_order() -> None:
    """The oldest step goes first, whatever the order of submission."""
    played = PlayedFleet(1)
    played.submit(*reversed(groups(5)))
    played.run(30.0)
    assert [name for name, _, _ in played.sampled] == [one.group_id for one in groups(5)]
    assert not played.lost


def test_actor_never_waits_between_groups() -> None:
    """One group waits at the actor, so the next begins the moment the last one ends."""
    played = PlayedFleet(2)
    played.submit(*groups(8))
    played.run(2.0 + 4 * 4.0)
    assert len(played.sampled) == 8
    assert {began for began, _, _ in played.began} == {2.0, 6.0, 10.0, 14.0}
    assert played.fleet.metrics.take()["rollout/busy/frac"] == pytest.approx(1.0, abs=0.01)


def test_idle_actor_takes_over_what_waits_behind_another() -> None:
    """A newcomer works at once, though all groups were given out before it came."""
    played = PlayedFleet(1)
    played.submit(task("a"), task("b"))
    played.run(2.1)
    played.scale(2)
    played.run(2.1)
    began = {name: (when, actor) for when, actor, name in played.began}
    assert began["b"][0] == pytest.approx(4.1, abs=0.01)
    assert began["b"][1] == "actor-1.0"
    assert played.fleet.metrics.take()["rollout/groups/withdrawn"] == 1


def test_nothing_is_given_twice_while_idle_actors_wait_for_weights() -> None:
    """They work as soon as their weights come; a group behind another would be fetched back."""
    played = PlayedFleet(4)
    played.publish(0)
    played.run(6.0)
    played.submit(*groups(4, min_version=1))
    played.publish(1)
    played.run(10.0)
    assert len({actor for _, actor, _ in played.began}) == 4
    assert played.actions["Withdraw"] == 0


def test_group_that_began_before_it_could_be_taken_back_counts() -> None:
    """Its answer may even come before the word that it had begun."""
    played = PlayedFleet(1)
    played.submit(task("a"), task("b"))
    played.run(3.0)
    played.scale(2)
    played._withdraw = lambda actor_id, lease_id: None  # type: ignore[method-assign]
    played.run(2.0)
    assert played.actions["Withdraw"] == 1
    assert played.fleet.sampled("actor-0.0", "lease-a", -1, played.now)
    assert played.fleet.sampled("actor-0.0", "lease-b", -1, played.now)
    played.fleet.withdrawn("actor-0.0", "lease-b", played.now, is_ours=False)
    played.submit(task("c"), task("d"))
    assert {actor.tasks[0].task.group_id for actor in played.fleet.actors} == {"c", "d"}
    assert played.fleet._crew.num_withdrawing == 0


def test_killed_actor_is_replaced_and_only_its_group_is_lost() -> None:
    """What merely waited at it goes on under the same lease."""
    played = PlayedFleet(1)
    played.submit(task("a"), task("b"))
    played.run(3.0)
    played.kill("actor-0.0")
    (lost,) = played.lost
    assert (lost.task.group_id, lost.cause, lost.actor_id) == ("a", Cause.DIED, "actor-0.0")
    assert played.spawned[-1] == (3.0, "actor-0.1")
    played.run(10.0)
    assert names(played) == ["b"]
    assert played.fleet.metrics.num_lost == 1


def test_stopped_actor_is_killed_within_twice_its_limit() -> None:
    """Ray never notices a stopped process; its answers just do not come."""
    played = PlayedFleet(2)
    played.submit(*groups(4))
    played.run(3.0)
    played.stop("actor-0.0")
    played.run(20.0)
    ((when, actor_id),) = played.killed
    assert actor_id == "actor-0.0"
    assert when <= 3.0 + 2 * 10.0
    (lost,) = played.lost
    assert lost.cause is Cause.STUCK
    assert "rollout.stall_s" in lost.reason
    assert len(played.sampled) == 3


def test_stopped_actor_is_noticed_while_it_has_nothing_to_do() -> None:
    """Else the next group given to it would pay for it."""
    played = PlayedFleet(1)
    played.run(3.0)
    played.stop("actor-0.0")
    played.run(20.0)
    assert played.ids() == ["actor-0.1"]
    assert not played.lost


def test_actor_that_answers_without_progress_is_stuck() -> None:
    """A hanging kernel leaves the process and its probes alive."""
    played = PlayedFleet(1)
    played.submit(task("a"))
    played.run(2.5)
    played._step = lambda actor_id: None  # type: ignore[method-assign]
    played.sample_s = 1e9
    played._finish = lambda actor_id, version: None  # type: ignore[method-assign]
    played.run(15.0)
    assert [lost.cause for lost in played.lost] == [Cause.STUCK]
    assert "no denoising step" in played.lost[0].reason


def test_answer_of_a_woken_actor_is_refused() -> None:
    """Its group was leased again; the late answer must not count, nor as anyone else's."""
    played = PlayedFleet(1)
    played.submit(task("a"))
    played.run(3.0)
    played.stop("actor-0.0")
    played.run(20.0)
    assert len(played.lost) == 1
    again = FleetTask(lease_id="second", group_id="a", prompt_id="p")
    played.submit(again)
    assert not played.fleet.sampled("actor-0.0", "lease-a", -1, played.now)
    assert not played.fleet.sampled("actor-0.1", "lease-a", -1, played.now)
    played.run(10.0)
    assert names(played) == ["a"]
    assert played.fleet.metrics.take()["rollout/groups/late"] == 2


def test_group_over_its_deadline_is_lost_though_it_goes_on() -> None:
    """Progress alone is no end."""
    played = PlayedFleet(1, settings=settings(deadline_s=30.0), sample_s=36.0)
    played.submit(task("a"))
    played.run(33.0)
    assert "rollout.deadline_s" in played.lost[0].reason


def test_driver_that_was_stopped_blames_no_actor() -> None:
    """After SIGSTOP and SIGCONT of the driver every limit has passed, for no fault of theirs."""
    played = PlayedFleet(2)
    played.submit(*groups(4))
    played.run(3.0)
    played.fleet.next_wakeup()
    played.now += 500.0
    played._do_all()
    played.run(20.0)
    assert not played.killed
    assert len(played.sampled) == 4


def test_exception_of_sampling_loses_the_group_and_keeps_the_actor() -> None:
    """Out of memory on one prompt is the prompt's affair until it happened too often."""
    played = PlayedFleet(1)
    played.submit(task("a"), task("b"))
    played.run(3.0)
    played.fleet.failed("actor-0.0", "lease-a", RuntimeError("no memory"), played.now)
    played.run(20.0)
    (lost,) = played.lost
    assert (lost.cause, lost.reason) == (Cause.FAILED, "actor-0.0: RuntimeError: no memory")
    assert names(played) == ["b"]
    assert not played.killed


def test_users_error_ends_the_run() -> None:
    """Another actor would say the same."""
    played = PlayedFleet(1)
    played.submit(task("a"))
    played.run(3.0)
    with pytest.raises(ValueError, match="does not divide"):
        played.fleet.failed("actor-0.0", "lease-a", ValueError("17 does not divide"), played.now)


def test_error_of_the_first_load_is_the_users() -> None:
    """A folder that is not there is not there for a replacement either."""
    played = PlayedFleet(1, load_s=1e9)
    with pytest.raises(ValueError, match="no folder"):
        played.fleet.open_failed("actor-0.0", ValueError("no folder"), played.now)


def test_lease_is_submitted_once() -> None:
    """Two tasks of one lease could not be told apart when they are answered."""
    played = PlayedFleet(1)
    played.submit(task("a"))
    with pytest.raises(ValueError, match="lease 'lease-a' of group a is outstanding"):
        played.submit(task("a"))


# Weights


def test_group_waits_for_an_actor_with_its_weights() -> None:
    """A group of step t must not be sampled with older weights than its step allows."""
    played = PlayedFleet(1)
    played.publish(0)
    played.run(3.0)
    played.submit(task("a", min_version=1))
    played.run(3.0)
    assert not played.began
    played.publish(1)
    played.run(5.0)
    assert played.sampled == [("a", "actor-0.0", 1)]


def test_group_is_not_prefetched_for_weights_the_actor_lacks() -> None:
    """It would be sampled, in its turn, with whatever the actor then holds."""
    played = PlayedFleet(1, stage_s=3.0)
    played.publish(0)
    played.run(6.0)
    played.submit(task("a"))
    played.publish(1)
    played.submit(task("b", min_version=1))
    assert len(played.fleet.actors[0].tasks) == 1
    played.run(3.1)
    assert len(played.fleet.actors[0].tasks) == 2
    played.run(10.0)
    assert [version for _, _, version in played.sampled] == [0, 1]


def test_weights_arrive_beside_sampling_and_nothing_is_thrown_away() -> None:
    """The swap comes between videos, so a push costs no rollout."""
    played = PlayedFleet(2)
    played.publish(0)
    played.submit(*groups(8))
    for version in (1, 2, 3):
        played.run(4.0)
        played.publish(version)
    played.run(20.0)
    assert len(played.sampled) == 8
    assert not played.lost
    assert len({began for began, _, _ in played.began}) == 4


def test_actor_that_takes_no_weights_in_time_is_replaced() -> None:
    """A transfer that hangs would leave it at old weights, able to do nothing, for good."""
    played = PlayedFleet(1, settings=settings(weights_deadline_s=20.0), stage_s=1000.0)
    played.publish(0)
    played.run(5.0)
    assert not played.killed
    played.run(40.0)
    assert played.killed


def test_actor_that_missed_versions_takes_the_newest_only() -> None:
    """Catching up one by one would cost a transfer each for weights nobody samples with."""
    played = PlayedFleet(1, stage_s=5.0)
    played.publish(0)
    played.run(3.0)
    for version in (1, 2, 3):
        played.publish(version)
    before = played.actions["Stage"]
    played.run(20.0)
    assert played.actions["Stage"] == before + 1
    assert played.fleet.is_up_to_date
    assert played.fleet.actors[0].version == 3


def test_restarted_learner_publishes_an_older_version_again() -> None:
    """Its incarnation says that the number going back is meant."""
    played = PlayedFleet(1)
    played.publish(7)
    played.run(3.0)
    with pytest.raises(ValueError, match="is not newer than"):
        played.publish(5)
    played.publish(5, incarnation=1)
    played.run(1.0)
    assert played.fleet.actors[0].held == Publish(1, 5)


def test_new_actor_takes_weights_before_it_works() -> None:
    """It would sample with the policy from files."""
    played = PlayedFleet(1)
    played.publish(4)
    played.run(3.0)
    played.scale(2)
    played.submit(*groups(4))
    played.run(20.0)
    assert {version for _, _, version in played.sampled} == {4}
    assert {actor for _, actor, _ in played.sampled} == {"actor-0.0", "actor-1.0"}


def test_refused_publish_is_fetched_again() -> None:
    """A flipped byte on the way is no reason to give the actor up."""
    played = PlayedFleet(1)
    left = [True, True, False]
    played.refuses = lambda actor_id, publish: left.pop(0)
    played.publish(0)
    played.run(5.0)
    assert played.fleet.is_up_to_date
    assert not played.killed
    assert played.fleet.metrics.take()["weights/rejected/count"] == 2


def test_publish_that_is_gone_with_its_node_costs_no_actor() -> None:
    """The actor works on with what it has, asks again, and takes what a new learner publishes."""
    played = PlayedFleet(1)
    played.publish(0)
    played.run(3.0)
    stage = played._stage

    def gone(actor_id: str, publish: Publish) -> None:
        played.later(
            0.1,
            lambda: played.fleet.stage_unreachable(actor_id, publish, "lost", played.now),
        )

    played._stage = gone  # type: ignore[method-assign]
    played.publish(1)
    played.submit(*groups(3))
    played.run(13.0)
    assert len(played.sampled) == 3
    assert not played.killed
    assert 5 <= played.fleet.metrics.take()["weights/unreachable/count"] <= 15
    played._stage = stage  # type: ignore[method-assign]
    played.publish(1, incarnation=1)
    played.run(3.0)
    assert played.fleet.is_up_to_date


def test_actor_that_refuses_three_times_is_replaced() -> None:
    played = PlayedFleet(2)
    played.refuses = lambda actor_id, publish: actor_id == "actor-0.0"
    played.publish(0)
    played.run(10.0)
    assert played.ids() == ["actor-0.1", "actor-1.0"]
    assert played.fleet.is_up_to_date
    assert played.fleet.metrics.take()["rollout/replaced/weights"] == 1


def test_weights_wait_for_groups_that_may_not_have_them() -> None:
    """A replayed run says with which version each group was sampled."""
    played = PlayedFleet(1)
    played.publish(0)
    played.run(3.0)
    played.submit(task("a", max_version=0), task("b", max_version=0), task("c", min_version=1))
    played.publish(1)
    played.run(30.0)
    assert [(name, version) for name, _, version in played.sampled] == [
        ("a", 0),
        ("b", 0),
        ("c", 1),
    ]


def test_group_for_weights_that_nobody_has_comes_back() -> None:
    """Waiting for them would hold up every newer publish for ever."""
    played = PlayedFleet(1)
    played.publish(5)
    played.run(3.0)
    played.submit(task("a", max_version=4))
    assert [(lost.task.group_id, lost.cause) for lost in played.lost] == [("a", Cause.STALE)]


def test_group_sampled_with_other_weights_comes_back() -> None:
    played = PlayedFleet(1)
    played.publish(2)
    played.run(3.0)
    played.submit(task("a", min_version=2))
    assert not played.fleet.sampled("actor-0.0", "lease-a", 1, played.now)
    played._do_all()
    assert played.lost[0].cause is Cause.STALE
    assert "version 1, expected 2 to any" in played.lost[0].reason


def test_failed_group_does_not_hold_up_later_weights() -> None:
    """It is no longer outstanding, however often that is said."""
    played = PlayedFleet(1)
    played.publish(0)
    played.run(3.0)
    played.submit(task("a", max_version=0))
    played.fleet.failed("actor-0.0", "lease-a", RuntimeError("no memory"), played.now)
    played.publish(1)
    played.run(3.0)
    assert played.fleet.is_up_to_date


# The canary


def test_replacement_with_a_wrong_canary_samples_nothing() -> None:
    """It holds the right bytes and computes something else."""
    played = PlayedFleet(1)
    played.publish(0)
    played.fleet.set_canary(Publish(0, 0), 0.0)
    played.run(3.0)
    played.canary = lambda actor_id: "differs by 0.5" if actor_id == "actor-0.1" else None
    played.kill("actor-0.0")
    played.submit(task("a"))
    played.run(20.0)
    assert [actor for _, actor, _ in played.began] == ["actor-0.2"]
    assert played.fleet.metrics.take()["rollout/replaced/canary"] == 1


def test_canary_that_no_actor_passes_ends_the_run() -> None:
    """Replacing would go on for ever: dtype, adapter or attention backend differ."""
    played = PlayedFleet(2)
    played.canary = lambda actor_id: "differs by 0.5"
    played.publish(0)
    played.fleet.set_canary(Publish(0, 0), 0.0)
    with pytest.raises(RolloutLostError, match="differs by 0.5"):
        played.run(5.0)


def test_working_actors_are_asked_when_a_canary_is_set() -> None:
    played = PlayedFleet(2)
    played.publish(0)
    played.run(3.0)
    played.submit(*groups(4))
    played.fleet.set_canary(Publish(0, 0), played.now)
    played.run(20.0)
    assert played.fleet.metrics.take()["rollout/canary/passed"] == 2
    assert len(played.sampled) == 4


# Losses


def test_crash_loop_ends_with_what_to_do() -> None:
    played = PlayedFleet(1)
    played.run(3.0)
    for _ in range(3):
        played.kill(played.ids()[0])
        played.run(40.0)
    advice = r"4 actors lost within 1000 s.*rollout.crash_budget"
    with pytest.raises(RolloutLostError, match=advice):
        played.kill(played.ids()[0])


def test_losses_far_apart_are_no_crash_loop() -> None:
    """A long run on spot nodes loses many actors and is well."""
    played = PlayedFleet(1)
    for _ in range(10):
        played.run(400.0)
        played.kill(played.ids()[0])
    assert played.fleet.metrics.num_lost == 10


def test_slot_that_keeps_failing_pauses_longer_each_time() -> None:
    """The first replacement comes at once; a machine in trouble is left in peace."""
    played = PlayedFleet(1, settings=settings(crash_budget=9))
    pauses = []
    for _ in range(5):
        while not played.ids():
            played.run(0.1)
        lost_at = played.now
        played.kill(played.ids()[0])
        played.run(40.0)
        pauses.append(played.spawned[-1][0] - lost_at)
    assert pauses[0] == 0.0
    assert pauses == sorted(pauses)
    assert 2.0 <= pauses[4] <= 4.0


def test_finished_group_makes_the_pause_short_again() -> None:
    played = PlayedFleet(1, settings=settings(crash_budget=9))
    for number in range(3):
        played.submit(task(f"{number}"))
        played.run(10.0)
        played.kill(played.ids()[0])
        assert played.spawned[-1][0] == played.now


def test_others_work_while_one_starts() -> None:
    """Replacement is nobody's pause."""
    played = PlayedFleet(3, load_s=30.0)
    played.run(31.0)
    played.submit(*groups(12))
    played.run(1.0)
    played.kill("actor-2.0")
    played.run(8.0)
    assert len(played.sampled) == 4


def test_joining_actors_start_one_after_another_where_cores_are_few() -> None:
    """The first of them works as soon as if it came alone; those of a fresh run start together."""
    played = PlayedFleet(2, settings=settings(max_starting=1))
    played.run(3.0)
    played.scale(6)
    played.run(20.0)
    assert [when for when, _ in played.spawned] == [0.0, 0.0, 3.0, 5.0, 7.0, 9.0]
    assert played.fleet.is_complete


def test_waiting_actor_takes_the_turn_of_one_that_died() -> None:
    played = PlayedFleet(1, settings=settings(max_starting=1))
    played.run(3.0)
    played.scale(3)
    played.kill("actor-1.0")
    assert len(played.spawned) == 3
    assert played.fleet.gauges()["rollout/actors/pending"] == 0
    played.run(20.0)
    assert played.fleet.is_complete


def test_actor_without_room_keeps_no_other_from_starting() -> None:
    """After it was told of, it waits for the cluster and no longer for a core."""
    played = PlayedFleet(1, settings=settings(max_starting=1))
    played.run(3.0)
    played.has_room = lambda: False
    played.scale(3)
    played.run(1.0)
    assert played.fleet.gauges()["rollout/actors/pending"] == 1
    played.run(40.0)
    assert played.fleet.gauges()["rollout/actors/pending"] == 2


def test_actor_no_longer_wanted_is_not_started_when_its_turn_comes() -> None:
    played = PlayedFleet(2, settings=settings(max_starting=1))
    played.run(3.0)
    played.scale(6)
    played.scale(3)
    played.run(20.0)
    assert len(played.spawned) == 3


def test_whole_node_may_vanish() -> None:
    """Its actors die together, which is no crash loop."""
    played = PlayedFleet(8)
    played.submit(*groups(16))
    played.run(3.0)
    for actor_id in played.ids()[:6]:
        played.kill(actor_id)
    assert len(played.lost) == 6
    played.run(40.0)
    assert len(played.sampled) == 10
    assert played.fleet.is_complete


def test_without_any_room_the_run_ends_with_advice() -> None:
    played = PlayedFleet(1)
    played.run(3.0)
    played.has_room = lambda: False
    played.kill("actor-0.0")
    with pytest.raises(RolloutLostError, match="of 1 wanted 1 wait for room"):
        played.run(100.0)


def test_actors_without_room_are_told_of_once_and_the_others_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Scaling beyond a local cluster is no error: it is said, with what to do."""
    played = PlayedFleet(2)
    played.run(3.0)
    played.has_room = lambda: False
    played.scale(5)
    played.submit(*groups(6))
    played.run(200.0)
    assert len(played.sampled) == 6
    assert played.fleet.gauges()["rollout/actors/pending"] == 3
    told = [record.getMessage() for record in caplog.records if "no process" in record.getMessage()]
    assert len(told) == 1
    assert "actors=3" in told[0]
    assert "cluster.num_cpus" in told[0]


def test_actor_that_does_not_load_is_replaced() -> None:
    played = PlayedFleet(2)
    played.run(3.0)
    played.load_s = 1e9
    played.kill("actor-0.0")
    played.load_s = 2.0
    played.actors["actor-0.1"].is_stopped = True
    played.run(80.0)
    assert played.ids() == ["actor-0.2", "actor-1.0"]


def test_only_actor_stopped_while_it_loads_is_replaced() -> None:
    """It answers beside the loading, so this does not take the whole time of a start."""
    played = PlayedFleet(1)
    played.run(3.0)
    played.kill("actor-0.0")
    played.stop("actor-0.1")
    played.submit(task("a"))
    played.run(25.0)
    assert names(played) == ["a"]
    assert played.ids() == ["actor-0.2"]


def test_first_actor_of_a_run_that_is_stopped_while_it_loads_is_replaced() -> None:
    """Nothing is known against the policy: another actor may well load it."""
    played = PlayedFleet(1, load_s=2.0)
    played.run(1.0)
    played.stop("actor-0.0")
    played.submit(task("a"))
    played.run(25.0)
    assert names(played) == ["a"]
    assert played.ids() == ["actor-0.1"]


def test_first_actors_that_do_not_load_in_time_end_the_run() -> None:
    """Others would take as long."""
    played = PlayedFleet(2, load_s=1e9)
    with pytest.raises(RolloutLostError, match=r"did not load.*as the first of all"):
        played.run(100.0)


def test_starts_that_never_come_off_end_the_run() -> None:
    """Each takes so long that the window of the crash budget never sees more than a few."""
    played = PlayedFleet(1, settings=settings(crash_window_s=100.0))
    played.run(3.0)
    played.load_s = 1e9
    played.kill("actor-0.0")
    with pytest.raises(RolloutLostError, match="4 actors lost while they started and none"):
        played.run(1000.0)
    assert played.now > 200.0


# Scaling


def test_leaving_actor_finishes_its_group() -> None:
    """And what waited there is sampled by another, under the same lease."""
    played = PlayedFleet(2)
    played.submit(*groups(4))
    played.run(3.0)
    played.scale(1)
    assert played.fleet.gauges()["rollout/actors/draining"] == 1
    played.run(4.0)
    assert played.fleet.gauges()["rollout/actors/draining"] == 0
    played.run(20.0)
    assert names(played) == [one.group_id for one in groups(4)]
    assert not played.lost
    assert played.ids() == ["actor-0.0"]


def test_actor_that_was_leaving_stays_when_it_is_wanted_again() -> None:
    """A new one would have to load what this one holds."""
    played = PlayedFleet(2)
    played.submit(*groups(4))
    played.run(3.0)
    played.scale(1)
    played.scale(2)
    played.run(20.0)
    assert len(played.spawned) == 2
    assert names(played) == [one.group_id for one in groups(4)]


def test_death_of_a_leaving_actor_brings_no_replacement() -> None:
    played = PlayedFleet(2)
    played.submit(*groups(4))
    played.run(3.0)
    played.scale(1)
    leaving = next(a.actor_id for a in played.fleet.actors if a.is_leaving)
    played.kill(leaving)
    assert len(played.lost) == 1
    played.run(20.0)
    assert played.ids() == ["actor-0.0"]
    assert len(played.sampled) == 3


def _lease_again(played: PlayedFleet, seen: int) -> int:
    """Submit what was lost since `seen`, for whatever weights; return how many were lost."""
    for lost in played.lost[seen:]:
        one = lost.task
        lease_id = f"{one.lease_id}+"
        played.submit(FleetTask(lease_id=lease_id, group_id=one.group_id, prompt_id=one.prompt_id))
    return len(played.lost)


@pytest.mark.parametrize("seed", range(30))
def test_no_group_is_lost_or_doubled_whatever_happens(seed: int) -> None:
    """Random kills, stops, scaling, publishes and pinned versions: each group comes back once."""
    draw = random.Random(seed)
    limit = draw.choice([None, 1, 2])
    played = PlayedFleet(3, settings=settings(crash_budget=1000, max_starting=limit))
    played.refuses = lambda actor_id, publish: draw.random() < 0.1
    played.publish(0)
    num_submitted, version, seen = 0, 0, 0
    for _ in range(60):
        played.run(draw.uniform(0.0, 6.0))
        living = [a for a in played.ids() if played._lives(a)]
        what = draw.choice(["submit", "submit", "kill", "stop", "scale", "publish"])
        if what == "submit":
            for _ in range(draw.randint(1, 6)):
                low = draw.randint(0, version)
                high = draw.choice([None, None, version])
                name = f"{num_submitted:06d}"
                played.submit(task(name, min_version=low, max_version=high))
                num_submitted += 1
        elif what == "kill" and living:
            played.kill(draw.choice(living))
        elif what == "stop" and living:
            played.stop(draw.choice(living))
        elif what == "scale":
            played.scale(draw.randint(1, 6))
        elif what == "publish":
            version += 1
            played.publish(version)
        seen = _lease_again(played, seen)
    for _ in range(40):
        played.run(20.0)
        seen = _lease_again(played, seen)
    assert names(played) == [f"{number:06d}" for number in range(num_submitted)]
    assert played.fleet.is_up_to_date
    assert played.fleet.num_queued == 0
    assert all(not actor.tasks for actor in played.fleet.actors)
    crew = played.fleet._crew
    assert crew.takers.count(0) == played.fleet.num_actors
    assert crew.num_withdrawing == crew.num_busy == 0


def test_policy_from_files_replaces_that_of_the_learner() -> None:
    """The evaluation compares two policies on the same actors."""
    played = PlayedFleet(2)
    played.publish(3)
    played.run(3.0)
    played.submit(task("a"))
    with pytest.raises(ValueError, match="collect all groups"):
        played.fleet.reload(played.now)
    played.run(5.0)
    played.fleet.reload(played.now)
    played._do_all()
    assert not played.fleet.is_complete
    played.run(2.1)
    assert played.fleet.is_complete
    assert [actor.version for actor in played.fleet.actors] == [-1, -1]
