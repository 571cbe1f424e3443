"""Which group goes to which actor: ids order the groups, versions limit the choice."""

from __future__ import annotations

from rlvid.actors.fleet_records import Actor, Held, Publish, Slot, State
from rlvid.actors.task_queue import Takers, TaskQueue
from tests.unit.actors.played_fleet import task


def actor(index: int, version: int, *, num_tasks: int = 0) -> Actor:
    made = Actor(f"actor-{index}", Slot(index), 0.0, state=State.READY)
    made.held = Publish(0, version)
    made.tasks.extend(Held(task(f"{index}-{n}")) for n in range(num_tasks))
    return made


def queue_of(*tasks: object) -> TaskQueue:
    queue = TaskQueue()
    for one in tasks:
        queue.add(one)  # type: ignore[arg-type]
    return queue


def test_first_is_the_lowest_id_that_a_version_may_sample() -> None:
    """The group that is first overall waits when nobody has its weights yet."""
    queue = queue_of(task("b"), task("a", min_version=5), task("c", max_version=2))
    assert queue.first_for([3]) == (task("b"), 3)
    assert queue.first_for([3, 5]) == (task("a", min_version=5), 5)
    queue.remove(task("b"))
    assert queue.first_for([3]) is None
    assert queue.first_for([1, 2]) == (task("c", max_version=2), 2)
    assert len(queue) == 2


def test_newest_weights_are_preferred() -> None:
    """Less stale is better where the task leaves the choice."""
    assert queue_of(task("a")).first_for([2, 7, 4]) == (task("a"), 7)


def test_tasks_that_newer_weights_may_not_have_are_known() -> None:
    queue = queue_of(task("a", max_version=2), task("b", max_version=3), task("c"))
    assert [one.group_id for one in queue.below(3)] == ["a"]


def test_takers_are_ready_and_staying_by_tasks_and_version() -> None:
    takers = Takers()
    idle, busy, leaving = actor(0, 3), actor(1, 4, num_tasks=1), actor(2, 3)
    leaving.is_leaving = True
    for one in (idle, busy, leaving):
        takers.update(one)
    assert (takers.versions(0), takers.versions(1)) == ([3], [4])
    assert takers.count(0) == 1
    idle.held = Publish(0, 4)
    takers.update(idle)
    assert takers.versions(0) == [4]
    takers.remove(idle)
    assert takers.count(0) == 0


def test_who_waits_longest_is_served_first_and_the_latest_gives_back() -> None:
    """The latest to begin has most of its group before it, so what waits there waits longest."""
    takers = Takers()
    actors = [actor(index, 0, num_tasks=2) for index in range(3)]
    for one in actors:
        takers.update(one)
    assert takers.first(2, 0) is actors[0]
    assert list(takers.latest(2)) == actors[::-1]
