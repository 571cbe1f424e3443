"""One exchange in twenty fails: every clip ends scored by itself, or masked and counted."""

from __future__ import annotations

import pytest

from rlvid.rewards.service import remote_client
from tests.bench import reward_faults

pytestmark = pytest.mark.slow


def test_a_thousand_requests_through_a_failing_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks again until an answer is whole and its own; the server scores a clip once."""
    monkeypatch.setattr(remote_client, "MAX_ANSWER_BYTES", reward_faults.OVERSIZED_BYTES // 2)
    found = reward_faults.through_http()
    assert all(count >= 3 for count in found["injected"].values()), "some kind was not tried"
    outcome = found["outcome"]
    assert (outcome["zero"], outcome["swapped"], outcome["lost"]) == (0, 0, 0)
    # A score made NaN is a verdict and not asked again; a busy machine adds timeouts of its own.
    assert 0 < outcome["masked"] <= 0.05 * found["clips"]
    assert outcome["right"] + outcome["masked"] == found["clips"] == 2000
    assert found["scored_more_than_once"] == 0


def test_a_thousand_clips_through_a_pool_whose_scorer_fails() -> None:
    """Exceptions and hangs are tried again, NaN is missing, and nothing is made up."""
    found = reward_faults.through_pool()
    assert {"exception", "nan", "hang"} <= set(found["injected"]), "some kind was not tried"
    outcome = found["outcome"]
    assert (outcome["zero"], outcome["swapped"], outcome["lost"]) == (0, 0, 0)
    assert outcome["right"] + outcome["masked"] == found["clips"] == 1000
    assert 0 < outcome["masked"] <= 0.1 * found["clips"]
    assert found["replicas_replaced"] >= found["injected"]["hang"]


def test_a_scorer_that_answers_for_too_few_clips_ends_the_run() -> None:
    """No number can be given to a clip then, so going on would be guessing."""
    assert reward_faults.wrong_length() == (
        "rewards 'reads': returned shape (1,) for 2 videos; "
        "score() must return one number per video, in order."
    )
