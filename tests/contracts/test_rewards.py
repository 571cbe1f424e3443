from __future__ import annotations

import pytest

from rlvid.config.rewards import ScorerConfig
from rlvid.rewards.base import UsesServer
from rlvid.rewards.critics import BUILTIN
from rlvid.rewards.registry import open_scorer
from rlvid.rewards.specialists.needs import MissingPartError
from rlvid.testing import check_reward
from tests.unit.rewards.scorers import BatchCentred, OneForAll, SecondIsNan

OWN_TEST = {"text_in_video", "trained_reward", "remote", "remote_group"}
"""They need a prompt, a folder or a service that is not there by default; they have own tests."""


@pytest.mark.parametrize("name", sorted(set(BUILTIN) - OWN_TEST))
def test_builtin_reward_keeps_the_contract(name: str) -> None:
    try:
        reward = open_scorer(ScorerConfig(use=name), name)
    except MissingPartError as missing:
        pytest.skip(str(missing))
    if isinstance(reward, UsesServer):
        pytest.skip("asks a model server; its own tests check it against one")
    check_reward(reward)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (OneForAll(), r"returned shape \(4,\) for 8 videos"),
        (SecondIsNan(), r"returned \[1.0, nan"),
        (BatchCentred(), "depends on its batch"),
    ],
)
def test_the_check_finds_a_broken_reward(broken: object, complaint: str) -> None:
    """A check that nothing fails protects nobody."""
    with pytest.raises(AssertionError, match=complaint):
        check_reward(broken)
