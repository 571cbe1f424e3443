"""Who may reach the reward service, and who may read its token."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from rlvid.config import Recipe
from rlvid.launch.demand import demanded
from rlvid.launch.serve_rewards import (
    is_loopback,
    read_token,
    rewards_only,
    serve_rewards,
    token_of,
)
from rlvid.rewards.service.app import ServiceSettings


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.3", False),
        ("trainer-7", False),
    ],
)
def test_only_this_machine_counts_as_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_a_host_others_can_reach_needs_a_token_of_ones_own() -> None:
    """A token in a temporary file helps nobody on another machine, so it would be passed around."""
    with pytest.raises(ValueError, match=r"--host 0\.0\.0\.0 .*expected a --token-file"):
        serve_rewards(
            Recipe(name="x"),
            host="0.0.0.0",
            port=0,
            token_file=None,
            settings=ServiceSettings(),
            say=lambda line: None,
        )


def test_a_made_token_is_readable_by_its_owner_only_and_goes_with_the_service() -> None:
    with token_of(None) as (token, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().strip() == token
        assert len(token) == 64
    assert not path.exists()
    with token_of(None) as (other, _):
        assert other != token


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o644)
    with pytest.raises(ValueError, match=r"can be read by others \(mode 644\)"):
        read_token(path)
    path.chmod(0o600)
    assert read_token(path) == "0123456789abcdef"
    path.write_text("short")
    with pytest.raises(ValueError, match="5 characters"):
        read_token(path)
    with pytest.raises(ValueError, match="cannot read it"):
        read_token(tmp_path / "none")


def test_the_service_asks_for_no_room_of_actors_and_learners() -> None:
    """On a cluster of two small machines it must start where a training run could not."""
    recipe = Recipe(name="x")
    saved = demanded(recipe)["CPU"] - demanded(rewards_only(recipe))["CPU"]
    assert saved >= recipe.rollout.num_actors + recipe.learner.num_ranks
