"""What the steps of the RL phase refuse."""

from __future__ import annotations

import pytest

from rlvid.actors.pool import RolloutLostError
from rlvid.launch.driver_state import DriverState
from rlvid.launch.loop.steps import GrpoSteps
from rlvid.records import Prompt
from tests.unit.launch.hand_made import recipe

PROMPTS = (Prompt(prompt_id="a", text="a ball"), Prompt(prompt_id="b", text="a cube"))


def test_run_goes_on_while_a_prompt_is_left() -> None:
    GrpoSteps(recipe(), PROMPTS, DriverState()).check_prompts({"a": "lost 3 actors", "c": "old"})


def test_run_ends_when_every_prompt_is_quarantined() -> None:
    """Its steps would hold no group, and it would end well having trained nothing."""
    steps = GrpoSteps(recipe(), PROMPTS, DriverState())
    with pytest.raises(RolloutLostError, match=r"all 2 prompts are quarantined.*b: lost 3 actors"):
        steps.check_prompts({"a": "a: lost 3 actors", "b": "b: lost 3 actors"})
