"""One rank of prompt enhancement: its numbers, its resume, what it writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config import Recipe
from rlvid.config.loader import check, default_values, lay_over
from rlvid.enhancement.answer import Enhanced, Malformed
from rlvid.enhancement.folder import load_enhancer
from rlvid.enhancement.language_model import language_model
from rlvid.enhancement.rewriter import Rewrite, rewrite_seed
from rlvid.learners.enhancer import EnhancerLearner
from rlvid.learners.enhancer_group import interleaved
from rlvid.learners.enhancer_settings import cold_start_settings, reward_settings
from rlvid.observability.metrics import check_names
from rlvid.records import Prompt
from rlvid.weights import digest_tensors
from tests.unit.enhancement.conftest import make_model, make_tokenizer

PROMPTS = tuple(Prompt(prompt_id=text, text=text) for text in ("a red ball", "a blue box", "sea"))
ADVANTAGE = torch.tensor([[1.0, -1.0], [-0.5, 0.5], [0.2, -0.2]])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk, as a user's folder would be."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _recipe(start: Path, **sections: Any) -> Recipe:
    learner = {"zero_stage": 0, "micro_batch_rows": 2, "lora": {"rank": 2}}
    learner |= {"optimizer": {"learning_rate": 1e-2}, **sections.pop("learner", {})}
    tree: dict[str, Any] = {
        "rewriter": {"model": str(start), "max_new_tokens": 12, "template": "tiny_world"},
        "reward": {"length": {"min_words": 3, "max_words": 20}},
        "cold_start": {"num_steps": 4, "batch_size": 3, "num_pairs": 5},
        "learner": learner,
        **sections,
    }
    sections = {"name": "tiny", "prompt_enhancement": tree}
    return check(lay_over(default_values(Recipe), sections, Recipe))


def _open(start: Path, **sections: Any) -> EnhancerLearner:
    return EnhancerLearner(reward_settings(_recipe(start, **sections), str(start)))


def _rewrites(learner: EnhancerLearner, visit: int) -> list[list[Rewrite]]:
    seeds = [[rewrite_seed(0, p.prompt_id, visit, index) for index in (0, 1)] for p in PROMPTS]
    return learner.rewrite(PROMPTS, seeds)


def _learn(learner: EnhancerLearner, step: int, advantage: Tensor = ADVANTAGE) -> dict[str, float]:
    report = learner.learn(
        _rewrites(learner, step), advantage, torch.ones(3, 2, dtype=torch.bool), step=step
    )
    return dict(report.metrics)


def _digest(learner: EnhancerLearner) -> str:
    return digest_tensors(dict(learner.engine.full_parameters()))


def _texts(rewrites: Sequence[Sequence[Rewrite]]) -> list[list[str]]:
    return [[rewrite.text for rewrite in group] for group in rewrites]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_before_the_first_update_every_ratio_is_1_and_there_is_no_kl(
    start: Path, mode: str
) -> None:
    metrics = _learn(_open(start, learner={"mode": mode}), 0)
    assert metrics["enhance/ratio/max_deviation"] == 0.0
    assert metrics["enhance/kl/mean"] == 0.0
    assert metrics["enhance/clip/frac"] == 0.0
    # A cache and another batch round otherwise; far below the clip range.
    assert metrics["enhance/sampling_drift/max"] < 1e-4
    check_names(metrics)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_what_was_praised_grows_likelier_and_the_kl_sees_it(start: Path, mode: str) -> None:
    learner = _open(start, learner={"mode": mode}, algorithm={"num_updates": 3})
    metrics = _learn(learner, 0)
    assert metrics["enhance/ratio/max_deviation"] > 0.0
    assert metrics["enhance/kl/mean"] > 0.0
    assert learner.optimizer_steps == 3


def test_the_step_does_not_depend_on_the_micro_batches(start: Path) -> None:
    """Rows that fill up, and rows of other widths, add nothing to the gradient."""
    norms = []
    for rows in (1, 4, 6):
        metrics = _learn(_open(start, learner={"micro_batch_rows": rows}), 0)
        norms.append(metrics["enhance/grad_norm/total"])
    # float32 sums in another order.
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


def test_rewrites_of_other_weights_are_refused(start: Path) -> None:
    """Only the log-probabilities say so: the tokens could be anybody's."""
    learner = _open(start, learner={"optimizer": {"learning_rate": 0.3}})
    before = _rewrites(learner, 0)
    drift = _learn(learner, 0)["enhance/sampling_drift/mean"]
    assert drift < 1e-5
    digest = _digest(learner)
    with pytest.raises(ValueError, match="expected at most 0.1 .*The sampler has other weights"):
        learner.learn(before, ADVANTAGE, torch.ones(3, 2, dtype=torch.bool), step=1)
    assert _digest(learner) == digest, "refused before the update"


def _moved(rewrites: list[list[Rewrite]], nats: float) -> list[list[Rewrite]]:
    """The same answers, by a sampler that says each token is less likely by so many nats."""
    return [
        [
            replace(
                one,
                sampled=replace(
                    one.sampled, log_prob=tuple(p - nats for p in one.sampled.log_prob)
                ),
            )
            for one in group
        ]
        for group in rewrites
    ]


def test_a_token_counts_what_it_was_drawn_too_rarely_and_no_more_than_the_cap(start: Path) -> None:
    """Tokens e^0.05 times as likely here as where they were drawn; the ratio stays 1."""
    norms = {}
    for cap in (None, 2.0, 1.02):
        learner = _open(start, sampler={"importance_cap": cap}, algorithm={"kl_coefficient": 0.0})
        rewrites = _moved(_rewrites(learner, 0), 0.05)
        all_rows = torch.ones(3, 2, dtype=torch.bool)
        metrics = learner.learn(rewrites, ADVANTAGE, all_rows, step=0).metrics
        check_names(metrics)
        assert metrics["enhance/sampling_drift/mean"] == pytest.approx(0.05, abs=1e-4)
        assert metrics["enhance/ratio/max_deviation"] == 0.0
        norms[cap] = metrics["enhance/grad_norm/total"]
        assert metrics.get("enhance/importance/mean") == (
            None if cap is None else pytest.approx(min(math.exp(0.05), cap), rel=1e-4)
        )
    assert norms[2.0] / norms[None] == pytest.approx(math.exp(0.05), rel=1e-3)
    assert norms[1.02] / norms[None] == pytest.approx(1.02, rel=1e-3)


def test_a_published_adapter_is_what_peft_reads_and_is_named_after_its_values(
    start: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    learner = _open(start)
    first = learner.publish_adapter(tmp_path)
    assert learner.publish_adapter(tmp_path) == first
    _learn(learner, 0)
    second = learner.publish_adapter(tmp_path)
    assert first.name.startswith("rewriter-000000-")
    assert second.name.startswith("rewriter-000001-")
    assert [path.name for path in tmp_path.iterdir()] == [second.name], "the one before is gone"

    base = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    read = PeftModel.from_pretrained(base, str(second.folder)).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = learner.engine.transformer(ids).logits
        assert torch.equal(read(ids).logits, expected)
        with read.disable_adapter():
            assert not torch.equal(read(ids).logits, expected)


def test_a_batch_that_teaches_nothing_changes_nothing(start: Path) -> None:
    learner = _open(start)
    before = _digest(learner)
    report = learner.learn(
        _rewrites(learner, 0), ADVANTAGE, torch.zeros(3, 2, dtype=torch.bool), step=0
    )
    assert report.metrics["enhance/rows/count"] == 0.0
    assert _digest(learner) == before
    assert learner.optimizer_steps == 0


@pytest.mark.parametrize(("mode", "stage"), [("lora", 0), ("lora", 2), ("full", 2)])
def test_resume_is_exact_in_weights_and_in_answers(
    start: Path, tmp_path: Path, mode: str, stage: int
) -> None:
    """Four steps, and two and two with another process's learner between."""
    learner = {"mode": mode, "zero_stage": stage}
    whole = _open(start, learner=learner)
    for step in range(4):
        _learn(whole, step)
    first = _open(start, learner=learner)
    for step in range(2):
        _learn(first, step)
    first.save(tmp_path)
    second = _open(start, learner=learner)
    second.load(tmp_path)
    assert _texts(_rewrites(second, 2)) == _texts(_rewrites(first, 2))
    for step in range(2, 4):
        _learn(second, step)
    assert _digest(second) == _digest(whole)
    assert _texts(_rewrites(second, 4)) == _texts(_rewrites(whole, 4))


def test_a_checkpoint_of_the_other_mode_is_refused(start: Path, tmp_path: Path) -> None:
    _open(start).save(tmp_path)
    with pytest.raises(ValueError, match="mode: expected 'full'"):
        _open(start, learner={"mode": "full"}).load(tmp_path)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_what_it_exports_writes_what_it_writes(start: Path, tmp_path: Path, mode: str) -> None:
    """The adapter is merged, and the folder needs neither the recipe nor the start."""
    learner = _open(start, learner={"mode": mode})
    _learn(learner, 0)
    learner.export(tmp_path / "enhancer")
    loaded = load_enhancer(tmp_path / "enhancer")
    assert _texts(loaded.rewriter.rewrite(PROMPTS, [[1, 2]] * 3)) == _texts(
        learner.rewrite(PROMPTS, [[1, 2]] * 3)
    )
    assert _texts(_open(start).rewrite(PROMPTS, [[1, 2]] * 3)) != _texts(
        learner.rewrite(PROMPTS, [[1, 2]] * 3)
    )


def test_the_cold_start_teaches_the_form(start: Path) -> None:
    """The lessons come back, and their loss is the cross-entropy of their tokens."""
    recipe = _recipe(
        start,
        rewriter={"model": str(start), "max_new_tokens": 90, "template": "tiny_world"},
        cold_start={
            "num_steps": 80,
            "batch_size": 2,
            "num_pairs": 2,
            "optimizer": {"learning_rate": 1e-2},
        },
        learner={"mode": "full"},
    )
    learner = EnhancerLearner(cold_start_settings(recipe))
    reports = learner.train_steps(0, 80)
    losses = [report.metrics["enhance/lesson_loss/mean"] for report in reports]
    assert losses[0] > 0.5 * math.log(320)
    assert losses[-1] < 0.1
    check_names(reports[0].metrics)
    assert learner._lessons is not None
    texts = [lesson.text for lesson in learner._lessons]
    prompts = [Prompt(prompt_id=text, text=text) for text in texts]
    found = [group[0].answer for group in learner.rewrite(prompts, [[0]] * 2)]
    assert all(isinstance(answer, Enhanced) for answer in found), found


def test_an_untaught_model_is_malformed_and_says_how(start: Path) -> None:
    answers = [rewrite.answer for group in _rewrites(_open(start), 0) for rewrite in group]
    assert all(isinstance(answer, Malformed) for answer in answers)


def test_an_opened_model_is_used(start: Path) -> None:
    tokenizer = make_tokenizer()
    opened = language_model(make_model(len(tokenizer), tokenizer.eos_token_id), tokenizer)
    learner = EnhancerLearner(reward_settings(_recipe(start), "nowhere"), opened)
    assert len(_rewrites(learner, 0)) == 3


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_shares_of_ranks_come_together_in_order(num_ranks: int) -> None:
    places = list(range(4))
    assert interleaved([places[rank::num_ranks] for rank in range(num_ranks)]) == places
