"""What callers of the reward pool are told before anything is sent; no process is started."""

from __future__ import annotations

import numpy as np
import pytest

from rlvid.bell import Bell
from rlvid.config import Recipe
from rlvid.config.cluster import ClusterConfig
from rlvid.config.rewards import RewardsConfig
from rlvid.launch.serve_rewards import describe
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Endpoint, RewardError, Serving
from rlvid.rewards.dispatch.answers import Answers
from rlvid.rewards.dispatch.processes import DECODER, Spawn
from rlvid.rewards.pool import RewardPool
from rlvid.rewards.scoring import GroupScores, ScorerInfo

PROMPT = Prompt(prompt_id="p", text="a red ball")
REWARDS = RewardsConfig.model_validate({"scorers": [{"use": "small:X"}, {"use": "large:X"}]})
SPECS = {"small:X": ClipSpec(height=8), "large:X": ClipSpec(height=720, min_frames=9)}


def opened_pool() -> RewardPool:
    """A pool whose scorers have said what they are."""
    pool = RewardPool(REWARDS, None, ClusterConfig())
    for action in pool._dispatcher.poll(0.0):
        if isinstance(action, Spawn):
            infos = {
                label: ScorerInfo(
                    clip_spec=SPECS[label],
                    serving=Serving(),
                    version=f"v-{label}",
                    is_groupwise=False,
                    uses_server=True,
                )
                for label in action.host.services
                if label != DECODER
            }
            pool._dispatcher.opened(action.process_id, infos, 0.0)
    return pool


def test_clips_are_held_against_the_scorers_that_are_asked_and_no_others() -> None:
    """One scorer that wants large clips must not keep small ones from all the others."""
    pool = opened_pool()
    pool.check_clips((5, 8, 8), fps=8, scorers=["small:X"])
    with pytest.raises(RewardError, match="'large:X': needs clips with height 720"):
        pool.check_clips((5, 8, 8), fps=8)
    frames = np.zeros((1, 5, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(RewardError, match="'large:X'"):
        pool.submit_clips(frames, PROMPT, fps=8, group_id="g", scorers=["large:X"])
    assert pool.num_outstanding == 0


def test_who_submits_clips_is_not_told_of_a_model_section() -> None:
    """It is in a recipe that a client never saw."""
    with pytest.raises(RewardError) as caught:
        opened_pool().check_clips((5, 8, 8), fps=8, scorers=["large:X"])
    assert str(caught.value) == (
        "rewards 'large:X': needs clips with height 720, min_frames 9, the clips submitted have "
        "height 8, frames 5. Submit such clips or ask other scorers."
    )


def test_the_version_published_changes_with_the_model_behind_the_server() -> None:
    """Who keeps scores by it would mix those of two models."""
    published = []
    for digest in ("old", "new"):
        pool = opened_pool()
        endpoint = Endpoint(url="http://127.0.0.1:1", model="m", model_digest=digest)
        pool._dispatcher.connected("small:X", [endpoint])
        recipe = Recipe(name="x").model_copy(update={"rewards": REWARDS})
        published.append({scorer.name: scorer.version for scorer in describe(recipe, pool)})
    old, new = published
    assert old["small:X"] != new["small:X"]
    assert old["large:X"] == new["large:X"]


def test_the_bell_rings_for_scores_and_for_the_pool_s_end_and_not_for_clips() -> None:
    """One loop sleeps on it; what it is not woken for it finds a deadline later."""
    bell = Bell()
    answers = Answers(bell)
    ticket = answers.new_ticket()
    answers.ready()
    assert answers.take(0.0) == []
    assert not bell.wait(0.0)
    scores = GroupScores(scores=(), decode_s=0.0, score_s=0.0)
    answers.give(ticket, scores, None)
    assert bell.wait(0.0)
    assert answers.take(0.0) == [(ticket, scores)]
    answers.fail(RewardError("over"))
    assert bell.wait(0.0)
    with pytest.raises(RewardError, match="over"):
        answers.take(0.0)


def test_replicas_of_no_scorer_are_refused() -> None:
    pool = opened_pool()
    assert pool.num_replicas("small:X") == 1
    for ask in (pool.num_replicas, lambda label: pool.scale(label, 2)):
        with pytest.raises(ValueError, match=r"no scorer 'medium:X'; there: small:X, large:X"):
            ask("medium:X")
