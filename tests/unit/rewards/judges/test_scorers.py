"""The VLM scorers against a real HTTP server that answers like vLLM."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config.rewards import ScorerConfig
from rlvid.data.tiny_world.grammar import all_facts, caption
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint, RewardError, RewardTimeoutError, UsesServer
from rlvid.rewards.judges.client import JudgeAnswerError
from rlvid.rewards.judges.frames import View, to_frames
from rlvid.rewards.judges.scorers import VlmJudge, VlmPairwise
from rlvid.rewards.judges.sight import JudgeSightError
from rlvid.rewards.registry import open_scorer
from rlvid.rewards.scoring import ScoreItem, ScorerWorker
from tests.unit.rewards.judges.fake_vllm import FakeVllm, running, text_of

FACTS = {
    "object": "ball",
    "colour": "red",
    "motion": "falls",
    "direction": "left",
    "camera": "still",
}
PROMPT = Prompt(prompt_id="p", text="a red ball falls to the left while the camera stays still")


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    with running(FakeVllm()) as (one,):
        yield one


def clips(count: int) -> Tensor:
    return torch.rand(count, 17, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def opened(server: FakeVllm, **config: Any) -> VlmJudge:
    judge = VlmJudge(VlmJudge.Config(**{"layout": "images", **config}))
    judge.connect([server.endpoint])
    return judge


def test_both_are_built_in_and_take_a_server() -> None:
    for name in ("vlm_judge", "vlm_pairwise"):
        assert isinstance(open_scorer(ScorerConfig(use=name), "x"), UsesServer)


def test_spellings_of_yes_add_up(server: FakeVllm) -> None:
    """P(yes) = (0.2 + 0.1 + 0.3) / (0.6 + 0.2); "Yes" alone would be 0.5."""
    server.masses = lambda text: {"Yes": 0.2, "yes": 0.1, " Yes": 0.3, "No": 0.15, "no": 0.05}
    scores = opened(server, mode="p_yes", only=("colour",)).score(clips(1), [PROMPT])
    assert float(scores[0]) == pytest.approx(0.75, abs=1e-6)


def test_a_server_without_the_ids_is_read_by_its_top_logprobs(server: FakeVllm) -> None:
    server.knows_ids = server.knows_tokenize = False
    scores = opened(server, mode="p_yes", only=("colour",)).score(clips(2), [PROMPT] * 2)
    assert scores.tolist() == pytest.approx([0.75, 0.75])


def test_a_server_that_refuses_the_ids_is_asked_without(server: FakeVllm) -> None:
    server.refuses_ids, server.knows_ids = True, False
    judge = opened(server, mode="p_yes", only=("colour",), concurrency=1)
    assert judge.score(clips(3), [PROMPT] * 3).tolist() == pytest.approx([0.75] * 3)
    refused = [body for body in server.bodies if "logprob_token_ids" in body]
    assert len(refused) == 1


def test_a_missing_answer_is_missing_and_not_zero(server: FakeVllm) -> None:
    """Neither Yes nor No among the reported tokens says nothing; 0 would be a verdict."""
    seen: list[str] = []

    def second_is_empty(text: str) -> dict[str, float]:
        seen.append(text)
        return {} if len(seen) == 2 else {"Yes": 0.3, "No": 0.1}

    server.masses = second_is_empty
    judge = opened(server, mode="p_yes", only=("colour",), concurrency=1, check_sight=False)
    verdicts = judge.explain(clips(3), [PROMPT] * 3)
    missing = [verdict.reason for verdict in verdicts if math.isnan(verdict.value)]
    assert len(missing) == 1
    assert "none of 'Yes', 'No'" in missing[0]
    server.masses = lambda text: {}
    with pytest.raises(JudgeAnswerError, match="none of 'Yes', 'No'"):
        judge.score(clips(1), [PROMPT])


def test_a_clip_that_fails_beside_others_is_a_failure_with_its_reason(server: FakeVllm) -> None:
    """NaN would be a verdict: never tried again, and its reason lost in a log of the worker."""
    colours = ("red", "green", "blue", "yellow")
    prompts = [Prompt(prompt_id=c, text=c, facts=FACTS | {"colour": c}) for c in colours]
    server.masses = lambda text: {} if "green" in text else {"Yes": 0.3, "No": 0.1}
    judge = opened(server, mode="p_yes", only=("colour",), check_sight=False)
    worker = ScorerWorker(judge, label="judge")
    frames = (clips(4).permute(0, 1, 3, 4, 2) * 255).to(torch.uint8).numpy()
    items = [ScoreItem(item_id=(0, n), prompt=p, source=0, row=n) for n, p in enumerate(prompts)]
    results = worker.score(items, [frames], fps=8.0)
    assert [result.is_failure for result in results] == [False, True, False, False]
    assert "none of 'Yes', 'No' was among the tokens" in results[1].error
    assert server.num_chats == 4 + 1  # the three that were answered are not asked again
    server.masses = lambda text: {"Yes": 0.9, "No": 0.1}
    [again] = worker.score(items[1:2], [frames], fps=8.0)
    assert again.value == pytest.approx(0.9)


def test_a_clip_that_is_late_beside_others_blanks_none_of_them(server: FakeVllm) -> None:
    """The worker asks a late batch no second time: late must be the call, not one of its clips."""
    prompts = [Prompt(prompt_id=c, text=c, facts=FACTS | {"colour": c}) for c in ("red", "green")]

    def breaks_on_green(text: str) -> dict[str, float]:
        if "green" in text:
            raise OSError("the engine is gone")
        return {"Yes": 0.3, "No": 0.1}

    server.masses = breaks_on_green
    settings = {"deadline_s": 0.5, "timeout_s": 0.4, "max_attempts": 99}
    judge = opened(server, mode="p_yes", only=("colour",), check_sight=False, **settings)
    worker = ScorerWorker(judge, label="judge")
    frames = (clips(2).permute(0, 1, 3, 4, 2) * 255).to(torch.uint8).numpy()
    items = [ScoreItem(item_id=(0, n), prompt=p, source=0, row=n) for n, p in enumerate(prompts)]
    first, second = worker.score(items, [frames], fps=8.0)
    assert first.value == pytest.approx(0.75)
    assert second.is_failure
    assert second.is_late


def test_what_was_answered_is_only_of_the_same_clip_prompt_and_model(server: FakeVllm) -> None:
    colours = ("red", "green")
    prompts = [Prompt(prompt_id=c, text=c, facts=FACTS | {"colour": c}) for c in colours]
    server.masses = lambda text: {} if "green" in text else {"Yes": 0.3, "No": 0.1}
    judge = opened(server, mode="p_yes", only=("colour",), check_sight=False)
    videos = clips(3)
    with pytest.raises(JudgeAnswerError):
        judge.score(videos[:2], prompts)
    server.masses = lambda text: {"Yes": 0.9, "No": 0.1}
    assert float(judge.score(videos[2:], prompts[:1])) == pytest.approx(0.9)
    assert float(judge.score(videos[:1], prompts[1:])) == pytest.approx(0.9)
    assert float(judge.score(videos[:1], prompts[:1])) == pytest.approx(0.75)
    assert float(judge.score(videos[:1], prompts[:1])) == pytest.approx(0.9)  # once only


@pytest.mark.parametrize("yes", [0.9, 0.1])
def test_the_probability_of_a_gate_question_is_its_score(server: FakeVllm, yes: float) -> None:
    """A gate is in no score: taken as one, it left good clips unjudged and gave bad ones 0."""
    server.masses = lambda text: {"Yes": yes, "No": 1.0 - yes}
    judge = opened(server, prompts="physics", mode="p_yes", only=("scene",))
    assert judge.score(clips(1), [PROMPT]).tolist() == pytest.approx([yes], abs=1e-6)


def test_a_late_call_names_the_setting_of_the_recipe(server: FakeVllm) -> None:
    """And the recipe's deadline is the one that counts, not the class's 600 s."""
    config = {"layout": "images", "only": ["colour"], "check_sight": False}
    entry = ScorerConfig(use="vlm_judge", config=config, deadline_s=0.3)
    judge = open_scorer(entry, "x")
    assert isinstance(judge, VlmJudge)
    judge.connect([server.endpoint])
    server.delay_s = 2.0
    with pytest.raises(RewardTimeoutError, match=r"than deadline_s 0\.3 of the scorer's entry"):
        judge.score(clips(1), [PROMPT])
    pairs = open_scorer(
        ScorerConfig(
            use="vlm_pairwise",
            config={"prompts": "adherence", "layout": "images"},
            deadline_s=0.3,
        ),
        "x",
    )
    assert isinstance(pairs, VlmPairwise)
    pairs.connect([server.endpoint])
    with pytest.raises(RewardTimeoutError, match=r"deadline_s 0\.3"):
        pairs.score_group(clips(2), PROMPT)


def test_answers_stay_with_their_clips(server: FakeVllm) -> None:
    """Requests end in any order; the score must be that of the clip."""
    prompts = [
        Prompt(prompt_id=colour, text=colour, facts=FACTS | {"colour": colour})
        for colour in ("red", "green", "blue", "yellow", "orange", "purple")
    ]
    table = {p.prompt_id: 0.1 * (n + 1) for n, p in enumerate(prompts)}

    def by_colour(text: str) -> dict[str, float]:
        [colour] = [word for word in table if word in text]
        return {"Yes": table[colour], "No": 1.0 - table[colour]}

    server.masses = by_colour
    server.faults = deque(["none", "500", "none", "none", "none", "garbage", "none", "none"])
    scores = opened(server, mode="p_yes", only=("colour",)).score(clips(6), prompts)
    assert scores.tolist() == pytest.approx(list(table.values()), abs=1e-5)


def test_images_are_counted_in_what_the_server_saw(server: FakeVllm) -> None:
    judge = opened(server, only=("colour",), mode="p_yes")
    judge.score(clips(1), [PROMPT])
    server.most_frames = 1
    judge.score(clips(1), [PROMPT])  # images are no frames of a video
    assert max(str(body).count("image_url': {") for body in server.bodies) == 8


@pytest.mark.parametrize("layout", ["mp4", "jpeg"])
def test_a_subsampled_video_is_an_error_that_says_what_to_set(
    server: FakeVllm, layout: str
) -> None:
    judge = opened(server, only=("colour",), mode="p_yes", layout=layout, num_frames=None)
    assert not judge.score(clips(1), [PROMPT]).isnan().any()
    server.most_frames = 4
    with pytest.raises(JudgeSightError, match=r"saw about 4\.0 of 17 frames.*clip_fps .* to 8"):
        judge.score(clips(1), [PROMPT])
    unchecked = opened(server, only=("colour",), layout=layout, check_sight=False)
    assert not unchecked.score(clips(1), [PROMPT]).isnan().any()


def test_debiasing_cancels_a_constant_leaning_to_yes(server: FakeVllm) -> None:
    """A judge that says yes to everything scores 0.5, and its bias is 1."""
    server.masses = lambda text: {"Yes": 0.9999, "No": 0.0001}
    judge = opened(server, only=("colour",), debias=True)
    [verdict] = judge.explain(clips(1), [PROMPT])
    assert verdict.value == pytest.approx(0.5, abs=1e-3)
    assert verdict.parts["colour/yes_bias"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("combine", "expected"), [("mean", 0.5), ("fraction_yes", 0.5), ("all_yes", 0.0)]
)
def test_answers_are_combined_as_set(server: FakeVllm, combine: str, expected: float) -> None:
    server.masses = lambda text: {
        "Yes": 0.8 if "red" in text else 0.2,
        "No": 0.2 if "red" in text else 0.8,
    }
    judge = opened(server, only=("colour", "direction"), combine=combine)
    assert float(judge.score(clips(1), [PROMPT])[0]) == pytest.approx(expected, abs=1e-5)


GATED = """
name: gated
version: 1
questions:
  - {name: gate, gate: %s, ask: "Is there a {{ facts.object }}?"}
  - {name: rest, ask: "Is it {{ facts.colour }}?"}
"""


@pytest.mark.parametrize(("gate", "expected"), [("zero", 0.0), ("exclude", math.nan)])
def test_a_failed_gate_decides(
    server: FakeVllm, tmp_path: Path, gate: str, expected: float
) -> None:
    """And the rest is not asked."""
    (tmp_path / "mine.yaml").write_text(GATED % gate)
    server.masses = lambda text: {"Yes": 0.1, "No": 0.9}
    judge = opened(server, prompts=str(tmp_path / "mine.yaml"))
    assert judge.score(clips(1), [PROMPT]).tolist() == pytest.approx([expected], nan_ok=True)
    assert not any("red" in str(body) for body in server.bodies)


def test_grade_is_the_expectation_over_its_tokens(server: FakeVllm) -> None:
    """(0.5 * 5 + 0.5 * 3 - 1) / 4 = 0.75."""
    server.masses = lambda text: {"5": 0.2, "3": 0.2}
    server.knows_ids = True
    scores = opened(server, mode="grade").score(clips(1), [PROMPT])
    assert float(scores[0]) == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"reason": "it falls", "score": 4}', 0.75),
        ('{"reason": "it falls", "score": 9}', None),
        ('{"reason": "it falls"}', None),
        ("4", None),
    ],
)
def test_a_rubric_answer_must_be_of_its_schema(
    server: FakeVllm, text: str, expected: float | None
) -> None:
    """Servers that ignore structured output exist; a grade is never guessed out of prose."""
    server.text = text
    judge = opened(server, mode="rubric")
    if expected is None:
        with pytest.raises(JudgeAnswerError):
            judge.score(clips(1), [PROMPT])
    else:
        assert float(judge.score(clips(1), [PROMPT])[0]) == pytest.approx(expected)


@pytest.mark.parametrize(("text", "expected"), [("No.", 0.0), ("yes", 1.0), ("Yes and no", None)])
def test_a_decision_is_one_word(server: FakeVllm, text: str, expected: float | None) -> None:
    """ "No idea" begins with a no."""
    server.text = text
    judge = opened(server, mode="describe", decides_by="text")
    if expected is None:
        with pytest.raises(JudgeAnswerError, match="expected the verdict"):
            judge.score(clips(1), [PROMPT])
    else:
        assert float(judge.score(clips(1), [PROMPT])[0]) == expected


def test_another_model_may_decide(server: FakeVllm) -> None:
    with running(FakeVllm(masses=lambda text: {"Yes": 0.9, "No": 0.1})) as (decider,):
        server.text = "a dog sits"
        settings = {"url": decider.url, "model": "llm"}
        judge = open_scorer(
            ScorerConfig(
                use="vlm_judge",
                config={"mode": "describe", "layout": "images", "decider": settings},
            ),
            "x",
        )
        assert isinstance(judge, VlmJudge)
        judge.connect([server.endpoint])
        assert float(judge.score(clips(1), [PROMPT])[0]) == pytest.approx(0.9)
        assert "a dog sits" in str(decider.bodies[0])
        assert "decider llm" in judge.version


def test_a_leaning_to_the_first_place_cancels_in_pairs(server: FakeVllm) -> None:
    """A judge that always says A gives every clip half of its games."""
    server.masses = lambda text: {"A": 0.9, "B": 0.1}
    judge = VlmPairwise(VlmPairwise.Config(prompts="adherence", layout="images", num_frames=2))
    judge.connect([server.endpoint])
    assert judge.score_group(clips(4), PROMPT).tolist() == pytest.approx([0.5] * 4)
    assert server.num_chats >= 12


@pytest.mark.parametrize("fault", ["500", "400"])
def test_a_clip_without_a_comparison_is_tried_again_where_that_may_help(
    server: FakeVllm, fault: str
) -> None:
    """A refusal stays one; it must not cost the rest of the group its scores."""
    config = VlmPairwise.Config(
        prompts="adherence", layout="images", num_frames=2, check_sight=False, max_attempts=1
    )
    judge = VlmPairwise(config)
    judge.connect([server.endpoint])
    server.masses = lambda text: {"A": 0.9, "B": 0.1}
    videos = clips(3)
    blank = View(layout="images", num_frames=2).show(to_frames(torch.zeros(17, 3, 32, 32)), 8.0)
    videos[0] = 0.0
    server.refuses_part, server.fault_of_part = blank.parts[0]["image_url"]["url"], fault
    if fault == "500":
        with pytest.raises(RewardError, match="engine is dead"):
            judge.score_group(videos, PROMPT)
    else:
        rates = judge.score_group(videos, PROMPT)
        assert rates.isnan().tolist() == [True, False, False]


def test_answers_that_are_no_single_token_are_an_error(server: FakeVllm) -> None:
    """Their first token would stand for them, and for other words."""
    judge = VlmPairwise(VlmPairwise.Config(layout="images", num_frames=2))  # "First", "Second"
    judge.connect([server.endpoint])
    with pytest.raises(JudgeAnswerError, match="'First' is more than one token"):
        judge.score_group(clips(2), PROMPT)


def test_concurrency_is_kept(server: FakeVllm) -> None:
    server.delay_s = 0.02
    opened(server, concurrency=3, check_sight=False).score(clips(3), [PROMPT] * 3)
    assert server.most_at_once <= 3


def test_a_decider_may_be_given_with_v1_and_must_have_its_key(
    server: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its key it would be asked all the same, and every clip be refused by a 401."""
    with running(FakeVllm(masses=lambda text: {"Yes": 0.9, "No": 0.1})) as (decider,):
        settings = {"url": f"{decider.url}/v1/", "model": "llm", "api_key_env": "DECIDER_KEY"}
        config = {"mode": "describe", "layout": "images", "decider": settings}
        entry = ScorerConfig(use="vlm_judge", config=config)
        monkeypatch.delenv("DECIDER_KEY", raising=False)
        with pytest.raises(ValueError, match=r"decider\.api_key_env: .*'DECIDER_KEY' is not set"):
            open_scorer(entry, "x")
        monkeypatch.setenv("DECIDER_KEY", "mine")
        judge = open_scorer(entry, "x")
        assert isinstance(judge, VlmJudge)
        judge.connect([server.endpoint])
        assert float(judge.score(clips(1), [PROMPT])[0]) == pytest.approx(0.9)
        assert decider.keys == {"Bearer mine"}


def test_version_tells_prompts_model_mode_and_frames(server: FakeVllm, tmp_path: Path) -> None:
    """A cached score of other words, weights or frames must not be served."""
    (tmp_path / "a.yaml").write_text(GATED % "zero")
    (tmp_path / "b.yaml").write_text((GATED % "zero").replace("Is it", "Was it"))
    one = opened(server, prompts=str(tmp_path / "a.yaml"))
    versions = {
        one.version,
        opened(server, prompts=str(tmp_path / "b.yaml")).version,
        opened(server, prompts=str(tmp_path / "a.yaml"), layout="sheet").version,
    }
    other = Endpoint(url=server.url, model="judge", model_digest="other", api_key="key")
    one.connect([other])
    versions.add(one.version)
    assert len(versions) == 4


def test_replicas_of_two_models_are_refused(server: FakeVllm) -> None:
    other = Endpoint(url=server.url, model="judge", model_digest="other", api_key="key")
    with pytest.raises(RewardError, match="different models: digest, other"):
        opened(server).connect([server.endpoint, other])


def test_a_judge_without_a_server_says_what_to_set() -> None:
    judge = VlmJudge(VlmJudge.Config(layout="images"))
    with pytest.raises(RewardError, match=r"server: NAME"):
        judge.score(clips(1), [PROMPT])


def test_a_prompt_without_the_facts_is_an_error(server: FakeVllm) -> None:
    """And not a question with a hole in it."""
    with pytest.raises(ValueError, match="has facts none"):
        opened(server).score(clips(1), [Prompt(prompt_id="p", text="a dog")])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prompts": "tiny_wrld"}, "expected a path that ends in .yaml, or one of"),
        ({"mode": "p_yes"}, "asks one question, got 7"),
        ({"only": ["colr"]}, "expected some of object, colour"),
        ({"prompts": "physics", "only": ["scene"]}, r"every question asked is a gate \(scene\)"),
        ({"prompts": "outcome", "mode": "rubric"}, "has no `rubrics`"),
    ],
)
def test_settings_that_do_not_fit_are_found_at_once(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_scorer(ScorerConfig(use="vlm_judge", config=config), "x")


def test_questions_that_came_with_the_prompt(server: FakeVllm) -> None:
    """Each is sent as it was written; a prompt without any is asked those of the file."""
    server.masses = lambda text: (
        {"Yes": 0.3, "No": 0.1} if "{{ melt }}" in text else {"Yes": 0.1, "No": 0.3}
    )
    judge = opened(server, only=("colour",), asks_own=True, check_sight=False)
    facts = all_facts()[0]
    plain = Prompt(prompt_id="p", text=caption(facts), facts=facts)
    asked = dataclasses.replace(plain, questions=("Does it {{ melt }}?", "Is it wet?"))
    scores = judge.score(clips(2), [asked, plain])
    assert scores.tolist() == pytest.approx([(0.75 + 0.25) / 2, 0.25])
    texts = [text_of(body["messages"]) for body in server.bodies]
    assert sum("Does it {{ melt }}? Answer Yes or No." in text for text in texts) == 1
    judge.close()
