"""The served seer and reader of VBench-2.0 against a real HTTP server that answers like vLLM."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rlvid.evaluation.vbench2.judging import Part
from rlvid.launch.vbench2.served import Note, ServedModel, ServedReader, ServedSeer, seconds_of
from rlvid.rewards.base import RewardError, RewardTimeoutError
from rlvid.rewards.judges.client import JudgeAnswerError
from rlvid.rewards.judges.connection import AskSettings
from rlvid.rewards.judges.frames import png_url
from rlvid.rewards.judges.sight import JudgeSightError
from tests.unit.rewards.judges.fake_vllm import FakeVllm, parts_of, running

ASK = AskSettings(layout="images", num_frames=8, deadline_s=20.0, max_attempts=1)
FRAMES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
FPS = 8.0
Opener = Callable[..., ServedModel]


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    with running(FakeVllm()) as (one,):
        yield one


@pytest.fixture
def opened(server: FakeVllm) -> Iterator[Opener]:
    models = []

    def opener(**changes: Any) -> ServedModel:
        models.append(ServedModel([server.endpoint], dataclasses.replace(ASK, **changes)))
        models[-1].connect()
        return models[-1]

    yield opener
    for model in models:
        model.close()


def pictures(server: FakeVllm) -> list[str]:
    """URLs of the images of the last request that asked a question."""
    asked = [body for body in server.bodies if body.get("logprobs")]
    parts = parts_of(asked[-1]["messages"])
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def test_yes_is_more_likely_than_no(server: FakeVllm, opened: Opener) -> None:
    server.masses = lambda text: {"Yes": 0.2, "yes": 0.3, "No": 0.1 if "ice" in text else 0.9}
    notes: list[Note] = []
    seer = ServedSeer(opened(), FRAMES, FPS, notes)
    assert seer.yes("Is there ice?")
    assert not seer.yes("Does it melt?")
    assert [note.asked for note in notes] == ["Is there ice?", "Does it melt?"]
    assert [note.p_yes for note in notes] == pytest.approx([0.5 / 0.6, 0.5 / 1.4])


@pytest.mark.parametrize(
    ("part", "wanted"),
    [("all", [0, 3, 7, 10, 13, 16, 20, 23]), ("first_half", [0, 3, 7, 10]), ("last", [23])],
)
def test_each_part_shows_its_frames(
    server: FakeVllm, opened: Opener, part: Part, wanted: list[int]
) -> None:
    """Evenly spread over the whole video first and halved then, as in the benchmark."""
    ServedSeer(opened(), FRAMES, FPS, []).yes("Is it left?", part)
    assert pictures(server) == [png_url(FRAMES[index]) for index in wanted]


def test_a_short_video_shows_every_frame(server: FakeVllm, opened: Opener) -> None:
    ServedSeer(opened(num_frames=16), FRAMES[:5], FPS, []).yes("Is it left?")
    assert pictures(server) == [png_url(frame) for frame in FRAMES[:5]]


def test_every_second_is_asked_about(server: FakeVllm, opened: Opener) -> None:
    asked = []

    def masses(text: str) -> dict[str, float]:
        asked.append(text)
        return {"Yes": 0.9, "No": 0.1} if len(asked) == 2 else {"Yes": 0.1, "No": 0.9}

    server.masses = masses
    notes: list[Note] = []
    seer = ServedSeer(opened(num_frames=None), FRAMES[:20], FPS, notes)
    assert list(seer.yes_each_second("Does anything vanish?")) == [False, True]
    assert [note.shown for note in notes] == ["frames 0-7", "frames 8-19"]
    assert pictures(server) == [png_url(frame) for frame in FRAMES[8:20]]


@pytest.mark.parametrize(
    ("num_frames", "fps", "stops"), [(24, 8.0, [8, 16, 24]), (5, 8.0, [5]), (50, 23.976, [24, 50])]
)
def test_seconds_hold_every_frame_once(num_frames: int, fps: float, stops: list[int]) -> None:
    found = seconds_of(num_frames, fps)
    assert [one.stop for one in found] == stops
    assert [one.start for one in found] == [0, *stops[:-1]]


def test_a_description_comes_out_of_its_json(server: FakeVllm, opened: Opener) -> None:
    server.text = json.dumps({"description": "1. He sits.\n2. He runs."})
    notes: list[Note] = []
    assert ServedSeer(opened(), FRAMES, FPS, notes).describe("List it.").endswith("2. He runs.")
    assert notes[0].says == "1. He sits.\n2. He runs."
    [form] = [body["response_format"] for body in server.bodies if "response_format" in body]
    assert form["type"] == "json_schema"


@pytest.mark.parametrize("text", ["He sits", '{"description": 3}', '{"description": "1. He s'])
def test_a_description_that_is_none_is_an_error(
    server: FakeVllm, opened: Opener, text: str
) -> None:
    server.text = text
    with pytest.raises(JudgeAnswerError):
        ServedSeer(opened(), FRAMES, FPS, []).describe("List it.")


def test_neither_yes_nor_no_is_no_answer(server: FakeVllm, opened: Opener) -> None:
    server.masses = lambda text: {}
    notes: list[Note] = []
    with pytest.raises(JudgeAnswerError, match="none of 'Yes', 'No'"):
        ServedSeer(opened(), FRAMES, FPS, notes).yes("Is there ice?")
    with pytest.raises(JudgeAnswerError):
        ServedReader(opened(), notes).yes("Is A the same as B?")
    assert notes == []


def test_a_late_answer_is_an_error_of_its_own(server: FakeVllm, opened: Opener) -> None:
    model = opened(deadline_s=0.5, timeout_s=0.4, max_attempts=5)
    assert ServedReader(model, []).yes("Is it?")
    server.delay_s = 5.0
    with pytest.raises(RewardTimeoutError):
        ServedReader(model, []).yes("Is it?")


def test_a_seer_that_is_shown_less_says_nothing(server: FakeVllm, opened: Opener) -> None:
    server.most_frames = 4
    with pytest.raises(JudgeSightError, match="of 8 frames"):
        ServedSeer(opened(layout="jpeg"), FRAMES, FPS, []).yes("Is there ice?")


def test_the_reader_is_shown_no_picture(server: FakeVllm, opened: Opener) -> None:
    notes: list[Note] = []
    assert ServedReader(opened(), notes).yes("Is A the same as B?")
    assert pictures(server) == []
    [note] = notes
    assert (note.judge, note.shown) == ("reader", "")
    assert note.p_yes == pytest.approx(0.75)


def test_replicas_of_two_models_are_refused(server: FakeVllm) -> None:
    other = dataclasses.replace(server.endpoint, model_digest="another")
    model = ServedModel([server.endpoint, other], ASK)
    with pytest.raises(RewardError, match="different models"):
        model.connect()
    with pytest.raises(ValueError, match="expected the endpoint"):
        ServedModel([], ASK)


def test_the_identity_tells_of_what_is_shown(server: FakeVllm) -> None:
    """A verdict from 8 frames is not one from 16."""
    seen = {
        ServedModel([server.endpoint], dataclasses.replace(ASK, **change)).identity
        for change in ({}, {"num_frames": 16}, {"layout": "sheet"}, {"height": 64})
    }
    assert len(seen) == 4
