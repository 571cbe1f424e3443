"""Every rule of VBench-2.0 on hand-made answers, and its means on published figures."""

from __future__ import annotations

import pytest

from rlvid.evaluation.vbench2 import rules
from rlvid.evaluation.vbench2.dimensions import DIMENSIONS, dimension_result, totals

WAN21 = {
    "Human_Anatomy": 85.87,
    "Human_Clothes": 89.00,
    "Human_Identity": 67.02,
    "Composition": 44.23,
    "Mechanics": 74.42,
    "Material": 69.64,
    "Thermotics": 72.66,
    "Multi-View_Consistency": 44.60,
    "Dynamic_Spatial_Relationship": 22.22,
    "Dynamic_Attribute": 46.15,
    "Motion_Order_Understanding": 29.97,
    "Human_Interaction": 72.33,
    "Complex_Landscape": 17.11,
    "Complex_Plot": 10.69,
    "Camera_Motion": 36.11,
    "Motion_Rationality": 40.80,
    "Instance_Preservation": 63.26,
}
"""Wan2.1 in the table of GigaVideo-1's project page, %; Diversity is left out there."""
GIGAVIDEO = {
    "Human_Anatomy": 90.18,
    "Human_Clothes": 95.10,
    "Human_Identity": 69.14,
    "Mechanics": 76.30,
    "Material": 72.32,
    "Thermotics": 73.19,
    "Multi-View_Consistency": 52.87,
}


def test_eighteen_dimensions_in_five_groups() -> None:
    assert len(DIMENSIONS) == 18
    sizes = [d.group for d in DIMENSIONS.values()]
    assert {group: sizes.count(group) for group in sizes} == {
        "Creativity": 2,
        "Commonsense": 2,
        "Controllability": 7,
        "Human Fidelity": 3,
        "Physics": 4,
    }
    assert DIMENSIONS["Diversity"].num_videos == 20


def test_published_means_of_wan() -> None:
    found = totals({name: value / 100 for name, value in WAN21.items()})
    assert found.mean == pytest.approx(0.5212, abs=5e-5)
    assert found.groups["Human Fidelity"] == pytest.approx(0.8063, abs=5e-5)
    assert found.groups["Commonsense"] == pytest.approx(0.5203, abs=5e-5)
    assert found.groups["Physics"] == pytest.approx(0.6533, abs=5e-5)
    assert found.groups["Controllability"] == pytest.approx(0.3351, abs=5e-5)
    assert found.missing == ("Diversity",)


def test_published_groups_of_gigavideo() -> None:
    found = totals({name: value / 100 for name, value in GIGAVIDEO.items()})
    assert found.groups["Human Fidelity"] == pytest.approx(0.8481, abs=5e-5)
    assert found.groups["Physics"] == pytest.approx(0.6867, abs=5e-5)
    assert found.total is None, "three groups are missing"


def test_total_is_the_mean_of_groups_and_not_of_dimensions() -> None:
    values = {name: (1.0 if d.group == "Creativity" else 0.0) for name, d in DIMENSIONS.items()}
    found = totals(values)
    assert found.total == pytest.approx(1 / 5)
    assert found.mean == pytest.approx(2 / 18)
    assert totals({**values, "Diversity": None}).groups["Creativity"] == 1.0


@pytest.mark.parametrize(
    ("answers", "expected"),
    [([True, True, True], 1.0), ([True, False, True], 0.0), ([False], 0.0), ([True], 1.0)],
)
def test_all_yes(answers: list[bool], expected: float) -> None:
    assert rules.all_yes(answers) == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([True], 1.0),
        ([False], 0.0),
        ([True, True], 1.0),
        ([True, False], 0.0),
        ([False, True], None),
        ([False, False], None),
        ([True, True, False], 1.0),
    ],
)
def test_the_scene_is_a_gate(answers: list[bool], expected: float | None) -> None:
    assert rules.gated_outcome(answers) == expected


@pytest.mark.parametrize(
    ("items", "one_creature", "needs_all", "expected"),
    [
        ([True, False, True, False], None, False, 0.5),
        ([True, False, True, False], True, False, 0.5),
        ([True, True, True, True], False, False, 0.25),
        ([True, True, True, False], None, True, 0.0),
        ([True, True], True, True, 1.0),
        ([True, True], False, True, 0.5),
    ],
)
def test_composition(
    items: list[bool], one_creature: bool | None, needs_all: bool, expected: float
) -> None:
    assert rules.composition(items, one_creature=one_creature, needs_all=needs_all) == expected


@pytest.mark.parametrize(
    ("one", "same", "clothes", "expected"),
    [(True, True, True, 1.0), (True, False, True, 0.0), (True, True, False, 0.0)]
    + [(False, True, True, None)],
)
def test_human_clothes(one: bool, same: bool, clothes: bool, expected: float | None) -> None:
    assert rules.human_clothes(one_person=one, same_person=same, same_clothes=clothes) == expected


@pytest.mark.parametrize(
    ("described", "matches", "expected"),
    [
        (["runs"], [True], None),
        ([], [], None),
        (["runs", "sits"], [True, True], 1.0),
        (["runs", "sits"], [True, False], 0.0),
        (["runs", "sits", "eats"], [True, True, False], 1.0),
    ],
)
def test_motion_order(described: list[str], matches: list[bool], expected: float | None) -> None:
    assert rules.motion_order(described, matches) == expected


def test_human_interaction() -> None:
    def value(matches: bool, people: bool) -> float:
        return rules.human_interaction(interaction_matches=matches, more_than_one_person=people)

    assert [value(True, True), value(True, False), value(False, True)] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        ([True] * 5, 1.0),
        ([True, True, False, True, True], 0.4),
        ([False, True, True, True, True], 0.0),
        ([True, True], 0.4),
        ([], 0.0),
        ([True] * 7, 1.0),
    ],
)
def test_a_story_counts_to_its_first_miss(matches: list[bool], expected: float) -> None:
    assert rules.matched_prefix(matches, 5) == expected


def test_one_anomaly_in_any_second_is_enough() -> None:
    assert rules.instance_preservation([False] * 4) == 1.0
    assert rules.instance_preservation([False, False, True]) == 0.0


def test_human_anatomy() -> None:
    assert rules.human_anatomy(8, 2) == 0.75
    assert rules.human_anatomy(0, 0) == 1.0
    with pytest.raises(ValueError, match="0 to 1 abnormal"):
        rules.human_anatomy(1, 2)


@pytest.mark.parametrize(
    ("similarities", "expected"),
    [
        ([1.0] + [0.9] * 20, 1.0),
        ([1.0] + [0.9] * 15 + [0.39] * 5, 0.75),
        ([1.0] + [0.4] * 20, 1.0),
        ([1.0] + [0.9] * 19 + [None] * 30, None),
        ([None] + [0.9] * 40, None),
        ([], None),
    ],
)
def test_human_identity(similarities: list[float | None], expected: float | None) -> None:
    assert rules.human_identity(similarities) == expected


@pytest.mark.parametrize(
    ("is_orbit", "degree", "match", "expected"),
    [
        (True, 5.0, 0.8, 0.4),
        (True, 25.0, 0.8, 0.8),
        (True, 4.99, 0.8, None),
        (False, 25.0, 0.8, None),
        (True, 25.0, None, None),
    ],
)
def test_multi_view(
    is_orbit: bool, degree: float, match: float | None, expected: float | None
) -> None:
    found = rules.multi_view_consistency(
        is_orbit=is_orbit, dynamic_degree=degree, patch_match=match
    )
    assert found == (None if expected is None else pytest.approx(expected))


def test_diversity() -> None:
    assert rules.diversity(17.712, 0.0) == pytest.approx(0.5)
    assert rules.diversity(0.0, 0.017712) == pytest.approx(0.5)
    assert rules.diversity(100.0, 1.0) == 1.0


def test_excluded_videos_leave_the_mean_alone() -> None:
    found = dimension_result("Mechanics", [1.0, None, 0.0, 1.0])
    assert found.value == pytest.approx(2 / 3)
    assert (found.num_judged, found.num_excluded) == (3, 1)
    assert dimension_result("Mechanics", [None, None]).value is None


def test_motion_order_that_is_never_shown_scores_nothing() -> None:
    name = "Motion_Order_Understanding"
    assert dimension_result(name, [1.0] + [None] * 9).value == 1.0
    assert dimension_result(name, [1.0] + [None] * 10).value == 0.0
    assert dimension_result("Mechanics", [1.0] + [None] * 10).value == 1.0


def test_unknown_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of Diversity"):
        totals({"Mechanic": 1.0})
