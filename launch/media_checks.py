"""Pictures and clips beside a text: what each phase can be told, checked before any process starts.

grpo, evaluate, prompt_enhancement and distillation to a few-step student tell the model the media
of their prompts, dpo those of its pairs, and sft a clip's own frames. data_engine, the other stages
of distillation and the ladder of reward_model sample by texts alone: they refuse both media, which
would be left out unseen, and families that need some.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlvid.config import Recipe
from rlvid.data.pairs import PAIRS_FILE, pair_lines
from rlvid.data.prompts import load_prompts, load_text_prompts
from rlvid.launch.enhancement.checks import prompts_of
from rlvid.learners.training_set import is_dataset
from rlvid.media import check_length
from rlvid.models import MODELS
from rlvid.plugins import resolve
from rlvid.records import Prompt


def check_phase_media(recipe: Recipe) -> None:
    """Refuse phases that could not tell the model what it needs, or would drop what they are given.

    Raises:
        ValueError: names the recipe's path, the value and the way out.
    """
    for phase in _text_phases(recipe):
        _refuse_needs(recipe, f"phases: {phase} samples by texts alone")
    if "sft" in recipe.phases and is_dataset(recipe.sft.clips):
        _refuse_needs(recipe, f"sft.clips: the data set {recipe.sft.clips!r} is of texts alone")
    if "distillation" in recipe.phases:
        config = recipe.distillation
        prompts = config.prompts or recipe.prompts
        if config.tells_media:
            check_prompts_media(recipe, load_prompts(prompts), "distillation.prompts")
        else:
            load_text_prompts(prompts, who="distillation.prompts")
    if "dpo" in recipe.phases:
        _check_pairs(recipe)
    if "prompt_enhancement" in recipe.phases:
        check_prompts_media(recipe, load_prompts(prompts_of(recipe)), "prompt_enhancement.prompts")


def check_prompts_media(recipe: Recipe, prompts: Sequence[Prompt], where: str) -> None:
    """Refuse media of which the family knows nothing, prompts without what it needs, and clips of
    another length than the video's.

    A family's class says what all its models need; what one of them needs besides is known when it
    is loaded (`rlvid.flow.prompt_condition`).
    """
    takes_any = hasattr(_family(recipe), "encode_media")
    required = _required(recipe)
    for prompt in prompts:
        if required - set(prompt.media) or (prompt.media and not takes_any):
            expected = sorted(required) if takes_any else "none"
            raise ValueError(
                f"{where}: prompt {prompt.text!r} has media {sorted(prompt.media)}: model.use "
                f"{recipe.model.use!r} expects {expected}. Name them under 'media' in a .jsonl "
                "file, or set model.use and model.path to another family."
            )
        for name, path in prompt.media.items():
            try:
                check_length(name, path, recipe.model.num_frames)
            except ValueError as error:
                raise ValueError(f"{where}: prompt {prompt.text!r}: media.{error}") from error


def _text_phases(recipe: Recipe) -> list[str]:
    """Return the phases of the recipe that sample the model, and know no media."""
    named = [name for name in ("data_engine",) if name in recipe.phases]
    if "distillation" in recipe.phases and not recipe.distillation.tells_media:
        named.append("distillation")
    weak = recipe.reward_model.pairs
    samples = any(rung.source == "policy" for rung in weak.weak.ladder) and weak.weak.ladder_pairs
    if "reward_model" in recipe.phases and weak.source == "weak" and samples:
        named.append("reward_model")
    return named


def _refuse_needs(recipe: Recipe, what: str) -> None:
    if required := _required(recipe):
        raise ValueError(
            f"{what}, and model.use {recipe.model.use!r} needs {sorted(required)} with each: "
            "expected a text-to-video family. Take one, or leave this out."
        )


def _check_pairs(recipe: Recipe) -> None:
    """Refuse stored pairs without the media that the family needs, if the pairs are there yet."""
    pairs = Path(recipe.dpo.pairs).expanduser()
    if is_dataset(recipe.dpo.pairs):
        _refuse_needs(recipe, f"dpo.pairs: the data set {recipe.dpo.pairs!r} is of texts alone")
    elif (pairs / PAIRS_FILE).is_file():
        prompts = [prompt for _, prompt, _ in pair_lines(pairs)]
        check_prompts_media(recipe, prompts, "dpo.pairs")


def _family(recipe: Recipe) -> object:
    return resolve(recipe.model.use, MODELS, where="model.use")


def _required(recipe: Recipe) -> frozenset[str]:
    required: frozenset[str] = getattr(_family(recipe), "required_media", frozenset())
    return required
