"""What of a rewriter is loaded where its weights are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvid.config.enhancement import RewriterConfig
from rlvid.enhancement.language_model import LanguageModel, open_language_model, open_tokens


@pytest.mark.parametrize("ends", [None, [2, 7]])
def test_the_tokens_alone_end_answers_as_the_whole_model_does(
    language: LanguageModel, tmp_path: Path, ends: list[int] | None
) -> None:
    """With a generation_config.json of its own, and without one."""
    if ends is not None:
        language.model.generation_config.eos_token_id = ends
    language.model.save_pretrained(tmp_path)
    language.tokenizer.save_pretrained(tmp_path)
    if ends is None:
        (tmp_path / "generation_config.json").unlink()
    config = RewriterConfig(model=str(tmp_path))
    whole, alone = open_language_model(config), open_tokens(config)
    assert (alone.end_ids, alone.pad_id) == (whole.end_ids, whole.pad_id)
    assert ends is None or alone.end_ids == (2, 7)
    assert alone.tokenizer.encode("a red ball") == whole.tokenizer.encode("a red ball")


def test_no_model_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rewriter\.model: no model in .*config\.json"):
        open_tokens(RewriterConfig(model=str(tmp_path)))
