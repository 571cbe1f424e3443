"""`rlvid enhance`: what is printed as a rewrite, and what never is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rlvid.config.enhancement import LengthConfig, PromptEnhancementConfig, TokenGrpoConfig
from rlvid.enhancement.answer import Enhanced
from rlvid.enhancement.cold_start import Lesson, lesson_batch
from rlvid.enhancement.folder import load_enhancer, save_enhancer
from rlvid.enhancement.language_model import language_model
from rlvid.enhancement.scoring import sequence_log_prob
from rlvid.enhancement.template import load_template
from rlvid.launch.cli import app
from rlvid.launch.cli_enhance import MALFORMED_STATUS
from tests.unit.enhancement.conftest import make_model, make_tokenizer

LESSONS = (
    Lesson(text="a red ball", answer=Enhanced(reason="light", prompt="a red ball in the sun")),
    Lesson(text="two dogs", answer=Enhanced(reason="place", prompt="a blue box on sand")),
)
CONFIG = PromptEnhancementConfig.model_validate(
    {"rewriter": {"model": "unused", "max_new_tokens": 64, "temperature": 0.1}}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An enhancer that knows two prompts by heart, one of them wrongly."""
    tokenizer = make_tokenizer()
    language = language_model(make_model(len(tokenizer), tokenizer.eos_token_id), tokenizer)
    template, length = load_template("default"), LengthConfig()
    batch = lesson_batch(LESSONS, language, template, length, TokenGrpoConfig())
    optimizer = torch.optim.Adam(language.model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        policy = sequence_log_prob(language.model, batch, temperature=1.0)
        (-policy[batch.answer_mask].mean()).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("run") / "enhancer"
    save_enhancer(folder, language, CONFIG)
    return folder


def _run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["enhance", *map(str, arguments)])


def test_reason_prompt_and_verdict(folder: Path) -> None:
    found = _run("a red ball", "--enhancer", folder)
    assert found.exit_code == 0
    assert found.stdout.splitlines() == [
        "reason: light",
        "prompt: a red ball in the sun",
        "intent: kept: object ball, colour red of ball",
    ]


def test_drift_is_said(folder: Path) -> None:
    found = _run("two dogs", "--enhancer", folder)
    assert found.exit_code == 0
    assert "drifted: object dog is gone; count 2 of dog is gone" in found.stdout


def test_a_malformed_answer_is_no_rewrite(folder: Path) -> None:
    found = _run("something never seen before, of another kind", "--enhancer", folder, "--tries", 2)
    assert found.exit_code == MALFORMED_STATUS
    assert found.stdout == ""
    assert "no well-formed answer in 2" in found.stderr


def test_what_is_no_enhancer_is_refused(tmp_path: Path) -> None:
    found = _run("a red ball", "--enhancer", tmp_path)
    assert isinstance(found.exception, ValueError)
    assert "no enhancer.json" in str(found.exception)
    empty = _run(" ", "--enhancer", tmp_path)
    assert "the prompt is empty" in str(empty.exception)


def test_settings_of_another_kind_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "enhancer.json").write_text('{"rewriter": {}, "odd": 1}')
    with pytest.raises(ValueError, match="not the settings of an enhancer"):
        load_enhancer(tmp_path)


def test_the_folder_is_there_whole_or_not_at_all(folder: Path) -> None:
    assert not folder.with_name("enhancer.part").exists()
    names = {path.name for path in folder.iterdir()}
    assert {"enhancer.json", "template.yaml", "lexicon.yaml", "model.safetensors"} <= names
