"""Prompts by a language model over HTTP: what is broken is counted, and costs nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlvid.config.data_engine import EnginePromptsConfig, LlmConfig
from rlvid.data.engine.embedding import embed_words
from rlvid.data.engine.filters import PromptFilter
from rlvid.data.engine.records import Cluster, Weakness, WrittenPrompt
from rlvid.data.engine.writers import GrammarWriter
from rlvid.data.tiny_world.grammar import all_facts, caption, split_of
from rlvid.launch.data_engine.llm_client import LlmClient, read_answer
from rlvid.launch.data_engine.llm_writer import LlmWriter, read_list
from rlvid.launch.data_engine.templates_file import load_templates, render
from rlvid.launch.data_engine.written import WrittenSet, write_prompts
from rlvid.observability.metrics import check_names
from rlvid.rewards.judges.client import JudgeAnswerError
from tests.unit.rewards.judges.fake_vllm import FakeVllm, running

WEAK = Weakness(
    dimension="thermotics",
    description="ice melts, water boils",
    seed_prompts=("an ice cube melts in a pan", "water boils in a kettle"),
    seed_scores=(0.25, 0.5),
    mean=0.3,
    low=0.2,
    high=0.4,
    clusters=(Cluster(words=("ice",), num_prompts=2, mean=0.3),),
)
LLM = LlmConfig(url="http://127.0.0.1:1", model="judge", max_attempts=2, deadline_s=20.0)


class Author(FakeVllm):
    """Writes prompts that never repeat, in the form that it is asked for."""

    num_cut = 0
    """First answers that are cut off."""

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        kind = body["response_format"]["json_schema"]["name"]
        number = self.num_chats
        items = [f"scene {number} of kind {n} in the snow" for n in range(3)]
        if kind == "questions":
            items = ["Is there snow?", "", "Does it melt?"]
        whole = json.dumps({kind: items})
        self.text = whole[:20] if number <= self.num_cut else whole
        return super()._completion(body)


def _filter() -> PromptFilter:
    return PromptFilter(EnginePromptsConfig(), heldout=["held out"], embedder=embed_words)


def _write(
    server: FakeVllm, num: int, **settings: int
) -> tuple[LlmClient, Sequence[WrittenPrompt]]:
    client = LlmClient(LLM, lambda: [server.endpoint], seed=0)
    config = EnginePromptsConfig.model_validate({"num_prompts": num, **settings})
    try:
        return client, write_prompts([WEAK], config, LlmWriter(client), _filter(), _filter())
    finally:
        client.close()


def test_three_steps_of_the_paper() -> None:
    with running(Author()) as (server,):
        client, prompts = _write(server, 5)
    assert len(prompts) == 5
    assert all(p.dimension == "thermotics" for p in prompts)
    assert all(p.questions == ("Is there snow?", "Does it melt?") for p in prompts)
    asked = [body["messages"][-1]["content"] for body in server.bodies]
    assert "an ice cube melts in a pan" in asked[0]
    assert any("Rewrite this video prompt" in text for text in asked)
    assert all(body["response_format"]["type"] == "json_schema" for body in server.bodies)
    assert client.counts() == {}


def test_a_broken_answer_costs_its_own_prompts_only() -> None:
    """Two attempts of the first request are garbage; the round after it is whole."""
    author = Author()
    author.num_cut = 2
    with running(author) as (server,):
        client, prompts = _write(server, 3)
    assert len(prompts) == 3
    assert client.counts() == {"broken_analogy": 2, "given_up_analogy": 1}


def test_a_model_that_repeats_itself_ends_with_an_error_that_counts() -> None:
    server = FakeVllm(text=json.dumps({"prompts": ["the same prompt again"], "questions": []}))
    with running(server), pytest.raises(ValueError, match="1 of 4 prompts after 3 rounds"):
        _write(server, 4, max_rounds=3)


@pytest.mark.parametrize(
    "text",
    ["", "no json", "[1, 2]", '{"prompts": "one"}', '{"other": []}', '{"prompts": ["a"', "\x00"],
)
def test_answers_that_are_no_list_are_refused(text: str) -> None:
    with pytest.raises(JudgeAnswerError):
        read_list(read_answer(text, "prompts"))


def test_thousand_random_answers_are_read_or_refused() -> None:
    """Items of any type come through to the filter, which counts them; nothing raises anything
    else."""
    rng = random.Random(0)
    keep, seen = _filter(), 0
    for _ in range(1000):
        items: list[Any] = rng.choices(
            [None, 1, "a red ball falls", "", {"a": 1}, [], "\ud800", "x y z"], k=3
        )
        text = json.dumps({"prompts": items})
        cut = text[: rng.randrange(len(text) + 1)] if rng.random() < 0.5 else text
        try:
            found = read_list(read_answer(cut, "prompts"))
        except JudgeAnswerError:
            continue
        seen += len(found)
        keep.keep(found)
    assert keep.counts.seen == seen > 1000


def test_the_grammar_fills_equal_shares_without_repeats() -> None:
    seeds = [caption(f) for f in all_facts() if f["object"] == "box"][:10]
    weak = [
        Weakness(dimension=name, description="", seed_prompts=tuple(seeds))
        for name in ("object", "physics", "motion")
    ]
    heldout = [caption(f) for f in all_facts() if split_of(f) == "heldout"]
    config = EnginePromptsConfig(num_prompts=200)
    keep = PromptFilter(config, heldout=heldout, embedder=embed_words)
    long = PromptFilter(config, heldout=heldout, embedder=embed_words)
    prompts = write_prompts(weak, config, GrammarWriter(0), keep, long)
    texts = [prompt.text for prompt in prompts]
    assert len(set(texts)) == len(texts) == 200
    assert not set(texts) & set(heldout)
    shares = [[p.dimension for p in prompts].count(w.dimension) for w in weak]
    assert shares == [67, 67, 66]
    assert keep.counts.kept == long.counts.kept == 200


def test_what_was_written_survives(tmp_path: Path) -> None:
    with running(Author()) as (server,):
        _, prompts = _write(server, 2)
    written = WrittenSet(
        weaknesses=(WEAK,),
        prompts=tuple(prompts),
        counts={
            "base": {"kept": 2, "duplicate": 3, "empty": 0},
            "long": {"kept": 2, "duplicate": 0, "empty": 0},
            "llm": {"broken_plausible": 4},
        },
        dimension_scores=({"dimension": "thermotics", "mean": 0.3},),
    )
    written.save(tmp_path / "written.json")
    assert WrittenSet.load(tmp_path / "written.json") == written
    check_names(written.metrics())
    assert written.metrics() == {
        "data_engine/llm/broken_plausible": 4.0,
        "data_engine/prompts_base/written": 5.0,
        "data_engine/prompts_base/kept": 2.0,
        "data_engine/prompts_base/dropped_duplicate": 3.0,
        "data_engine/prompts_long/written": 2.0,
        "data_engine/prompts_long/kept": 2.0,
    }


def test_templates_are_files_and_errors_name_them(tmp_path: Path) -> None:
    shipped = load_templates("default")
    assert shipped.digest != shipped.model_copy(update={"augment": "x"}).digest
    with pytest.raises(ValueError, match="expected a path that ends in .yaml, or one of default"):
        load_templates("nowhere")
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nversion: 1\nanalogy: '{% if %}'\naugment: a\nquestions: q\n")
    with pytest.raises(ValueError, match="own.yaml"):
        load_templates(str(own))
    with pytest.raises(ValueError, match="a template may use num"):
        render("{{ nothing }}", num=1)
