"""What is asked for each dimension, of which frames and in which order, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlvid.evaluation.vbench2.dimensions import DIMENSIONS
from rlvid.evaluation.vbench2.items import Item, load_items
from rlvid.evaluation.vbench2.judging import Judged, Part, judge, numbered


@dataclass
class Scripted:
    """Says yes to what holds one of its words, and describes as it is told."""

    yes_to: Sequence[str] = ()
    says: Callable[[str], str] = lambda request: ""
    seconds: Sequence[bool] = ()
    asked: list[tuple[str, Part]] = field(default_factory=list)

    def yes(self, question: str, part: Part = "all") -> bool:
        self.asked.append((question, part))
        return any(word in question for word in self.yes_to)

    def describe(self, request: str) -> str:
        return self.says(request)

    def yes_each_second(self, question: str) -> Sequence[bool]:
        return self.seconds


def _judge(
    dimension: str, seer: Scripted, reader: Scripted | None = None, **item: Any
) -> tuple[float | None, Judged]:
    found = judge(Item(text="a man waves", dimension=dimension, **item), seer, reader or Scripted())
    return found.value, found


def test_physics_asks_for_the_scene_first() -> None:
    parts = ("Is there ice?", "Does it melt?")
    assert _judge("Thermotics", Scripted(yes_to=["ice", "melt"]), parts=parts)[0] == 1.0
    assert _judge("Thermotics", Scripted(yes_to=["ice"]), parts=parts)[0] == 0.0
    assert _judge("Thermotics", Scripted(yes_to=["melt"]), parts=parts)[0] is None


def test_spatial_shows_the_first_half_and_then_the_last_frame() -> None:
    seer = Scripted(yes_to=["left", "right"])
    value, found = _judge(
        "Dynamic_Spatial_Relationship", seer, parts=("Is it left?", "Is it right?")
    )
    assert value == 1.0
    assert [part for _, part in seer.asked] == ["first_half", "last"]
    assert len(found.answers) == 2


def test_a_failed_gate_of_composition_asks_nothing_more() -> None:
    parts = ("wings of a bird", "head of a lion", "tail of a fish")
    seer = Scripted(yes_to=["wings"])
    value, _ = _judge("Composition", seer, parts=parts, has_gate=True)
    assert value == pytest.approx(1 / 3)
    assert len(seer.asked) == 1
    seer = Scripted(yes_to=["one creature", "wings", "lion"])
    assert _judge("Composition", seer, parts=parts, has_gate=True)[0] == pytest.approx(2 / 3)
    assert _judge("Composition", seer, parts=parts, needs_all=True)[0] == 0.0


def test_clothes_are_not_asked_of_a_crowd() -> None:
    crowd = Scripted(yes_to=["same person", "clothes"])
    assert _judge("Human_Clothes", crowd)[0] is None
    assert len(crowd.asked) == 1
    assert _judge("Human_Clothes", Scripted(yes_to=["exactly one", "same person"]))[0] == 0.0
    everything = Scripted(yes_to=["exactly one", "same person", "clothes"])
    assert _judge("Human_Clothes", everything)[0] == 1.0


def test_order_of_motion_is_described_blind_and_compared() -> None:
    """The describing judge never sees what was asked for."""
    requests = []

    def says(request: str) -> str:
        requests.append(request)
        return "1. He sits; 2. He runs."

    reader = Scripted(
        yes_to=['A: "sits"\nDescription B: "He sits', 'A: "runs"\nDescription B: "He r']
    )
    seer = Scripted(says=says)
    assert _judge("Motion_Order_Understanding", seer, reader, parts=("sits", "runs"))[0] == 1.0
    assert _judge("Motion_Order_Understanding", seer, reader, parts=("runs", "sits"))[0] == 0.0
    assert all("sits" not in request for request in requests)
    none = Scripted(says=lambda request: "A man stands there.")
    assert _judge("Motion_Order_Understanding", none, reader, parts=("sits", "runs"))[0] is None


def test_a_story_stops_at_its_first_miss() -> None:
    seer = Scripted(says=lambda request: "1. A sea\n2. A hill\n3. A wood\n4. A lake\n5. A town")
    reader = Scripted(yes_to=['"A sea"', '"A wood"', '"A lake"'])
    parts = ("sea", "hill", "wood", "lake", "town")
    assert _judge("Complex_Landscape", seer, reader, parts=parts)[0] == pytest.approx(0.2)
    assert len(reader.asked) == 2


def test_without_a_list_every_part_is_sought_in_the_whole() -> None:
    seer = Scripted(says=lambda request: "A sea and then a hill.")
    reader = Scripted(yes_to=['for: "sea"', 'for: "hill"'])
    assert _judge("Complex_Plot", seer, reader, parts=("sea", "hill", "wood", "lake"))[0] == 0.5


def test_interaction_needs_people_and_the_act() -> None:
    seer = Scripted(says=lambda request: "one waves to another")
    both = Scripted(yes_to=["same action", "more than one person"])
    assert _judge("Human_Interaction", seer, both)[0] == 1.0
    assert _judge("Human_Interaction", seer, Scripted(yes_to=["same action"]))[0] == 0.0


def test_instance_preservation_looks_at_every_second() -> None:
    assert _judge("Instance_Preservation", Scripted(seconds=[False, True, False]))[0] == 0.0
    assert _judge("Instance_Preservation", Scripted(seconds=[False] * 4))[0] == 1.0


def test_specialists_are_not_asked_of_a_model() -> None:
    with pytest.raises(ValueError, match="Camera_Motion is judged by a specialist"):
        _judge("Camera_Motion", Scripted())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. a; 2. b.", ["a", "b."]),
        ("Here: 1) a 2) b", ["a", "b"]),
        ("1. In 1999 a man, 2.5 m tall\n2. b", ["In 1999 a man, 2.5 m tall", "b"]),
        ("no list", []),
        ("", []),
    ],
)
def test_numbered_lists(text: str, expected: list[str]) -> None:
    assert numbered(text) == expected


def _entry(dimension: str, told: Any) -> dict[str, Any]:
    return {"prompt_en": "a man waves", "dimension": [dimension], "auxiliary_info": told}


def test_items_of_every_dimension(tmp_path: Path) -> None:
    told: dict[str, Any] = {
        "Composition": {"question": ["wings", "tail"], "judge": [1, 0]},
        "Camera_Motion": "pan_left",
        "Motion_Order_Understanding": ["sits", "runs"],
        "Dynamic_Spatial_Relationship": ["Is it left?", "Is it right?"],
    }
    entries = [_entry(name, told.get(name, ["a", "b", "c", "d"])) for name in DIMENSIONS]
    path = tmp_path / "info.json"
    path.write_text(json.dumps(entries))
    items = {item.dimension: item for item in load_items(path)}
    assert set(items) == set(DIMENSIONS)
    assert items["Composition"] == Item(
        text="a man waves", dimension="Composition", parts=("wings", "tail"), has_gate=True
    )
    assert items["Camera_Motion"].label == "pan_left"
    assert items["Human_Anatomy"].parts == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (_entry("Mechanic", []), "unknown 'Mechanic'"),
        (_entry("Mechanics", []), "Mechanics: auxiliary_info: expected a list of sentences"),
        (_entry("Motion_Order_Understanding", ["one"]), "expected 2 to 2 entries, got 1"),
        (_entry("Camera_Motion", None), "expected the motion's label"),
        (_entry("Composition", {"question": ["a"], "judge": [2, 0]}), "two of 0 and 1"),
        ({"prompt_en": " ", "dimension": ["Mechanics"]}, "expected a sentence"),
        ("text", "expected an object"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, entry: Any, message: str) -> None:
    path = tmp_path / "info.json"
    path.write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match=message):
        load_items(path)
