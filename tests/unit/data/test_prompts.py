"""Prompt sets and the order of visits."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from rlvid.config.prompts import PromptsConfig
from rlvid.data.prompts import load_prompts, load_text_prompts, prompts_for_step
from rlvid.data.tiny_world import parse
from rlvid.seeds import prompt_id


def test_tiny_world_splits_are_disjoint_and_cover_it() -> None:
    train, heldout, both = (
        {prompt.prompt_id for prompt in load_prompts(PromptsConfig(split=split))}
        for split in ("train", "heldout", "all")
    )
    assert not train & heldout
    assert train | heldout == both
    assert len(both) == 540


def test_tiny_world_prompts_carry_their_facts_and_the_first_ones_are_varied() -> None:
    """`limit` takes the first; in product order they would all be red balls."""
    prompts = load_prompts(PromptsConfig(split="heldout", limit=16))
    assert len(prompts) == 16
    assert all(parse(prompt.text) == prompt.facts for prompt in prompts)
    assert len({prompt.facts["motion"] for prompt in prompts}) >= 4


def test_an_epoch_is_a_permutation_and_the_next_one_another() -> None:
    """Five prompts a step over 16 prompts: steps run over the ends of epochs."""
    prompts = load_prompts(PromptsConfig(limit=16))
    visits = [pair for step in range(16) for pair in prompts_for_step(prompts, 3, step, 5)]
    epochs = [visits[start : start + 16] for start in range(0, 80, 16)]
    for number, epoch in enumerate(epochs):
        assert {prompt.prompt_id for prompt, _ in epoch} == {item.prompt_id for item in prompts}
        assert {visit for _, visit in epoch} == {number}
    orders = [tuple(prompt.prompt_id for prompt, _ in epoch) for epoch in epochs]
    assert len(set(orders)) == len(orders)


def test_a_step_needs_no_earlier_step_and_depends_on_the_seed() -> None:
    prompts = load_prompts(PromptsConfig(limit=64))
    again = prompts_for_step(prompts, 0, 9, 4)
    assert again == prompts_for_step(prompts, 0, 9, 4)
    assert again != prompts_for_step(prompts, 1, 9, 4)


def test_text_file_gives_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a dog runs\n\n  a cat sleeps \n", encoding="utf-8")
    prompts = load_prompts(PromptsConfig(source=str(path), split="all"))
    assert [prompt.text for prompt in prompts] == ["a dog runs", "a cat sleeps"]
    assert prompts[0].prompt_id == prompt_id("a dog runs")


def test_jsonl_file_keeps_facts_and_enhanced_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"text": "a dog", "enhanced_text": "a brown dog", "facts": {"animal": "dog"}}\n',
        encoding="utf-8",
    )
    (prompt,) = load_prompts(PromptsConfig(source=str(path), split="all"))
    assert prompt.model_text == "a brown dog"
    assert prompt.facts == {"animal": "dog"}


def test_media_are_found_beside_the_file_and_tell_prompts_apart(tmp_path: Path) -> None:
    """One text with two pictures are two prompts; the same picture elsewhere is the same one."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    lines = [
        '{"text": "a dog"}',
        '{"text": "a dog", "media": {"first_frame": "0.png"}}',
        '{"text": "a dog", "media": {"first_frame": "1.png"}}',
        '{"text": "a dog", "media": {"last_frame": "1.png"}}',
    ]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = PromptsConfig(source=str(folder / "prompts.jsonl"), split="all")
    prompts = load_prompts(config)
    assert prompts[0].prompt_id == prompt_id("a dog")
    assert len({prompt.prompt_id for prompt in prompts}) == 4
    assert prompts[1].media == {"first_frame": str(folder / "0.png")}

    with pytest.raises(
        ValueError, match=r"distillation: .* has media \['first_frame'\]: expected t"
    ):
        load_text_prompts(config, who="distillation")

    folder.rename(tmp_path / "moved")
    moved = load_prompts(PromptsConfig(source=str(tmp_path / "moved/prompts.jsonl"), split="all"))
    assert [prompt.prompt_id for prompt in moved] == [prompt.prompt_id for prompt in prompts]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', r"a\.jsonl:2: text"),
        ("a.jsonl", '{"text": "a"}\nnot json\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"text": "a", "fact": {}}\n', r"a\.jsonl:1: wrong keys.*fact"),
        ("a.jsonl", '{"text": "a", "facts": {"n": 1}}\n', r"a\.jsonl:1: facts"),
        ("a.jsonl", '{"text": "a", "media": "b.png"}\n', r"a\.jsonl:1: media: expected an obj"),
        (
            "a.jsonl",
            '{"text": "a", "media": {"first_frame": "b.png"}}\n',
            r"a\.jsonl:1: media\.first_frame: no such file: .*/b\.png",
        ),
        ("a.txt", "a\nb\na\n", r"a\.txt:3: text given twice: already on line 1"),
        ("a.txt", "\n", "no prompts"),
        ("a.csv", "a\n", "unknown source"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_prompts(PromptsConfig(source=str(path), split="all"))


def test_a_missing_file_and_a_split_of_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    with pytest.raises(ValueError, match="no such file"):
        load_prompts(PromptsConfig(source=str(path), split="all"))
    path.write_text("a\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"prompts\.split.*expected 'all', got 'heldout'"):
        load_prompts(PromptsConfig(source=str(path), split="heldout"))
