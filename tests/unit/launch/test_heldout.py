"""Held-out prompts stay the same ones, and stay held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvid.config import Recipe
from rlvid.launch.heldout import heldout_prompts
from tests.unit.launch.hand_made import measurement, recipe


def _with_files(folder: Path, trained: list[str], heldout: list[str]) -> Recipe:
    (folder / "train.txt").write_text("\n".join(trained))
    (folder / "heldout.txt").write_text("\n".join(heldout))
    return recipe(
        prompts={"source": str(folder / "train.txt"), "split": "all"},
        evaluate={"prompts": {"source": str(folder / "heldout.txt"), "split": "all"}},
    )


def test_recipe_seed_moves_neither_choice_nor_order() -> None:
    """Else two runs with other seeds would be judged on other prompts."""
    one, two = (heldout_prompts(recipe(seed=seed), 16) for seed in (0, 1))
    assert one == two
    assert len({prompt.prompt_id for prompt in one}) == 16


def test_fewer_prompts_are_the_first_of_more() -> None:
    """The measurement during training then looks at a part of the final one."""
    assert heldout_prompts(recipe(), 4) == heldout_prompts(recipe(), 16)[:4]


def test_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    """A sorted file must not turn the first prompts into all of one kind."""
    texts = [f"prompt {number}" for number in range(9)]
    forward = heldout_prompts(_with_files(tmp_path, ["x"], texts), 3)
    backward = heldout_prompts(_with_files(tmp_path, ["x"], texts[::-1]), 3)
    assert [prompt.text for prompt in forward] == [prompt.text for prompt in backward]


def test_prompt_that_is_also_trained_on_is_named(tmp_path: Path) -> None:
    """A leak makes every held-out number worthless, however far down the file it is."""
    leaky = _with_files(tmp_path, ["a", "the leak"], ["b", "c", "the leak"])
    with pytest.raises(ValueError, match=r"evaluate\.prompts: 1 held-out .* 'the leak'"):
        heldout_prompts(leaky, 1)


def test_metrics_are_means_and_leave_out_what_is_missing() -> None:
    found = measurement(["a"], reward={("a", 0): 1.0, ("a", 1): 0.0}, judge={("a", 1): 0.25})
    assert found.metrics() == {
        "heldout/reward/mean": 0.5,
        "heldout/reward/std": 0.5,
        "heldout/judge/mean": 0.25,
    }
    assert measurement(["a"], judge={}).metrics() == {}
