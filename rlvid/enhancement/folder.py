"""A trained rewriter on disk: an ordinary transformers folder, and how it is to be asked.

    <folder>/config.json, model.safetensors, tokenizer.json, ...   as `save_pretrained` writes them
             enhancer.json                                         settings, read strictly
             template.yaml, lexicon.yaml                           the files that they name

Whole: it needs neither the recipe nor the model that it was trained from.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from rlvid.config.base import Section
from rlvid.config.enhancement import (
    IntentConfig,
    LengthConfig,
    PromptEnhancementConfig,
    RewriterConfig,
)
from rlvid.enhancement import lexicon as lexicons
from rlvid.enhancement import template as templates
from rlvid.enhancement.intent import Drift, intent_drift
from rlvid.enhancement.language_model import LanguageModel, open_language_model
from rlvid.enhancement.lexicon import Lexicon, load_lexicon
from rlvid.enhancement.rewriter import Rewriter, open_rewriter
from rlvid.records import Prompt

SETTINGS = "enhancer.json"
_TEMPLATE, _LEXICON = "template.yaml", "lexicon.yaml"


class EnhancerSettings(Section):
    """What enhancer.json holds."""

    rewriter: RewriterConfig
    """`model` and `template` are of the run that wrote it, and are not read again."""
    length: LengthConfig
    intent: IntentConfig
    """`lexicon` likewise."""
    allows_unchanged: bool


@dataclass(frozen=True, slots=True)
class Enhancer:
    """A rewriter ready for use, and the guard of the user's words that it was trained with."""

    rewriter: Rewriter
    lexicon: Lexicon
    kinds: tuple[str, ...]

    def drift(self, prompt: Prompt) -> Drift:
        """Return what became of the user's wishes in the prompt's enhanced text."""
        assert prompt.enhanced_text is not None, "nothing drifts where nothing was rewritten"
        return intent_drift(prompt, prompt.enhanced_text, self.lexicon, self.kinds)


def save_enhancer(folder: Path, language: LanguageModel, config: PromptEnhancementConfig) -> None:
    """Write a rewriter with its settings; `folder` is there whole or not at all."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    language.model.save_pretrained(part)
    language.tokenizer.save_pretrained(part)
    rewriter, intent = config.rewriter, config.reward.intent
    settings = EnhancerSettings(
        rewriter=rewriter,
        length=config.reward.length,
        intent=intent,
        allows_unchanged=config.reward.allows_unchanged,
    )
    (part / SETTINGS).write_text(settings.model_dump_json(indent=1) + "\n")
    shutil.copyfile(_source(rewriter.template, templates.FOLDER), part / _TEMPLATE)
    shutil.copyfile(_source(intent.lexicon, lexicons.FOLDER), part / _LEXICON)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def load_enhancer(folder: Path, *, device: str = "cpu") -> Enhancer:
    """Open what `save_enhancer` wrote.

    Raises:
        ValueError: no enhancer there, or its settings do not fit.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise ValueError(
            f"enhancer: no {SETTINGS} in {str(folder)!r}: expected the folder that phase "
            "prompt_enhancement wrote, phases/*_prompt_enhancement/enhancer of its run"
        )
    try:
        settings = EnhancerSettings.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path}: not the settings of an enhancer: {error}") from error
    config = settings.rewriter.model_copy(
        update={"model": str(folder), "template": str(folder / _TEMPLATE)}
    )
    language = open_language_model(config)
    language.model.to(torch.device(device))
    rewriter = open_rewriter(
        language, config, settings.length, allows_unchanged=settings.allows_unchanged
    )
    lexicon = load_lexicon(str(folder / _LEXICON), settings.intent.synonyms)
    return Enhancer(rewriter, lexicon, settings.intent.kinds)


def _source(name: str, shipped: Path) -> Path:
    """Return the file that a section names: its own path, or one that ships."""
    return Path(name).expanduser() if name.endswith(".yaml") else shipped / f"{name}.yaml"
