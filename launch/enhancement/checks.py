"""What phase prompt_enhancement needs, looked for before any process starts."""

from __future__ import annotations

import sys

from rlvid.config import PromptsConfig, Recipe
from rlvid.data.prompts import load_prompts
from rlvid.enhancement.cold_start import open_lessons
from rlvid.enhancement.language_model import check_language_model
from rlvid.enhancement.lexicon import load_lexicon
from rlvid.enhancement.template import load_template
from rlvid.launch.enhancement.rewriting import SERVER
from rlvid.launch.heldout import check_enough
from rlvid.rewards.vllm.command import check_interpreter


def prompts_of(recipe: Recipe) -> PromptsConfig:
    """Return where the user's prompts come from that the rewriter is trained on."""
    return recipe.prompt_enhancement.prompts or recipe.prompts


def trained_on_own_prompts(recipe: Recipe) -> Recipe:
    """Return the recipe with the phase's prompts in place of its own."""
    return recipe.model_copy(update={"prompts": prompts_of(recipe)})


def check_enhancement(recipe: Recipe) -> None:
    """Refuse names that the phase would look for in vain.

    Raises:
        ValueError: names the recipe's path, the value and the way out.
    """
    config = recipe.prompt_enhancement
    check_language_model(config.rewriter)
    load_template(config.rewriter.template)
    load_lexicon(config.reward.intent.lexicon, config.reward.intent.synonyms)
    load_prompts(prompts_of(recipe))
    if config.evaluate_every:
        where = "prompt_enhancement.evaluate_prompts"
        check_enough(trained_on_own_prompts(recipe), config.evaluate_prompts, where)
    if config.sampler.kind == "vllm":
        _check_server(recipe)
    if config.cold_start.num_steps:
        open_lessons(config.cold_start, seed=recipe.seed, allows_unchanged=False)


def _check_server(recipe: Recipe) -> None:
    """Refuse a server that could not be started, or would take another's name."""
    if SERVER in recipe.rewards.servers:
        raise ValueError(
            f"rewards.servers: {SERVER!r} is the server of prompt_enhancement.sampler; give this "
            "one another name"
        )
    server = recipe.prompt_enhancement.sampler.server
    check_interpreter(server.python or sys.executable, "prompt_enhancement.sampler.server")
