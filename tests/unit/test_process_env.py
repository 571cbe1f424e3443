"""What a role's process is given, and what it has anyway."""

from __future__ import annotations

import pytest

from rlvid.launch import cluster_guard
from rlvid.process_env import LOCAL_CLUSTER, runtime_env_of

THREADS = {"OMP_NUM_THREADS": "3"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """That of a driver which started its cluster, with the variables in it."""
    monkeypatch.setenv(LOCAL_CLUSTER, "mark")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    return monkeypatch


def test_what_a_local_cluster_has_inherited_is_not_given_again() -> None:
    assert LOCAL_CLUSTER == cluster_guard.VARIABLE
    assert runtime_env_of(THREADS) == {}


def test_a_cluster_of_others_has_inherited_nothing(environment: pytest.MonkeyPatch) -> None:
    """It was started on another machine, or before these variables were set."""
    environment.delenv(LOCAL_CLUSTER)
    assert runtime_env_of(THREADS) == {"env_vars": THREADS}


@pytest.mark.parametrize("others", [{"OMP_NUM_THREADS": "2"}, {**THREADS, "FLAG": "1"}])
def test_variables_that_differ_are_given(others: dict[str, str]) -> None:
    assert runtime_env_of(others) == {"env_vars": others}


def test_other_keys_of_a_scorer_stay_with_its_variables() -> None:
    """`rewards.scorers.N.runtime_env` may name packages; Ray then starts it apart anyway."""
    assert runtime_env_of(THREADS, {"pip": ["x"]}) == {"env_vars": THREADS, "pip": ["x"]}
