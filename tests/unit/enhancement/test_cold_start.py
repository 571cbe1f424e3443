"""Teaching the form before it is rewarded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from rlvid.algorithms.token_grpo import token_grpo_loss
from rlvid.config.enhancement import LengthConfig, RewriterConfig, TokenGrpoConfig
from rlvid.enhancement.answer import Enhanced
from rlvid.enhancement.cold_start import Lesson, lesson_batch, load_lessons, written
from rlvid.enhancement.language_model import LanguageModel
from rlvid.enhancement.rewriter import open_rewriter
from rlvid.enhancement.scoring import sequence_log_prob, with_behaviour
from rlvid.enhancement.template import load_template
from rlvid.records import Prompt

LESSONS = (
    Lesson(text="a red ball", answer=Enhanced(reason="light", prompt="a red ball in the sun")),
    Lesson(text="a blue box", answer=Enhanced(reason="place", prompt="a blue box on sand")),
)
CONFIG = TokenGrpoConfig(kl_coefficient=0.0)
LENGTH = LengthConfig(min_words=3, max_words=9)
TEMPLATE = load_template("default")


def test_its_gradient_is_that_of_cross_entropy(language: LanguageModel) -> None:
    batch = lesson_batch(LESSONS, language, TEMPLATE, LENGTH, CONFIG)
    batch = with_behaviour(language.model, batch, temperature=1.0)
    policy = sequence_log_prob(language.model, batch, temperature=1.0)
    (token_grpo_loss(policy, batch, CONFIG).loss_sum / len(LESSONS)).backward()
    found = [parameter.grad.clone() for parameter in language.model.parameters()]
    language.model.zero_grad()
    logits = language.model(batch.input_ids).logits[:, :-1][batch.answer_mask]
    functional.cross_entropy(logits, batch.input_ids[:, 1:][batch.answer_mask]).backward()
    for gradient, parameter in zip(found, language.model.parameters(), strict=True):
        # float32 sums in another order.
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_tiny_model_learns_the_form_and_then_writes_it(language: LanguageModel) -> None:
    """From lessons to tokens, gradient, sampling and reading: nothing in between disagrees."""
    batch = lesson_batch(LESSONS, language, TEMPLATE, LENGTH, CONFIG)
    optimizer = torch.optim.Adam(language.model.parameters(), lr=0.01)
    for _ in range(60):
        scored = with_behaviour(language.model, batch, temperature=1.0)
        policy = sequence_log_prob(language.model, batch, temperature=1.0)
        optimizer.zero_grad()
        (token_grpo_loss(policy, scored, CONFIG).loss_sum / len(LESSONS)).backward()
        optimizer.step()
    rewriter = open_rewriter(language, RewriterConfig(max_new_tokens=64, temperature=0.1), LENGTH)
    found = rewriter.enhance([Prompt(prompt_id=x.text, text=x.text) for x in LESSONS], seed=0)
    assert found.failures == {}
    assert [x.enhanced_text for x in found.prompts] == [x.answer.prompt for x in LESSONS]


def test_lessons_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lessons.jsonl"
    line = json.dumps({"text": "a red ball", "reason": "light", "prompt": "a red ball in the sun"})
    path.write_text(f"{line}\n\n", encoding="utf-8")
    assert load_lessons(path) == LESSONS[:1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"text": "a", "reason": "b"}', "expected an object"),
        ('{"text": "a", "reason": "b", "prompt": 3}', "expected text"),
        ('{"text": "a", "reason": "b", "prompt": "<c>"}', "malformed: markup"),
        ('{"text": "a", "reason": "b", "prompt": "A."}', "malformed: unchanged"),
        ("", "no lessons"),
    ],
)
def test_a_lesson_that_would_be_punished_is_refused(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "lessons.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_lessons(path)


def test_a_template_that_begins_otherwise_is_refused(language: LanguageModel) -> None:
    template = TEMPLATE.model_copy(update={"answer_start": "<think>"})
    with pytest.raises(ValueError, match="answer_start"):
        lesson_batch(LESSONS, language, template, LENGTH, CONFIG)
    assert written("r", "p") == "<reason>r</reason><prompt>p</prompt>"
