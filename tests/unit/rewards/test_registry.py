from __future__ import annotations

import pytest

from rlvid.config.rewards import ScorerConfig
from rlvid.plugins import resolve
from rlvid.rewards.base import Reward
from rlvid.rewards.critics import BUILTIN
from rlvid.rewards.registry import open_scorer

HERE = "tests.unit.rewards.scorers"


def open_with(use: str, **config: object) -> object:
    return open_scorer(ScorerConfig(use=use, config=config), "rewards.scorers.0")


@pytest.mark.parametrize("name", BUILTIN)
def test_every_builtin_name_leads_to_a_class(name: str) -> None:
    """The table holds strings; a typo in one would only show in the run that names it."""
    assert isinstance(resolve(BUILTIN[name], {}, where="test"), type)


def test_a_scorer_of_ones_own_is_opened_with_its_settings() -> None:
    scorer = open_with(f"{HERE}:Brightness", target=0.25)
    assert isinstance(scorer, Reward)
    assert scorer.target == 0.25  # type: ignore[attr-defined]


def test_unknown_scorer_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"rewards\.scorers\.0\.use.*did you mean 'physics'"):
        open_with("phisics")


def test_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"rewards\.scorers\.0\.config\.tolerence.*'tolerance'"):
        open_with("physics", tolerence=1.0)


def test_setting_of_wrong_type_is_named() -> None:
    with pytest.raises(ValueError, match=r"scorers\.0\.config\.fps: expected int, got 'x'"):
        open_with("physics", fps="x")


def test_settings_for_a_scorer_without_config_are_refused() -> None:
    """Accepting them would drop what the user asked for in silence."""
    with pytest.raises(ValueError, match=r"takes no settings.*got target"):
        open_with(f"{HERE}:OneForAll", target=0.25)


def test_a_class_that_cannot_score_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards\.scorers\.0\.use.*is no scorer"):
        open_with(f"{HERE}:NoScorer")
