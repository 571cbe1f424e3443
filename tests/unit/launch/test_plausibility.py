"""A language model says whether a prompt could be filmed; what it does not say is never guessed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rlvid.config.data_engine import EnginePromptsConfig, LlmConfig
from rlvid.data.engine.embedding import embed_words
from rlvid.data.engine.filters import PromptFilter
from rlvid.data.engine.plausibility import in_tiny_world, take_all
from rlvid.launch.data_engine.llm_client import LlmClient
from rlvid.launch.data_engine.llm_plausibility import llm_plausibility, read_yes_no
from rlvid.launch.data_engine.prompt_parts import open_prompt_parts, plausible_of
from rlvid.launch.preflight import preflight
from rlvid.rewards.base import Endpoint, RewardError
from rlvid.rewards.judges.client import JudgeAnswerError
from tests.unit.launch.hand_made import recipe
from tests.unit.rewards.judges.fake_vllm import FakeVllm, running

LLM = LlmConfig(url="http://127.0.0.1:1", model="judge", max_attempts=3, deadline_s=20.0)


class Critic(FakeVllm):
    """Says no to unicorns, and mumbles so often about each prompt before it answers."""

    def __init__(self, *, mumbles: int = 0, mumbled: str = '{"plausible": "may') -> None:
        super().__init__()
        self.asked: list[str] = []
        self._mumbles, self._mumbled = mumbles, mumbled

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"].rpartition("Prompt: ")[2]
        self.asked.append(text)
        answer = "no" if "unicorn" in text else "yes"
        whole = json.dumps({"plausible": answer})
        self.text = self._mumbled if self.asked.count(text) <= self._mumbles else whole
        return super()._completion(body)


@contextmanager
def _client(server: FakeVllm) -> Iterator[LlmClient]:
    with running(server):
        client = LlmClient(LLM, lambda: [server.endpoint], seed=0)
        try:
            yield client
        finally:
            client.close()


def test_the_model_is_asked_for_one_of_two_words() -> None:
    server = Critic()
    with _client(server) as client:
        judge = llm_plausibility(client)
        assert judge(["a dog runs home", "a unicorn sings"]) == [True, False]
        assert judge(["a unicorn sings", "rain falls on a roof"]) == [False, True]
        assert judge([]) == []
    assert sorted(server.asked) == ["a dog runs home", "a unicorn sings", "rain falls on a roof"]
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["plausible"]["enum"] == ["yes", "no"]
    assert {body["temperature"] for body in server.bodies} == {0.0}
    assert client.counts() == {}


def test_a_broken_answer_is_counted_and_asked_for_again() -> None:
    server = Critic(mumbles=2)
    with _client(server) as client:
        assert llm_plausibility(client)(["a dog runs home", "a unicorn sings"]) == [True, False]
    assert client.counts() == {"broken_plausible": 4}
    drawn = [body["temperature"] for body in server.bodies]
    assert sorted(drawn) == [0.0, 0.0, 0.9, 0.9, 0.9, 0.9], "greedy would be broken again"


def test_no_answer_is_no_guess_and_drops_the_prompt_under_its_own_reason() -> None:
    server = Critic(mumbles=3)
    with _client(server) as client:
        keep = PromptFilter(
            EnginePromptsConfig(),
            heldout=[],
            embedder=embed_words,
            plausible=llm_plausibility(client),
        )
        assert keep.keep(["a dog runs home", "a cat runs home"]) == []
        assert keep.counts.dropped == {"not_judged": 2}
        assert client.counts() == {"broken_plausible": 6, "given_up_plausible": 2}
        assert keep.keep(["a dog runs home"]) == ["a dog runs home"], "written again, asked again"


@pytest.mark.parametrize(
    "mumbled", ['{"plausible": "Yes."}', '{"plausible": true}', '{"plausible": ["yes"]}', "yes"]
)
def test_what_looks_like_yes_is_no_answer(mumbled: str) -> None:
    with _client(Critic(mumbles=9, mumbled=mumbled)) as client:
        assert llm_plausibility(client)(["a dog runs home"]) == [None]


def test_a_thousand_random_answers_are_yes_no_or_refused() -> None:
    rng = random.Random(0)
    answers: list[Any] = ["yes", "no", "YES", " yes", "", None, 1, True, [], {"yes": 1}, "maybe"]
    for found in rng.choices(answers, k=1000):
        if found in ("yes", "no"):
            assert read_yes_no(found) == (found == "yes")
        else:
            with pytest.raises(JudgeAnswerError, match="expected 'yes' or 'no'"):
                read_yes_no(found)


def test_a_server_that_is_gone_is_an_error_and_no_judgement() -> None:
    gone = Endpoint(url="http://127.0.0.1:1", model="judge", model_digest="d", api_key="")
    config = LLM.model_copy(update={"max_attempts": 1, "deadline_s": 3.0})
    client = LlmClient(config, lambda: [gone], seed=0)
    with pytest.raises(RewardError):
        llm_plausibility(client)(["a dog runs home"])
    client.close()


def test_the_recipe_names_who_judges() -> None:
    assert plausible_of(EnginePromptsConfig(), None) is take_all
    assert plausible_of(EnginePromptsConfig(plausibility="grammar"), None) is in_tiny_world
    server = Critic()
    llm = {"server": "judge"}
    made = recipe(data_engine={"prompts": {"plausibility": "llm", "llm": llm}})
    with running(server), open_prompt_parts(made, lambda name: [server.endpoint]) as parts:
        assert parts.keep_base.keep(["a dog runs home", "a unicorn sings"]) == ["a dog runs home"]
        counts = parts.counts()
    assert (counts["base"]["kept"], counts["base"]["implausible"], counts["llm"]) == (1, 1, {})


def test_a_server_that_is_not_there_is_found_before_the_start() -> None:
    prompts = {"plausibility": "llm", "llm": {"server": "nobody"}}
    made = recipe(phases=["data_engine"], data_engine={"prompts": prompts})
    with pytest.raises(ValueError, match="no server 'nobody' in rewards.servers"):
        preflight(made)
