"""How many actors a run should have, from who waits for whom."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.actors.autoscale import Load, wanted_actors
from rlvid.config import AutoscaleConfig, RolloutConfig
from tests.unit.actors.played_fleet import PlayedFleet, settings, task

BOUNDS = AutoscaleConfig(min_actors=2, max_actors=12, cooldown_s=20.0)


def load(
    num_actors: int = 4,
    *,
    queued: float = 1.0,
    rollout_idle: float = 0.0,
    learner_idle: float = 0.0,
    num_ready: int | None = None,
) -> Load:
    return Load(
        num_actors=num_actors,
        num_ready=num_actors if num_ready is None else num_ready,
        queued_frac=queued,
        rollout_idle_frac=rollout_idle,
        learner_idle_frac=learner_idle,
    )


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (load(4, learner_idle=0.5), 5),
        (load(8, learner_idle=0.5), 10),
        (load(12, learner_idle=0.5), 12),
        (load(8, rollout_idle=0.6), 6),
        (load(2, rollout_idle=0.6), 2),
        (load(4, rollout_idle=0.6, learner_idle=0.6), 4),
        (load(4, learner_idle=0.5, queued=0.1), 4),
        (load(4, learner_idle=0.5, num_ready=3), 4),
        (load(4, rollout_idle=1.0, num_ready=0), 4),
        (load(4, rollout_idle=0.2, learner_idle=0.05), 4),
        (load(1), 2),
        (load(20), 12),
    ],
    ids=[
        "the learner waits",
        "more actors, larger steps",
        "no more than the most",
        "actors wait",
        "no fewer than the least",
        "both wait: the rewards are slow",
        "nothing waits for an actor",
        "some still start",
        "none is ready, so none waits for work",
        "balanced",
        "below the bounds",
        "above the bounds",
    ],
)
def test_number_follows_who_waits(seen: Load, wanted: int) -> None:
    assert wanted_actors(BOUNDS, seen) == wanted


def test_fleet_grows_while_the_learner_waits_and_then_holds() -> None:
    """One change a cooldown, so that a change shows before the next."""
    played = PlayedFleet(2, settings=settings(autoscale=BOUNDS))
    played.fleet.note_learner_idle(0.6)
    sizes = []
    for _ in range(5):
        played.submit(*(task(f"{played.now:08.1f}-{n:02d}") for n in range(60)))
        played.run(20.0)
        sizes.append(played.fleet.num_actors)
    played.fleet.note_learner_idle(0.05)
    held = played.fleet.num_actors
    played.submit(*(task(f"{played.now:08.1f}-{n:03d}") for n in range(200)))
    played.run(60.0)
    assert sizes == [3, 4, 5, 6, 7]
    assert played.fleet.num_actors == held
    assert not played.lost


def test_fleet_without_work_shrinks_to_its_least() -> None:
    played = PlayedFleet(6, settings=settings(autoscale=BOUNDS))
    played.run(200.0)
    assert played.fleet.num_actors == len(played.ids()) == 2


def test_local_cluster_leaves_room_for_the_most_actors() -> None:
    """Else an autoscaled actor would wait for a CPU for ever."""
    assert RolloutConfig(num_actors=3).max_actors == 3
    assert RolloutConfig(num_actors=3, autoscale=BOUNDS).max_actors == 12


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"num_actors": 1, "autoscale": {"min_actors": 2}}, "num_actors must lie within"),
        ({"autoscale": {"min_actors": 3, "max_actors": 2}}, "max_actors must be at least"),
        ({"heartbeat_s": 5.0, "stall_s": 8.0}, "stall_s must be at least twice heartbeat_s"),
    ],
)
def test_settings_that_cannot_work_are_refused(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        RolloutConfig.model_validate(section)
