"""Where prompts begin, and what writes, judges and filters them, as the recipe names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from rlvid.config import Recipe
from rlvid.config.data_engine import EnginePromptsConfig, LlmConfig
from rlvid.data.engine.embedding import Embedder, embed_words
from rlvid.data.engine.filters import PromptFilter
from rlvid.data.engine.plausibility import Plausible, in_tiny_world, take_all
from rlvid.data.engine.writers import GrammarWriter, PromptWriter
from rlvid.data.prompts import load_text_prompts
from rlvid.launch.data_engine.llm_client import LlmClient
from rlvid.launch.data_engine.llm_plausibility import llm_plausibility
from rlvid.launch.data_engine.llm_writer import LlmWriter
from rlvid.launch.heldout import heldout_prompts
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint
from rlvid.rewards.vllm.external import api_key, base_url
from rlvid.seeds import derive_seed

ALL_HELDOUT = 10**9
Endpoints = Callable[[str], Sequence[Endpoint]]
"""Where a server of the recipe answers now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptParts:
    """A writer and the filters of what it writes."""

    writer: PromptWriter
    keep_base: PromptFilter
    keep_long: PromptFilter
    llm: LlmClient | None
    """What writer and judge of plausibility ask; None where neither asks."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Return what was kept and dropped of either form, and what the model answered badly."""
        counts = {"base": self.keep_base.counts.to_json(), "long": self.keep_long.counts.to_json()}
        return counts if self.llm is None else {**counts, "llm": self.llm.counts()}


def broad_prompts(recipe: Recipe) -> tuple[Prompt, ...]:
    """Return the prompts on which weakness is looked for, in an order of the recipe's seed."""
    config = recipe.data_engine
    prompts = load_text_prompts(config.broad, who="data_engine.broad")
    order = sorted(
        prompts, key=lambda prompt: derive_seed(recipe.seed, prompt.prompt_id, "weakness")
    )
    return tuple(order[: config.weakness.num_prompts])


@contextmanager
def open_prompt_parts(recipe: Recipe, endpoints: Endpoints) -> Iterator[PromptParts]:
    """Open them, and close the connection to the language model whatever happens.

    Raises:
        ValueError: templates, a key or a package that the recipe names is not there.
    """
    config = recipe.data_engine.prompts
    llm = open_llm(config.llm, endpoints, seed=recipe.seed) if config.asks_llm else None
    try:
        keep = partial(
            PromptFilter,
            config,
            heldout=[prompt.text for prompt in heldout_prompts(recipe, ALL_HELDOUT)],
            embedder=embedder_of(recipe),
            plausible=plausible_of(config, llm),
        )
        writer = GrammarWriter(recipe.seed) if config.writer == "grammar" else LlmWriter(_open(llm))
        yield PromptParts(writer=writer, keep_base=keep(), keep_long=keep(), llm=llm)
    finally:
        if llm is not None:
            llm.close()


def open_llm(config: LlmConfig, endpoints: Endpoints, *, seed: int) -> LlmClient:
    """Return a client of the section's server, one of ours or somebody else's.

    Raises:
        ValueError: a key that is not set, or an address that is none.
    """
    if config.server:
        return LlmClient(config, partial(endpoints, config.server), seed=seed)
    key = api_key(config.api_key_env, where="data_engine.prompts.llm.api_key_env")
    url = base_url(config.url)
    one = Endpoint(url=url, model=config.model, model_digest=f"{config.model}@{url}", api_key=key)
    return LlmClient(config, lambda: [one], seed=seed)


def plausible_of(config: EnginePromptsConfig, llm: LlmClient | None) -> Plausible:
    """Return who judges whether a prompt could be filmed."""
    if config.plausibility == "llm":
        return llm_plausibility(_open(llm))
    return in_tiny_world if config.plausibility == "grammar" else take_all


def embedder_of(recipe: Recipe) -> Embedder:
    """Return the text embedder that the recipe names.

    Raises:
        ValueError: MiniLM is not installed; the message says how to get it.
    """
    if recipe.data_engine.prompts.embedder == "words":
        return embed_words
    from rlvid.rewards.specialists.sentences import load_sentence_encoder

    encoder = load_sentence_encoder("data_engine.prompts.embedder")
    return lambda texts: encoder.embed(texts).numpy()


def _open(llm: LlmClient | None) -> LlmClient:
    assert llm is not None, "`asks_llm` says who needs it"
    return llm
