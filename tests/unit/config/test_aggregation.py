"""A recipe whose aggregation cannot do what it says is refused before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvid.config import Recipe

SCORERS = [
    {"use": "adherence"},
    {"use": "physics"},
    {"use": "realism", "weight": -0.5},
    {"use": "attribute_judge", "weight": 0.0},
]


def recipe(std: str = "group", **aggregation: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "a",
            "phases": ["grpo"],
            "rewards": {"scorers": SCORERS, "aggregation": aggregation},
            "algorithm": {"advantage": {"std": std}},
        }
    )


def test_every_part_together_is_accepted() -> None:
    got = recipe(
        kind="weighted_sum",
        gates=[{"scorer": "attribute_judge", "below": 0.5, "caps": {"adherence": 0.1}}],
        curriculum={"physics": [[0, 0.0], [10, 1.0]]},
        running={"momentum": 0.5},
    )
    assert got.rewards.aggregation.curriculum["physics"] == ((0, 0.0), (10, 1.0))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"gate": []}, "gate"),
        ({"gates": [{"scorer": "phisics", "below": 0.5, "caps": {"adherence": 0}}]}, "'phisics'"),
        ({"gates": [{"scorer": "physics", "below": 1, "caps": {"attribute_judge": 0}}]}, "caps"),
        ({"gates": [{"scorer": "physics", "below": 1, "caps": {"realism": 0}}]}, "positive weight"),
        ({"gates": [{"scorer": "physics", "below": 1, "caps": {"physics": 0}}]}, "cap itself"),
        ({"gates": [{"scorer": "physics", "below": 1, "caps": {}}]}, "caps"),
        ({"curriculum": {"attribute_judge": [[0, 1.0]]}}, "scorers with weight"),
        ({"curriculum": {"physics": [[5, 1.0], [5, 0.0]]}}, "ascending steps"),
        ({"curriculum": {"physics": [[0, -1.0]]}}, "at least 0"),
        (
            {"curriculum": {n: [[0, 1], [9, 0]] for n in ("adherence", "physics", "realism")}},
            "at step 9 every weight is 0",
        ),
        ({"kind": "lexicographic"}, "needs an order"),
        ({"order": ["physics"]}, "needs an order"),
        ({"kind": "lexicographic", "order": ["physics", "realism"]}, "every scorer with weight"),
        ({"tolerance": {"physics": 0.1}}, "only kind lexicographic"),
        ({"running": {}}, "algorithm.advantage.std"),
        ({"running": {"momentum": 1.0}}, "momentum"),
    ],
)
def test_section_that_cannot_work_is_refused(section: dict[str, Any], message: str) -> None:
    """Each of these would otherwise be ignored in silence, or train on the opposite."""
    with pytest.raises(ValueError, match=message):
        recipe(**section)


def test_running_statistics_go_with_no_std() -> None:
    assert recipe(std="none", running={}).rewards.aggregation.running is not None


def test_order_names_every_weighted_scorer() -> None:
    order = ["physics", "realism", "adherence"]
    got = recipe(kind="lexicographic", order=order, tolerance={"physics": 0.05})
    assert got.rewards.aggregation.tolerance == {"physics": 0.05}


def test_examples_of_the_readme_load() -> None:
    """A reader copies them."""
    text = (Path(__file__).parents[3] / "configs" / "README.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        Recipe.model_validate({"name": "readme", **yaml.safe_load(block)})
