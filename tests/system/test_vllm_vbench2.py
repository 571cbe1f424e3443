"""The embedded judge behind a real vLLM server judges a folder of VBench-2.0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlvid.data.tiny_world import all_facts, render_clip
from rlvid.data.video_files import write_mp4
from rlvid.launch.vbench2.folder import load_verdicts
from rlvid.launch.vbench2.judge import JudgeSettings, judge_folder
from rlvid.launch.vbench2.work import read_frames
from rlvid.rewards.base import Endpoint
from rlvid.rewards.judges.connection import AskSettings
from rlvid.rewards.vllm.standalone import own_server
from tests.system.test_vllm_judge import transformers_p_yes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_VIDEOS = 3
QUESTIONS = ["Is the object red?", "Is there one object?"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with own_server() as one:
        yield one


def test_its_answers_are_those_of_transformers(endpoint: Endpoint, tmp_path: Path) -> None:
    """The whole way from an mp4 to a stored answer; a slip in it would move P(yes)."""
    for number, facts in enumerate(all_facts()[7::41][:NUM_VIDEOS]):
        write_mp4(tmp_path / f"a ball-{number}.mp4", render_clip(facts, number), 8)
    items = tmp_path / "info.json"
    entry = {
        "prompt_en": "a ball",
        "dimension": ["Motion_Rationality"],
        "auxiliary_info": QUESTIONS,
    }
    items.write_text(json.dumps([entry, {"prompt_en": "a ball", "dimension": ["Human_Anatomy"]}]))
    settings = JudgeSettings(ask=AskSettings(concurrency=NUM_VIDEOS))
    tree = judge_folder(
        tmp_path,
        items,
        tmp_path / "out",
        open_judges=lambda: ([endpoint], []),
        settings=settings,
        say=lambda text: None,
    )
    assert tree["dimensions"]["Motion_Rationality"]["num_judged"] == NUM_VIDEOS
    assert tree["dimensions"]["Human_Anatomy"]["value"] is None
    verdicts = load_verdicts(tmp_path / "out" / "answers.jsonl")
    for number in range(NUM_VIDEOS):
        name = f"a ball-{number}.mp4"
        verdict = verdicts[f"Motion_Rationality/{name}"]
        pixels = torch.from_numpy(read_frames(tmp_path / name)[0])
        video = pixels.permute(0, 3, 1, 2).float() / 255.0
        asked = [note.asked for note in verdict.notes]
        expected = transformers_p_yes(torch.stack([video] * len(asked)), asked).tolist()
        assert [note.p_yes for note in verdict.notes] == pytest.approx(expected, abs=1e-4)
        assert verdict.value == float(all(p_yes > 0.5 for p_yes in expected))
