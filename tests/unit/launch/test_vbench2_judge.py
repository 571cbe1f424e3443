"""`rlvid vbench2 judge` on small videos: what it matches, asks, keeps, and leaves unjudged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.data.video_files import write_mp4
from rlvid.evaluation.vbench2.items import Item, load_items
from rlvid.launch.vbench2.folder import FAILURES_IN_A_ROW, load_verdicts
from rlvid.launch.vbench2.judge import JudgeSettings, judge_folder
from rlvid.launch.vbench2.specialists import (
    FORMS,
    NotMeasuredError,
    load_measurements,
    open_specialist,
    value_of,
)
from rlvid.launch.vbench2.work import find_work
from rlvid.rewards.base import RewardError
from rlvid.rewards.judges.connection import AskSettings
from tests.unit.launch.test_cli import rlvid
from tests.unit.rewards.judges.fake_vllm import FakeVllm, parts_of, running

ENTRIES: Sequence[Mapping[str, Any]] = (
    {
        "prompt_en": "ice melts",
        "dimension": ["Thermotics"],
        "auxiliary_info": ["Is there ice? (yes or no)", "Does it melt? (yes or no)"],
    },
    {"prompt_en": "a man yawns", "dimension": ["Human_Clothes"]},
    {"prompt_en": "a man yawns", "dimension": ["Human_Anatomy"]},
    {"prompt_en": "pan", "dimension": ["Camera_Motion"], "auxiliary_info": "pan_left"},
)
ASK = AskSettings(layout="images", num_frames=4, concurrency=2, deadline_s=20.0, max_attempts=1)
SETTINGS = JudgeSettings(ask=ASK)
Judging = Callable[..., dict[str, Any]]


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    with running(FakeVllm()) as (one,):
        one.masses = lambda text: {"Yes": 0.9, "No": 0.1}
        yield one


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "Thermotics").mkdir(parents=True)
    for number in range(3):
        write_clip(folder / "Thermotics" / f"ice melts-{number}.mp4", seed=number)
    write_clip(folder / "a man yawns-0.mp4", seed=5)
    write_clip(folder / "pan-0.mp4", seed=6)
    return folder


@pytest.fixture
def judging(tmp_path: Path, videos: Path, server: FakeVllm) -> Judging:
    items = tmp_path / "info.json"
    items.write_text(json.dumps(ENTRIES))

    def judge(settings: JudgeSettings = SETTINGS) -> dict[str, Any]:
        return judge_folder(
            videos,
            items,
            tmp_path / "out",
            open_judges=lambda: ([server.endpoint], []),
            settings=settings,
            say=lambda text: None,
        )

    return judge


def write_clip(path: Path, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    write_mp4(path, torch.rand(8, 3, 32, 32, generator=generator), 8.0)


def test_a_table_with_nothing_made_up(judging: Judging) -> None:
    tree = judging()
    rows = tree["dimensions"]
    assert (rows["Thermotics"]["value"], rows["Thermotics"]["num_judged"]) == (1.0, 3)
    assert (rows["Human_Clothes"]["value"], rows["Human_Clothes"]["num_absent"]) == (1.0, 2)
    for name in ("Human_Anatomy", "Camera_Motion"):
        assert (rows[name]["value"], rows[name]["num_unjudged"]) == (None, 1)
        assert rows[name]["by"] == "nobody"
        assert name in tree["missing"]
    assert tree["groups"] == {"Human Fidelity": 1.0, "Physics": 1.0}
    assert (tree["total"], tree["mean"]) == (None, 1.0)


def test_the_rule_excludes_and_counts(judging: Judging, server: FakeVllm) -> None:
    """Without ice nothing can be said of its melting."""
    server.masses = lambda text: {"Yes": 0.1, "No": 0.9}
    tree = judging()
    assert tree["dimensions"]["Thermotics"]["value"] is None
    assert tree["dimensions"]["Thermotics"]["num_excluded"] == 3
    assert (tree["mean"], tree["groups"]) == (None, {})


def test_every_answer_is_kept_and_none_asked_twice(
    judging: Judging, server: FakeVllm, tmp_path: Path
) -> None:
    first = judging()
    asked = server.num_chats
    assert judging() == first
    assert server.num_chats == asked
    verdicts = load_verdicts(tmp_path / "out" / "answers.jsonl")
    notes = verdicts["Thermotics/ice melts-0.mp4"].notes
    assert ["ice?" in note.asked for note in notes] == [True, False]
    assert [note.p_yes for note in notes] == pytest.approx([0.9, 0.9])


def test_another_video_or_view_is_judged_again(
    judging: Judging, server: FakeVllm, videos: Path
) -> None:
    judging()
    asked = server.num_chats
    write_clip(videos / "Thermotics" / "ice melts-0.mp4", seed=99)
    judging()
    assert server.num_chats > asked
    asked = server.num_chats
    judging(dataclasses.replace(SETTINGS, ask=dataclasses.replace(ASK, num_frames=8)))
    assert server.num_chats >= asked + 4


def test_a_missing_answer_is_unjudged_and_asked_again(judging: Judging, server: FakeVllm) -> None:
    server.masses = lambda text: {} if "ice?" in text else {"Yes": 0.9, "No": 0.1}
    tree = judging()
    row = tree["dimensions"]["Thermotics"]
    assert (row["value"], row["num_judged"], row["num_unjudged"]) == (None, 0, 3)
    state, why = tree["unjudged"]["Thermotics/ice melts-1.mp4"]
    assert state == "no_answer"
    assert "none of 'Yes', 'No'" in why
    server.masses = lambda text: {"Yes": 0.9, "No": 0.1}
    assert judging()["dimensions"]["Thermotics"]["value"] == 1.0


def test_an_unreadable_file_is_unjudged(judging: Judging, videos: Path) -> None:
    (videos / "Thermotics" / "ice melts-1.mp4").write_bytes(b"no video")
    tree = judging()
    assert tree["unjudged"]["Thermotics/ice melts-1.mp4"][0] == "unreadable"
    assert tree["dimensions"]["Thermotics"]["num_judged"] == 2


def test_a_dead_server_ends_the_run(judging: Judging, server: FakeVllm, videos: Path) -> None:
    for number in range(20):
        write_clip(videos / f"a man yawns-{number}.mp4", seed=number)
    path = videos.parent / "info.json"
    told = ENTRIES[0]["auxiliary_info"]
    extra = [
        {"prompt_en": f"p{n}", "dimension": ["Thermotics"], "auxiliary_info": told}
        for n in range(FAILURES_IN_A_ROW)
    ]
    judged = judging()
    path.write_text(json.dumps([*ENTRIES, *extra]))
    for number in range(FAILURES_IN_A_ROW):
        write_clip(videos / f"p{number}-0.mp4", seed=number)
    server.masses = lambda text: {}
    with pytest.raises(RewardError, match="10 videos one after the other got no answer"):
        judging()
    server.masses = lambda text: {"Yes": 0.9, "No": 0.1}
    row = judging()["dimensions"]["Thermotics"]
    assert row["num_judged"] == judged["dimensions"]["Thermotics"]["num_judged"] + 10


def test_specialists_measure_what_models_cannot(
    judging: Judging, videos: Path, tmp_path: Path
) -> None:
    """From a file by the video's name, and from a class by its own."""
    scene = torch.rand(3, 64, 200, generator=torch.Generator().manual_seed(0))
    scene = torch.nn.functional.avg_pool2d(scene[None], 5, 1, 2)[0].sub(0.5).mul(3).add(0.5)
    pan = torch.stack([scene[:, :, 100 - 4 * t : 164 - 4 * t] for t in range(12)]).clamp(0, 1)
    write_mp4(videos / "pan-0.mp4", pan, 8.0)
    measured = tmp_path / "measured.json"
    measured.write_text(
        json.dumps({"Human_Anatomy": {"a man yawns-0.mp4": {"num_people": 8, "num_abnormal": 2}}})
    )
    settings = dataclasses.replace(
        SETTINGS, measurements=measured, specialists={"Camera_Motion": "camera_path"}
    )
    rows = judging(settings)["dimensions"]
    assert (rows["Human_Anatomy"]["value"], rows["Human_Anatomy"]["by"]) == (0.75, str(measured))
    assert (rows["Camera_Motion"]["value"], rows["Camera_Motion"]["by"]) == (1.0, "camera_path")
    measured.write_text(
        json.dumps({"Human_Anatomy": {"a man yawns-0.mp4": {"num_people": 8, "num_abnormal": 4}}})
    )
    assert judging(settings)["dimensions"]["Human_Anatomy"]["value"] == 0.5
    measured.write_text(json.dumps({"Human_Anatomy": {}}))
    tree = judging(settings)
    assert tree["dimensions"]["Human_Anatomy"]["value"] is None
    assert tree["unjudged"]["Human_Anatomy/a man yawns-0.mp4"][0] == "not_measured"


def test_the_command_asks_one_server_to_see_and_one_to_read(
    server: FakeVllm, videos: Path, tmp_path: Path
) -> None:
    """The reader gets texts alone; misspelt files are named."""
    items = tmp_path / "info.json"
    items.write_text(json.dumps([{"prompt_en": "pan", "dimension": ["Human_Interaction"]}]))
    server.text = json.dumps({"description": "One waves to another."})
    with running(FakeVllm(masses=lambda text: {"Yes": 0.2, "No": 0.7})) as (reader,):
        answer = rlvid(
            *("vbench2", "judge", str(videos), "--items", str(items), "--out", "out"),
            *("--seer", server.url, "--seer-key-env", "SEER"),
            *("--reader", reader.url, "--reader-key-env", "SEER", "--num-frames", "4"),
            folder=tmp_path,
            SEER="key",
        )
    assert answer.returncode == 0, answer.stderr
    assert "4 files of no prompt asked for" in answer.stderr
    tree = json.loads((tmp_path / "out" / "vbench2.json").read_text())
    assert tree["dimensions"]["Human_Interaction"]["value"] == 0.0
    texts = [part["text"] for body in reader.bodies for part in parts_of(body["messages"])]
    assert ['"One waves to another."' in text for text in texts] == [True, True]
    [verdict] = load_verdicts(tmp_path / "out" / "answers.jsonl").values()
    assert [note.judge for note in verdict.notes] == ["seer", "seer", "reader", "reader"]


def test_what_a_specialist_cannot_tell_is_not_zero(videos: Path) -> None:
    camera = open_specialist("Camera_Motion", "camera_path")
    item = Item(text="pan", dimension="Camera_Motion", label="orbits")
    with pytest.raises(NotMeasuredError, match="cannot tell 'orbits'"):
        camera.measure([videos / "pan-0.mp4"], item)


@pytest.mark.parametrize(
    ("dimension", "measured", "value"),
    [
        ("Diversity", {"content": 17.712, "style": 0.0}, 0.5),
        ("Instance_Preservation", {"anomalies": [False, True]}, 0.0),
        ("Camera_Motion", {"found": ["pan_left", "zoom_in"]}, 1.0),
        ("Human_Identity", {"similarities": [1.0] + [0.5] * 15 + [0.1] * 15}, 0.5),
        ("Human_Identity", {"similarities": [None] + [0.5] * 30}, None),
        (
            "Multi-View_Consistency",
            {"is_orbit": True, "dynamic_degree": 8.0, "patch_match": 0.5},
            0.4,
        ),
    ],
)
def test_measurements_become_values(
    dimension: str, measured: Mapping[str, Any], value: float | None
) -> None:
    item = Item(text="x", dimension=dimension, label="pan_left")
    assert value_of(item, measured, where="test") == pytest.approx(value)
    assert dimension in FORMS


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "expected {dimension"),
        ({"Mechanics": {}}, "'Mechanics' takes no measurement"),
        ({"Human_Anatomy": {"x.mp4": {"num_people": 1}}}, "expected the fields num_people, num_"),
        ({"Human_Anatomy": {"x.mp4": {"num_people": 1, "num_abnormal": 2}}}, "expected 0 to 1"),
        ({"Camera_Motion": {"x.mp4": {"found": "pan_left"}}}, "expected the fields found"),
        ({"Camera_Motion": {"x.mp4": ["pan_left"]}}, "expected an object"),
    ],
)
def test_a_wrong_measurement_is_named(tmp_path: Path, tree: Any, message: str) -> None:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=message):
        load_measurements(path)


@pytest.mark.parametrize(
    ("name", "message"), [("camera_pat", "camera_path"), ("json:loads", "expected|argument")]
)
def test_a_wrong_specialist_is_named(name: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        open_specialist("Camera_Motion", name)


def test_videos_are_found_by_the_benchmarks_names(tmp_path: Path) -> None:
    """180 characters of the prompt; the folder of the dimension goes before the common one."""
    long = "a very long story " * 20
    entries = [
        {"prompt_en": long, "dimension": ["Complex_Plot"], "auxiliary_info": ["a", "b"]},
        {"prompt_en": "a toy", "dimension": ["Diversity"]},
        {"prompt_en": "a toy", "dimension": ["Human_Identity"]},
    ]
    (tmp_path / "info.json").write_text(json.dumps(entries))
    folder = tmp_path / "videos"
    (folder / "Human_Identity").mkdir(parents=True)
    for name in (f"{long[:180]}-2.mp4", "a toy-0.mp4", "a toy-19.mp4", "a tooy-0.mp4"):
        (folder / name).touch()
    (folder / "Human_Identity" / "a toy-0.mp4").touch()
    found = find_work(folder, load_items(tmp_path / "info.json"))
    by_key = {
        work.key: [path.relative_to(folder).parts for path in work.videos] for work in found.works
    }
    assert by_key[f"Complex_Plot/{long[:180]}-2.mp4"] == [(f"{long[:180]}-2.mp4",)]
    assert len(by_key["Diversity/a toy"]) == 2
    assert by_key["Human_Identity/a toy-0.mp4"] == [("Human_Identity", "a toy-0.mp4")]
    assert found.absent == {"Complex_Plot": 2, "Diversity": 18, "Human_Identity": 2}
    assert found.strangers == ("a tooy-0.mp4",)


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [(("Mechanic",), "unknown dimension Mechanic"), (("Human_Clothes",), "names like 'x-0.mp4'")],
)
def test_a_folder_of_nothing_is_refused(
    tmp_path: Path, dimensions: tuple[str, ...], message: str
) -> None:
    items = [Item(text="x", dimension="Human_Clothes")]
    with pytest.raises(ValueError, match=message):
        find_work(tmp_path, items, dimensions)
    with pytest.raises(ValueError, match="no folder"):
        find_work(tmp_path / "nowhere", items)


def test_one_prompt_twice_in_a_dimension_is_judged_twice(tmp_path: Path) -> None:
    """The benchmark's own file has such a pair."""
    (tmp_path / "x-0.mp4").touch()
    items = [Item(text="x", dimension="Human_Clothes", parts=(name,)) for name in "ab"]
    keys = [work.key for work in find_work(tmp_path, items).works]
    assert keys == ["Human_Clothes/x-0.mp4", "Human_Clothes/x-0.mp4#2"]
