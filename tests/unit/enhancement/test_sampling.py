"""Drawing answers from a real tiny Llama, and scoring them again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.token_grpo import TokenBatch, token_grpo_loss
from rlvid.config.enhancement import TokenGrpoConfig
from rlvid.enhancement.language_model import LanguageModel
from rlvid.enhancement.sampling import SampledAnswer, SampleRequest, TransformersSampler
from rlvid.enhancement.scoring import (
    chunk_of,
    collate,
    sampling_drift,
    sequence_log_prob,
    with_behaviour,
    with_reference,
)

TEMPERATURE = 0.8
MAX_TOKENS = 24


def requests_of(language: LanguageModel, *texts: str) -> list[SampleRequest]:
    ids = language.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [
        SampleRequest(prompt_ids=tuple(tokens), seed=100 + number)
        for number, tokens in enumerate(ids)
    ]


def sample(
    language: LanguageModel, requests: list[SampleRequest], batch_size: int = 8
) -> list[SampledAnswer]:
    sampler = TransformersSampler(
        language.model,
        end_ids=language.end_ids,
        pad_id=language.pad_id,
        batch_size=batch_size,
    )
    return sampler.sample(requests, temperature=TEMPERATURE, max_new_tokens=MAX_TOKENS)


def batch_of(
    language: LanguageModel, answers: list[SampledAnswer], **config: Any
) -> tuple[TokenBatch, TokenGrpoConfig]:
    settings = TokenGrpoConfig(**config)
    batch = collate(
        answers,
        group_index=[number // 2 for number in range(len(answers))],
        advantage=torch.tensor([1.0, -1.0] * (len(answers) // 2)),
        trained=torch.ones(len(answers), dtype=torch.bool),
        config=settings,
        max_new_tokens=MAX_TOKENS,
        pad_id=language.pad_id,
    )
    return batch, settings


TEXTS = ("a red ball falls", "a ball", "the camera pans left while a ball falls", "red")


def test_recorded_log_probs_are_those_of_a_forward_over_the_whole_sequence(
    language: LanguageModel,
) -> None:
    """Sampled with a cache and padding on the left, scored without and with it on the right."""
    answers = sample(language, requests_of(language, *TEXTS))
    batch, _ = batch_of(language, answers)
    scored = with_behaviour(language.model, batch, temperature=TEMPERATURE)
    assert sampling_drift(batch, scored) < 1e-5
    assert int(batch.answer_mask.sum()) == sum(len(answer.answer_ids) for answer in answers)
    for row, answer in enumerate(answers):
        tokens = torch.tensor([answer.prompt_ids + answer.answer_ids])
        with torch.no_grad():
            logits = language.model(tokens).logits[0, len(answer.prompt_ids) - 1 : -1]
        alone = (logits / TEMPERATURE).log_softmax(-1)
        expected = alone.gather(-1, torch.tensor(answer.answer_ids)[:, None])[:, 0]
        found = batch.behaviour_log_prob[row][batch.answer_mask[row]]
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


def test_an_answer_depends_on_its_own_seed_alone(language: LanguageModel) -> None:
    """Not on the batch it is drawn in, nor on anybody's use of the global generator."""
    requests = requests_of(language, *TEXTS)
    together = sample(language, requests)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    one_by_one = sample(language, requests, batch_size=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert [a.answer_ids for a in together] == [a.answer_ids for a in one_by_one]
    other = sample(language, [replace(request, seed=7) for request in requests])
    assert [a.answer_ids for a in other] != [a.answer_ids for a in together]


def test_draws_are_distributed_as_the_model_says(language: LanguageModel) -> None:
    """The first token of 2000 seeds against softmax(logits / temperature).

    torch.multinomial's own 2000 draws lie 0.10 to 0.13 away from this distribution of 291 words, in
    total variation; draws from another temperature lie above 0.15.
    """
    (request,) = requests_of(language, "a red")
    sampler = TransformersSampler(
        language.model, end_ids=language.end_ids, pad_id=language.pad_id, batch_size=500
    )
    answers = sampler.sample(
        [replace(request, seed=seed) for seed in range(2000)],
        temperature=TEMPERATURE,
        max_new_tokens=1,
    )
    with torch.no_grad():
        logits = language.model(torch.tensor([request.prompt_ids])).logits[0, -1]
    expected = (logits / TEMPERATURE).softmax(-1)
    drawn = torch.tensor([answer.answer_ids[0] for answer in answers])
    counts = torch.bincount(drawn, minlength=len(expected))
    assert float((counts / 2000 - expected).abs().sum() / 2) < 0.15


def test_an_answer_ends_with_its_end_token_or_is_not_finished(language: LanguageModel) -> None:
    texts = [f"a red ball number {number}" for number in range(40)]
    answers = sample(language, requests_of(language, *texts), batch_size=40)
    assert {answer.is_finished for answer in answers} == {True, False}
    for answer in answers:
        ends = [token in language.end_ids for token in answer.answer_ids]
        assert not any(ends[:-1])
        assert ends[-1] == answer.is_finished
        assert len(answer.answer_ids) == len(answer.log_prob) <= MAX_TOKENS
        assert answer.is_finished or len(answer.answer_ids) == MAX_TOKENS


def test_settings_of_the_models_own_do_not_change_what_is_drawn(language: LanguageModel) -> None:
    """Qwen's generation_config has a repetition penalty; `generate` would apply it unasked."""
    requests = requests_of(language, *TEXTS)
    expected = sample(language, requests)
    language.model.generation_config.repetition_penalty = 1.8
    language.model.generation_config.min_new_tokens = 20
    language.model.train()
    assert sample(language, requests) == expected
    assert language.model.training
    assert language.model.generation_config.repetition_penalty == 1.8


def test_before_the_first_update_the_ratio_is_exactly_one(language: LanguageModel) -> None:
    batch, config = batch_of(language, sample(language, requests_of(language, *TEXTS)))
    batch = with_behaviour(language.model, batch, temperature=TEMPERATURE)
    batch = with_reference(language.model, batch, temperature=TEMPERATURE)
    policy = sequence_log_prob(language.model, batch, temperature=TEMPERATURE)
    terms = token_grpo_loss(policy, batch, config)
    assert float(terms.maxima["ratio_deviation_max"]) == 0.0
    assert float(terms.sums["kl"]) == 0.0
    terms.loss_sum.backward()
    assert all(parameter.grad is not None for parameter in language.model.parameters())


def gradient_of(language: LanguageModel, batches: list[TokenBatch]) -> Tensor:
    language.model.zero_grad()
    for batch in batches:
        policy = sequence_log_prob(language.model, batch, temperature=TEMPERATURE)
        terms = token_grpo_loss(policy, batch, TokenGrpoConfig(kl_coefficient=0.0))
        (terms.loss_sum / 4).backward()
    return torch.cat([p.grad.flatten().clone() for p in language.model.parameters()])


def test_one_batch_of_four_and_two_of_two_give_the_same_gradient(language: LanguageModel) -> None:
    batch, _ = batch_of(language, sample(language, requests_of(language, *TEXTS)))
    batch = with_behaviour(language.model, batch, temperature=TEMPERATURE)
    whole = gradient_of(language, [batch])
    cut = gradient_of(language, [chunk_of(batch, slice(0, 2)), chunk_of(batch, slice(2, 4))])
    # float32 sums in another order.
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


def test_a_few_updates_make_the_good_answer_likelier_and_the_bad_one_less(
    language: LanguageModel,
) -> None:
    """The sign of it all, from the draw to the optimiser."""
    request, _ = requests_of(language, "a red ball", "a red ball")
    answers = sample(language, [request, replace(request, seed=3)])
    batch, config = batch_of(language, answers, kl_coefficient=0.0, aggregation="sequence")
    batch = with_behaviour(language.model, batch, temperature=TEMPERATURE)
    optimizer = torch.optim.SGD(language.model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        policy = sequence_log_prob(language.model, batch, temperature=TEMPERATURE)
        token_grpo_loss(policy, batch, config).loss_sum.backward()
        optimizer.step()
    after = with_behaviour(language.model, batch, temperature=TEMPERATURE).behaviour_log_prob
    good, bad = (after - batch.behaviour_log_prob).sum(dim=1).tolist()
    assert good > 0.0
    assert bad < 0.0


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_padding_changes_no_answer(language: LanguageModel, aggregation: str) -> None:
    """A group beside a longer one is padded; its own loss stays what it is alone."""
    answers = sample(language, requests_of(language, *TEXTS))
    together, config = batch_of(language, answers, kl_coefficient=0.0, aggregation=aggregation)
    alone, _ = batch_of(language, answers[:2], kl_coefficient=0.0, aggregation=aggregation)
    losses = []
    for batch in (chunk_of(together, slice(0, 2)), alone):
        policy = sequence_log_prob(language.model, batch, temperature=TEMPERATURE)
        losses.append(float(token_grpo_loss(policy, batch, config).loss_sum.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
