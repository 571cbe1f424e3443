"""The judge that ships, behind a real vLLM server that the pool starts; one server for the file.

The tests run in their order: the last ones kill the server and end it.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from torch import Tensor

from rlvid.config import ClusterConfig
from rlvid.config.data_engine import LlmConfig
from rlvid.config.rewards import ServerConfig
from rlvid.data.engine.records import Weakness
from rlvid.data.tiny_world import all_facts, caption, render_clip
from rlvid.data.video_files import write_mp4
from rlvid.launch.data_engine.llm_client import LlmClient
from rlvid.launch.data_engine.llm_plausibility import llm_plausibility
from rlvid.launch.data_engine.llm_writer import LlmWriter
from rlvid.launch.vbench2.folder import load_verdicts
from rlvid.launch.vbench2.judge import JudgeSettings, judge_folder
from rlvid.launch.vbench2.work import read_frames
from rlvid.models.tiny import vlm_judge_folder
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint
from rlvid.rewards.judges.client import variants
from rlvid.rewards.judges.connection import AskSettings
from rlvid.rewards.judges.frames import tiny_images, to_frames
from rlvid.rewards.judges.prompt_files import load_prompt_file, render
from rlvid.rewards.judges.scorers import VlmJudge, VlmPairwise
from rlvid.rewards.judges.sight import JudgeSightError
from rlvid.rewards.vllm.pool import ServerPool
from tests.system.conftest import local_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_CLIPS = 16
NUM_FILES = 3
QUESTIONS = ["Is the object red?", "Is there one object?"]


@dataclass(frozen=True)
class Served:
    pool: ServerPool
    endpoint: Endpoint
    log_folder: Path

    def guard(self) -> psutil.Process:
        """The process under which all others of the server are; vLLM's rename themselves."""
        port = self.endpoint.url.rpartition(":")[2]
        for process in psutil.process_iter():
            command = process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
            if any(part.endswith("guard.py") for part in command) and port in command:
                return process
        raise AssertionError(f"no guard of port {port}")

    def leader(self) -> psutil.Process:
        """The API server."""
        [process] = self.guard().children()
        return process


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("servers")
    pool = ServerPool({"judge": ServerConfig()}, ClusterConfig(), log_folder=folder)
    with local_ray(num_cpus=2, object_store_mb=100):
        try:
            pool.start()
            pool.wait_ready()
            [endpoint] = pool.endpoints("judge")
            yield Served(pool, endpoint, folder)
        finally:
            pool.shutdown()


@pytest.fixture(scope="module")
def clips() -> tuple[Tensor, list[Prompt]]:
    facts = all_facts()[7::41][:NUM_CLIPS]
    videos = torch.stack([render_clip(one, index) for index, one in enumerate(facts)])
    return videos, [Prompt(prompt_id="p", text=caption(one), facts=one) for one in facts]


def test_p_yes_is_that_of_transformers(served: Served, clips: tuple[Tensor, list[Prompt]]) -> None:
    """Layout, template, spellings, server: a slip in any of them would move the score."""
    videos, prompts = clips
    judge = VlmJudge(VlmJudge.Config(mode="p_yes", only=("colour",)))
    judge.connect([served.endpoint])
    scores = judge.score(videos, prompts)
    [question] = [
        q for q in load_prompt_file("tiny_world", where="test").questions if q.name == "colour"
    ]
    expected = transformers_p_yes(videos, [render(question.ask, p) for p in prompts])
    assert torch.allclose(scores, expected, atol=1e-4)
    assert scores.std() > 0.0


def test_a_writer_of_prompts_gets_its_form_from_the_server(served: Served) -> None:
    """The embedded judge writes no sense; that its answers are a list of texts is vLLM's doing."""
    config = LlmConfig(url=served.endpoint.url, model=served.endpoint.model, max_tokens=400)
    client = LlmClient(config, lambda: [served.endpoint], seed=0)
    writer = LlmWriter(client)
    weak = Weakness(dimension="motion", description="", seed_prompts=("a red ball falls",))
    written = writer.analogies(weak, 3, round_=0)
    asked = writer.questions(weak, ["a red ball falls"])
    judged = llm_plausibility(client)(["a red ball falls", "a red ball falls upwards of green"])
    client.close()
    assert len(written) + 3 * client.given_up["analogy"] >= 1
    assert len(judged) == 2
    assert client.given_up["plausible"] == sum(answer is None for answer in judged) == 0
    assert all(isinstance(text, str) for text in [*written, *asked[0]])


def test_score_does_not_depend_on_what_else_is_in_the_batch(
    served: Served, clips: tuple[Tensor, list[Prompt]]
) -> None:
    """vLLM batches whatever arrives; a reward must not depend on it (float32 on a CPU)."""
    videos, prompts = clips
    judge = VlmJudge(VlmJudge.Config())
    judge.connect([served.endpoint])
    together = judge.score(videos[:4], prompts[:4])
    alone = torch.cat([judge.score(videos[n : n + 1], prompts[n : n + 1]) for n in range(4)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_pairs_and_grades_come_from_the_same_server(
    served: Served, clips: tuple[Tensor, list[Prompt]]
) -> None:
    videos, prompts = clips
    pairwise = VlmPairwise(VlmPairwise.Config())
    pairwise.connect([served.endpoint])
    rates = pairwise.score_group(videos[:3], prompts[0])
    assert float(rates.mean()) == pytest.approx(0.5, abs=1e-5)  # every win is somebody's loss
    grade = VlmJudge(VlmJudge.Config(mode="grade"))
    grade.connect([served.endpoint])
    assert bool(((grade.score(videos[:3], prompts[:3]) - 0.5).abs() <= 0.5).all())


def test_rubric_answers_are_json_of_the_schema(
    served: Served, clips: tuple[Tensor, list[Prompt]]
) -> None:
    """The tiny judge was never taught JSON; the server's grammar has to do it."""
    videos, prompts = clips
    judge = VlmJudge(VlmJudge.Config(mode="rubric", max_tokens=600))
    judge.connect([served.endpoint])
    scores = judge.score(videos[:2], prompts[:2])
    assert set(scores.tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_answers_on_a_folder_of_vbench2_are_those_of_transformers(
    served: Served, tmp_path: Path
) -> None:
    """The whole way from an mp4 to a stored answer; a slip in it would move P(yes)."""
    for number, facts in enumerate(all_facts()[7::41][:NUM_FILES]):
        write_mp4(tmp_path / f"a ball-{number}.mp4", render_clip(facts, number), 8)
    items = tmp_path / "info.json"
    entry = {
        "prompt_en": "a ball",
        "dimension": ["Motion_Rationality"],
        "auxiliary_info": QUESTIONS,
    }
    items.write_text(json.dumps([entry, {"prompt_en": "a ball", "dimension": ["Human_Anatomy"]}]))
    settings = JudgeSettings(ask=AskSettings(concurrency=NUM_FILES))
    tree = judge_folder(
        tmp_path,
        items,
        tmp_path / "out",
        open_judges=lambda: ([served.endpoint], []),
        settings=settings,
        say=lambda text: None,
    )
    assert tree["dimensions"]["Motion_Rationality"]["num_judged"] == NUM_FILES
    assert tree["dimensions"]["Human_Anatomy"]["value"] is None
    verdicts = load_verdicts(tmp_path / "out" / "answers.jsonl")
    for number in range(NUM_FILES):
        name = f"a ball-{number}.mp4"
        verdict = verdicts[f"Motion_Rationality/{name}"]
        pixels = torch.from_numpy(read_frames(tmp_path / name)[0])
        video = pixels.permute(0, 3, 1, 2).float() / 255.0
        asked = [note.asked for note in verdict.notes]
        expected = transformers_p_yes(torch.stack([video] * len(asked)), asked).tolist()
        assert [note.p_yes for note in verdict.notes] == pytest.approx(expected, abs=1e-4)
        assert verdict.value == float(all(p_yes > 0.5 for p_yes in expected))


def test_a_video_that_the_server_subsamples_is_an_error(
    served: Served, clips: tuple[Tensor, list[Prompt]]
) -> None:
    """vLLM reads an mp4 at 2 frames a second and says nothing of it."""
    videos, prompts = clips
    judge = VlmJudge(
        VlmJudge.Config(layout="mp4", num_frames=None, height=64, width=64, only=("colour",))
    )
    judge.connect([served.endpoint])
    with pytest.raises(JudgeSightError, match=r"of 17 frames.*clip_fps .* to 8"):
        judge.score(videos[:1], prompts[:1])


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.png", "file:///etc/hostname"])
def test_the_server_fetches_no_media(served: Served, url: str) -> None:
    """A request that names a URL would make the server fetch it from inside the cluster."""
    content = [{"type": "image_url", "image_url": {"url": url}}]
    status, answer = ask(served.endpoint, content, served.endpoint.api_key)
    assert status >= 400
    assert "allowed" in answer


def test_the_server_asks_for_its_key_and_does_not_show_it(served: Served) -> None:
    status, _ = ask(served.endpoint, "Yes or No?", "another key")
    assert status == 401
    for process in (served.guard(), served.leader()):
        assert served.endpoint.api_key not in " ".join(process.cmdline())
    assert served.endpoint.url.startswith("http://127.0.0.1:")


def test_killing_the_server_in_the_middle_loses_no_clip(
    served: Served, clips: tuple[Tensor, list[Prompt]]
) -> None:
    """Requests in flight are asked again after the restart; none ends missing, none as 0."""
    videos, prompts = clips
    judge = VlmJudge(VlmJudge.Config(concurrency=2, deadline_s=500.0))
    judge.connect([served.endpoint])
    before = judge.score(videos, prompts)
    answers: list[Tensor] = []
    work = threading.Thread(target=lambda: answers.append(judge.score(videos, prompts)))
    work.start()
    time.sleep(0.3)
    assert work.is_alive(), "the scorer was done before the server was killed"
    served.leader().kill()
    work.join(timeout=550.0)
    assert len(answers) == 1
    assert torch.allclose(answers[0], before, atol=1e-4)
    assert judge.metrics["failed"] == 0
    served.pool.poll()
    time.sleep(1.0)
    served.pool.poll()
    assert served.pool.metrics()["servers/judge/restarts"] == 1.0
    assert served.pool.endpoints("judge") == (served.endpoint,)


def test_polling_takes_no_time(served: Served) -> None:
    """The driver polls between two groups."""
    started = time.perf_counter()
    for _ in range(10):
        served.pool.poll()
    assert (time.perf_counter() - started) / 10 < 0.05


def test_nothing_is_left_after_shutdown(served: Served) -> None:
    guard = served.guard()
    processes = [guard, *guard.children(recursive=True)]
    assert len(processes) >= 3, "guard, API server, engine"
    served.pool.shutdown()
    _, alive = psutil.wait_procs(processes, timeout=5.0)
    # In a container perhaps nobody fetches the end of an orphan: a zombie holds nothing.
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def ask(endpoint: Endpoint, content: object, key: str) -> tuple[int, str]:
    async def post() -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=60.0) as client:
            return await client.post(
                f"{endpoint.url}/v1/chat/completions",
                headers={"Authorization": f"Bearer {key}"},
                json={
                    "model": endpoint.model,
                    "messages": [{"role": "user", "content": content}],
                    "max_tokens": 1,
                },
            )

    response = asyncio.run(post())
    return response.status_code, response.text


def transformers_p_yes(videos: Tensor, questions: Sequence[str]) -> Tensor:
    """P(yes) / (P(yes) + P(no)) of the shipped judge without any server."""
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    folder = vlm_judge_folder()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)

    def ids_of(word: str) -> list[int]:
        encoded = [processor.tokenizer.encode(text) for text in variants(word)]
        return sorted({ids[0] for ids in encoded if len(ids) == 1})

    found = []
    for video, question in zip(videos, questions, strict=True):
        images = tiny_images(to_frames(video))
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = processor(text=[text], images=images, return_tensors="pt")
        with torch.no_grad():
            log_probs = model(**inputs).logits[0, -1].log_softmax(-1)
        yes, no = (log_probs[ids_of(word)].logsumexp(0) for word in ("Yes", "No"))
        found.append(torch.sigmoid(yes - no))
    return torch.stack(found)
