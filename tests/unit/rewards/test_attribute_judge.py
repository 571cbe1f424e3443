"""The independent judge of the tiny world, with the weights that ship."""

from __future__ import annotations

import pytest
import torch

from rlvid.data.tiny_world import all_facts, caption, render_clip, split_of
from rlvid.records import Prompt
from rlvid.rewards.critics.attribute_judge import AttributeJudge
from rlvid.seeds import prompt_id
from rlvid.testing import check_reward

HELDOUT = [facts for facts in all_facts() if split_of(facts) == "heldout"][::12]


@pytest.fixture(scope="module")
def judge() -> AttributeJudge:
    return AttributeJudge(AttributeJudge.Config())


def prompt_of(text: str) -> Prompt:
    return Prompt(prompt_id=prompt_id(text), text=text)


def test_judge_keeps_the_contract(judge: AttributeJudge) -> None:
    check_reward(judge)


def test_heldout_clips_earn_more_under_their_own_caption(judge: AttributeJudge) -> None:
    """The judge never saw these captions; one that had learned them by heart would fail here."""
    videos = torch.stack([render_clip(facts, 900 + i) for i, facts in enumerate(HELDOUT)])
    right = judge.score(videos, [prompt_of(caption(facts)) for facts in HELDOUT])
    wrong = judge.score(videos, [prompt_of(caption(facts)) for facts in HELDOUT[::-1]])
    moved = torch.tensor([a != b for a, b in zip(HELDOUT, HELDOUT[::-1], strict=True)])
    assert right.mean() > 0.85
    assert bool((right > wrong)[moved].all())


def test_only_the_attribute_that_is_wrong_loses(judge: AttributeJudge) -> None:
    facts = dict(HELDOUT[0])
    videos = render_clip(facts, 3)[None]
    other = {**facts, "colour": "blue" if facts["colour"] != "blue" else "red"}
    right = judge.parts(videos, [prompt_of(caption(facts))])
    wrong = judge.parts(videos, [prompt_of(caption(other))])
    assert wrong["colour"] < 0.2 < right["colour"]
    assert all(torch.equal(right[name], wrong[name]) for name in right if name != "colour")


def test_facts_and_caption_ask_for_the_same(judge: AttributeJudge) -> None:
    """A prompt set may carry facts or only text; the score must not depend on which."""
    facts = HELDOUT[1]
    videos = render_clip(facts, 4)[None]
    text = caption(facts)
    with_facts = Prompt(prompt_id=prompt_id(text), text=text, facts=facts)
    assert torch.equal(judge.score(videos, [prompt_of(text)]), judge.score(videos, [with_facts]))


def test_prompt_outside_the_world_is_refused(judge: AttributeJudge) -> None:
    """A score for a prompt it cannot read would be a number without meaning."""
    with pytest.raises(ValueError, match="'a cat plays chess' is outside the tiny world"):
        judge.score(torch.rand(1, 17, 3, 32, 32), [prompt_of("a cat plays chess")])
