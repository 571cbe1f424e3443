"""Splits of a cluster: small ones by hand, all small ones against trying everything."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from rlvid.launch.estimate.cluster_split import Problem, Room, SplitRole, best_split
from rlvid.launch.estimate.sharing import Held, held_devices, shared_devices


def held(num_processes: int, num_gpus: float = 1.0) -> Held:
    return Held(num_processes=num_processes, num_gpus=num_gpus)


def role(
    name: str,
    busy_s: float,
    own: Held,
    *,
    stage: int = 1,
    most: int = 8,
    together: int = 1,
    pieces: int | None = None,
) -> SplitRole:
    return SplitRole(
        name=name,
        held=own,
        busy_s=busy_s,
        stage=stage,
        counts=tuple(range(together, most + 1, together)),
        fits=True,
        pieces=pieces,
        together=together,
    )


def problem(*roles: SplitRole, gpus: int = 8, kept: tuple[Held, ...] = ()) -> Problem:
    return Problem(room=Room(num_nodes=1, gpus_per_node=gpus), roles=roles, kept=kept)


def test_shares_are_packed_onto_whole_gpus() -> None:
    """0.7 leaves room for 0.3 and not for another 0.7; 0.47 + 0.1 + 0.16 + 0.07 + 0.18 < 1."""
    assert shared_devices([held(2, 0.7), held(2, 0.3)]) == 2
    assert shared_devices([held(3, 0.4)]) == 2
    assert held_devices([held(1, part) for part in (0.47, 0.1, 0.16, 0.07, 0.18)]) == 1
    assert held_devices([held(6), held(1, 0.4), held(2, 0.0)]) == 7


def test_overlapped_split_by_hand() -> None:
    """60, 10 and 10 GPU-seconds on 8 GPUs: 6, 1 and 1, each takes 10 s."""
    own = problem(
        role("actors", 60, held(4)), role("decoder", 10, held(2)), role("learner", 10, held(2))
    )
    assert own.step_s(own.own) == 15
    best = best_split(own)
    assert best == {"actors": held(6), "decoder": held(1), "learner": held(1)}
    assert own.step_s(best) == 10


def test_synchronous_split_by_hand() -> None:
    """40 then 40 on 8 GPUs: 4 and 4 take 10 + 10 s; 5 and 3 take 8 + 13.3."""
    waits = problem(role("actors", 40, held(6)), role("learner", 40, held(2), stage=2))
    best = best_split(waits)
    assert best == {"actors": held(4), "learner": held(4)}
    assert waits.step_s(best) == 20


def test_groups_are_not_cut() -> None:
    """4 groups of 10 s on 3 actors take two turns, as on 2: the fewer are the best."""
    whole = problem(
        role("actors", 40, held(3), pieces=4, most=4), role("learner", 1, held(1)), gpus=4
    )
    assert whole.seconds(whole.own)["actors"] == pytest.approx(20)
    assert best_split(whole) == {"actors": held(2), "learner": held(1)}


def test_ranks_of_a_clip_stay_together() -> None:
    """Teams of 4: 8 GPUs hold 4 actors and one team, though the learner is the slower."""
    teams = problem(role("actors", 4, held(4)), role("learner", 80, held(4), together=4))
    assert best_split(teams) == {"actors": held(1), "learner": held(4)}


def test_roles_that_stay_keep_their_gpus() -> None:
    """2 critics of 0.7 hold two GPUs of 4."""
    kept = problem(
        role("actors", 9, held(3)), role("learner", 1, held(1)), gpus=4, kept=(held(2, 0.7),)
    )
    assert not kept.own_fits
    assert best_split(kept) == {"actors": held(1), "learner": held(1)}
    assert best_split(problem(*kept.roles, gpus=1)) is None


def test_roles_on_one_gpu_take_turns() -> None:
    """12 + 3 s of sampling and decoding, then 5 s of a learner that has all of the GPU."""
    shared = problem(
        role("actors", 12, held(1, 0.5)),
        role("decoder", 3, held(1, 0.2)),
        role("learner", 5, held(1, 0.3), stage=2),
        gpus=1,
    )
    assert shared.step_s(shared.own) == 15 + 5
    assert best_split(shared) == shared.own


def test_sharer_moves_to_gpus_of_its_own_where_there_are_some() -> None:
    apart = problem(role("actors", 12, held(1, 0.5)), role("learner", 6, held(1, 0.5)), gpus=3)
    best = best_split(apart)
    assert best == {"actors": held(2), "learner": held(1, 0.5)}
    assert apart.step_s(best) == 6


def test_processes_of_several_gpus_lie_on_one_node() -> None:
    room = Room(num_nodes=2, gpus_per_node=3)
    assert room.holds([held(2, 2.0), held(2)])
    assert not room.holds([held(3, 2.0)])


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_best_of_all_and_never_slower_than_the_recipes(seed: int) -> None:
    """Whole GPUs, 4 to 9 of them, in teams and whole pieces or not, overlapped or not."""
    random = Random(seed)
    gpus = random.randint(4, 9)
    roles = tuple(
        role(
            name,
            random.uniform(0.1, 50),
            held(2),
            stage=random.choice([1, 2]) if name == "learner" else 1,
            most=random.randint(2, 9),
            together=random.choice([1, 2]) if name == "learner" else 1,
            pieces=random.choice([None, 3, 7]),
        )
        for name in ("actors", "decoder", "learner")
    )
    drawn = problem(*roles, gpus=gpus)
    best = best_split(drawn)
    splits = [
        {role.name: held(count) for role, count in zip(roles, counts, strict=True)}
        for counts in product(*(role.counts for role in roles))
    ]
    fitting = [drawn.step_s(split) for split in splits if drawn.holds(split)]
    assert best is not None
    assert drawn.holds(best)
    assert drawn.step_s(best) == pytest.approx(min(fitting))
    if drawn.own_fits:
        assert drawn.step_s(best) <= drawn.step_s(drawn.own)
