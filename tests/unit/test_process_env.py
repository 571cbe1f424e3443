"""What a role's process is given, and what it has anyway."""

from __future__ import annotations

import pytest

from rlvid.process_env import own_cluster, runtime_env_of

THREADS = {"OMP_NUM_THREADS": "3"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """That of a driver, with the variables in it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    return monkeypatch


def test_what_a_cluster_of_its_own_has_inherited_is_not_given_again() -> None:
    with own_cluster():
        assert runtime_env_of(THREADS) == {}


def test_a_cluster_of_others_has_inherited_nothing() -> None:
    """It was started on another machine, or before these variables were set."""
    assert runtime_env_of(THREADS) == {"env_vars": THREADS}
    with own_cluster():
        pass
    assert runtime_env_of(THREADS) == {"env_vars": THREADS}


def test_what_was_set_after_the_start_is_given(environment: pytest.MonkeyPatch) -> None:
    with own_cluster():
        environment.setenv("OMP_NUM_THREADS", "4")
        assert runtime_env_of({"OMP_NUM_THREADS": "4"}) == {"env_vars": {"OMP_NUM_THREADS": "4"}}


@pytest.mark.parametrize("others", [{"OMP_NUM_THREADS": "2"}, {**THREADS, "FLAG": "1"}])
def test_variables_that_differ_are_given(others: dict[str, str]) -> None:
    with own_cluster():
        assert runtime_env_of(others) == {"env_vars": others}


def test_other_keys_of_a_scorer_stay_with_its_variables() -> None:
    """`rewards.scorers.N.runtime_env` may name packages; Ray then starts it apart anyway."""
    with own_cluster():
        assert runtime_env_of(THREADS, {"pip": ["x"]}) == {"env_vars": THREADS, "pip": ["x"]}
