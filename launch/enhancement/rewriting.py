"""Who writes the rewrites of a step: the learner's ranks, or a server that is kept up beside them.

transformers   learner.rewrite
vllm           learner.publish_adapter --> server --> tokens and log-probabilities
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlvid.config import Recipe
from rlvid.config.enhancement import PromptEnhancementConfig, RewriterConfig
from rlvid.config.rewards import ServerConfig
from rlvid.enhancement.language_model import language_model_folder, open_tokens
from rlvid.enhancement.rewriter import Rewrite, Rewriter
from rlvid.enhancement.template import load_template
from rlvid.launch.enhancement.served_sampler import ServedSampler
from rlvid.learners.enhancer_group import EnhancerGroup
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint

SERVER = "rewriter"
"""The server's name among those of the reward pool, which starts and watches it."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for max_lora_rank."""
PLAIN_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""Only the server's supervisor chats, to see whether it answers; a model may have no template."""


class Rewriting(Protocol):
    """Draws rewrites with the learner's present weights."""

    def rewrite(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]
    ) -> list[list[Rewrite]]:
        """Return rewrites [P][G] of the prompts, one for each of the seeds [P][G]."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return what happened since this was called last."""
        ...


@dataclass(frozen=True, slots=True)
class RankRewriting:
    """By the ranks that learn."""

    learner: EnhancerGroup

    def rewrite(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]
    ) -> list[list[Rewrite]]:
        return self.learner.rewrite(prompts, seeds)

    def metrics(self) -> dict[str, float]:
        return {}


@dataclass(slots=True)
class ServedRewriting:
    """By a server, which is given the adapter before every draw."""

    learner: EnhancerGroup
    sampler: ServedSampler
    rewriter: Rewriter
    folder: Path
    """Where the adapter is handed over; servers on other nodes must see it too."""
    _num_told: int = 0

    def rewrite(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]
    ) -> list[list[Rewrite]]:
        self.sampler.use(self.learner.publish_adapter(self.folder))
        return self.rewriter.rewrite(prompts, seeds)

    def metrics(self) -> dict[str, float]:
        before, self._num_told = self._num_told, self.sampler.num_asked_again
        return {"enhance/asked_again/count": float(self._num_told - before)}


@contextmanager
def open_rewriting(
    recipe: Recipe,
    start: str,
    learner: EnhancerGroup,
    endpoints: Callable[[str], Sequence[Endpoint]],
    folder: Path,
) -> Iterator[Rewriting]:
    """Give what the recipe's `sampler` asks for.

    Args:
        start: the language model that training starts from, which a server has under the adapter.
        endpoints: of a server of the pool, by its name.
        folder: for adapters on their way to the server.
    """
    config = recipe.prompt_enhancement
    if config.sampler.kind == "transformers":
        yield RankRewriting(learner)
        return
    tokens = open_tokens(_started_from(config.rewriter, start))
    sampler = ServedSampler(config.sampler, lambda: endpoints(SERVER), end_ids=tokens.end_ids)
    rewriter = Rewriter(
        tokens.tokenizer,
        sampler,
        load_template(config.rewriter.template),
        config.rewriter,
        config.reward.length,
        allows_unchanged=config.reward.allows_unchanged,
    )
    try:
        yield ServedRewriting(learner, sampler, rewriter, folder)
    finally:
        sampler.close()


def with_rewriter_server(recipe: Recipe, start: str) -> Recipe:
    """Return the recipe with the rewriter's server in the pool, where its `sampler` asks for one.

    Args:
        start: the language model that it serves.
    """
    config = recipe.prompt_enhancement
    if config.sampler.kind == "transformers":
        return recipe
    servers = {**recipe.rewards.servers, SERVER: rewriter_server(config, start)}
    rewards = recipe.rewards.model_copy(update={"servers": servers})
    return recipe.model_copy(update={"rewards": rewards})


def rewriter_server(config: PromptEnhancementConfig, start: str) -> ServerConfig:
    """Return the entry of a server that takes adapters of the learner's rank while it runs."""
    server = config.sampler.server
    rank = config.learner.lora.rank
    engine_args = {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": next((r for r in LORA_RANKS if r >= rank), rank),
        # At the temperature of the request, as the learner scores them.
        "logprobs_mode": "processed_logprobs",
        "chat_template": PLAIN_CHAT,
    }
    return server.model_copy(
        update={
            "model": str(language_model_folder(_started_from(config.rewriter, start))),
            "dtype": config.rewriter.dtype,
            "max_images": 0,
            "max_videos": 0,
            "engine_args": {**engine_args, **server.engine_args},
            "env": {**server.env, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
        }
    )


def _started_from(rewriter: RewriterConfig, start: str) -> RewriterConfig:
    return rewriter.model_copy(update={"model": start})
