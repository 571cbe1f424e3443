"""A step on shared cores, worked out by hand, and the pace of roles that wait for one another."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.launch.estimate.cpu_rates import CpuRates, group_seconds, update_seconds
from rlvid.launch.estimate.cpu_step import MESSAGES_S, GroupSeconds, cpu_step
from rlvid.launch.estimate.render_cpu_step import cpu_step_lines
from rlvid.launch.estimate.role_rounds import RoundSeconds
from rlvid.launch.estimate.shared_cores import Task, finish_s

GROUP = GroupSeconds(sample=2.0, decode=0.5, score={"physics": 0.5}, learn=1.0, update=0.0)


@pytest.fixture
def no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlvid.launch.estimate.cpu_step.MESSAGES_S", 0.0)


def recipe(**sections: Any) -> Recipe:
    rewards = {"colocate": True, "scorers": [{"use": "physics"}]}
    tree = {"name": "r", "phases": ["grpo"], "rewards": rewards, **sections}
    return Recipe.model_validate(tree)


def rollout(groups: int, actors: int, **more: Any) -> dict[str, Any]:
    return {"groups_per_step": groups, "num_actors": actors, **more}


def test_more_processes_than_cores_share_them() -> None:
    """Three of 2 s on 2 cores take 3 s each; the one of 1 s ends at 1.5 s and leaves its share."""
    tasks = [Task(role=role, seconds=2.0) for role in "abc"]
    processes = dict.fromkeys("abc", 1)
    assert finish_s(tasks, processes, 2) == pytest.approx([3.0, 3.0, 3.0])
    tasks[0] = Task(role="a", seconds=1.0)
    assert finish_s(tasks, processes, 2) == pytest.approx([1.5, 2.5, 2.5])
    assert finish_s(tasks, processes, 3) == pytest.approx([1.0, 2.0, 2.0])


def test_a_role_has_so_many_tasks_at_a_time_and_waits_for_others() -> None:
    tasks = [
        Task(role="a", seconds=1.0),
        Task(role="a", seconds=1.0),
        Task(role="b", seconds=1.0, after=(1,)),
        Task(role="b", seconds=1.0, after=(0,)),
    ]
    assert finish_s(tasks, {"a": 1, "b": 1}, 4) == pytest.approx([1.0, 2.0, 3.0, 2.0])


@pytest.mark.usefixtures("no_messages")
def test_a_step_of_one_group_is_its_parts_one_after_the_other() -> None:
    step = cpu_step(recipe(rollout=rollout(1, 1)), GROUP, 8)
    assert step.step_s == pytest.approx(2.0 + 0.5 + 0.5 + 1.0)


@pytest.mark.usefixtures("no_messages")
def test_groups_overlap_as_far_as_cores_go() -> None:
    """Sampled in pairs at 2 and 4 s; scored from 2 s on, one a second, each learned as it is
    ready: the last of four at 7 s. One core does all there is to do without a break."""
    drawn = recipe(rollout=rollout(4, 2))
    assert cpu_step(drawn, GROUP, 8).step_s == pytest.approx(2.0 + 4 * 1.0 + 1.0)
    step = cpu_step(drawn, GROUP, 1)
    assert step.step_s == pytest.approx(step.actors_s + step.rewards_s + step.learner_s)


@pytest.mark.usefixtures("no_messages")
def test_a_step_ahead_the_slowest_role_sets_the_pace() -> None:
    """Two actors sample four groups in 4 s, the others have them in 4 s meanwhile."""
    ahead = recipe(rollout=rollout(4, 2, max_staleness=1))
    assert cpu_step(ahead, GROUP, 8).step_s == pytest.approx(4.0)


@pytest.mark.usefixtures("no_messages")
def test_a_batch_that_is_ranked_whole_is_learned_after_its_last_score() -> None:
    whole = recipe(rollout=rollout(4, 2), algorithm={"advantage": {"std": "global"}})
    assert cpu_step(whole, GROUP, 8).step_s == pytest.approx(2.0 + 4 * 1.0 + 4 * 1.0)


@pytest.mark.usefixtures("no_messages")
def test_the_next_step_waits_for_the_update() -> None:
    slow = replace(GROUP, update=3.0)
    assert cpu_step(recipe(rollout=rollout(1, 1)), slow, 8).step_s == pytest.approx(7.0)
    two = recipe(rollout=rollout(2, 1), learner={"num_ranks": 2, "num_cpus": 1.0})
    assert cpu_step(two, slow, 8).learner_s == pytest.approx(2 * 1.0 + 2 * 3.0)


def test_messages_of_a_group_come_behind_its_sampling() -> None:
    step = cpu_step(recipe(rollout=rollout(1, 1)), GROUP, 8)
    assert step.step_s == pytest.approx(2.0 + MESSAGES_S + 0.5 + 0.5 + 1.0)


def test_a_group_is_its_latents_at_the_measured_rate() -> None:
    """Independent noise: 4 steps of 8 latents. Two updates go over the groups twice."""
    drawn = recipe(
        rollout=rollout(3, 1, initial_noise="independent", num_denoising_steps=4, group_size=8),
        algorithm={"updates_per_batch": 2},
    )
    rates = CpuRates(
        num_cores=2,
        latent=0.5,
        decode=0.5,
        score={"physics": 0.25},
        learn=6.0,
        update=1.0,
        not_measured=(),
    )
    found = group_seconds(drawn, rates)
    assert found.sample == pytest.approx(4 * 8 * 0.5)
    assert found.decode + sum(found.score.values()) == 0.75
    assert (found.learn, found.update) == (12.0, 1.0)


@pytest.mark.parametrize(("updates", "beside"), [(1, 4.0), (2, 4.0)])
def test_the_update_is_what_the_last_group_takes_longer(updates: int, beside: float) -> None:
    """A round of two groups: the last call learns from its own, and again from both."""
    turns = 1 + 2 * (updates - 1)
    rounds = RoundSeconds(learn=[3.0, 2.0, 2.0], update=[turns * 2.0 + beside] * 3)
    drawn = recipe(algorithm={"updates_per_batch": updates})
    assert update_seconds(drawn, rounds) == pytest.approx(beside)


def test_a_recipe_with_gpus_is_not_timed_on_cores() -> None:
    with pytest.raises(ValueError, match=r"learner\.num_gpus 1; expected 0"):
        cpu_step_lines(recipe(learner={"num_gpus": 1}))
    with pytest.raises(ValueError, match="phase grpo is timed, got phases sft"):
        cpu_step_lines(Recipe(name="r", phases=("sft",)))


def test_a_step_of_the_smallest_recipe_is_timed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real forwards, in a process for the one core; what they come to depends on the machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    model = {"num_frames": 5}
    small = recipe(model=model, rollout=rollout(2, 1, group_size=2, num_denoising_steps=3))
    lines = cpu_step_lines(small)
    assert lines[0].startswith("a step of grpo, timed on the cores here (1): ")
    assert " 0 s" not in lines[0]
