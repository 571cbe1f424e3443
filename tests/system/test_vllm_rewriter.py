"""A rewriter's adapter in a real vLLM server, against the learner that published it; one server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from rlvid.config import Recipe
from rlvid.config.loader import check, default_values, lay_over
from rlvid.enhancement.rewriter import rewrite_seed
from rlvid.launch.enhancement.rewriting import SERVER, open_rewriting, rewriter_server
from rlvid.learners.enhancer import EnhancerLearner
from rlvid.learners.enhancer_settings import reward_settings
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint
from rlvid.rewards.vllm.server import VllmServer
from tests.unit.enhancement.conftest import make_model, make_tokenizer
from tests.unit.learners.conftest import one_rank

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("one_rank")]

__all__ = ["one_rank"]

PROMPTS = tuple(Prompt(prompt_id=text, text=text) for text in ("a red ball", "a blue box", "sea"))
SEEDS = [[rewrite_seed(0, prompt.prompt_id, 0, index) for index in (0, 1)] for prompt in PROMPTS]
ADVANTAGE = torch.tensor([[1.0, -1.0], [-0.5, 0.5], [0.2, -0.2]])
ALL = torch.ones(3, 2, dtype=torch.bool)
SECTION: dict[str, Any] = {
    "rewriter": {"max_new_tokens": 12, "template": "tiny_world", "temperature": 0.8},
    "sampler": {
        "kind": "vllm",
        "server": {"max_model_len": 512, "num_cpus": 1.0},
        "importance_cap": 2.0,
    },
    "reward": {"length": {"min_words": 3, "max_words": 20}},
    # Steps so large that the server would be seen to answer with the adapter before.
    "learner": {
        "zero_stage": 0,
        "micro_batch_rows": 2,
        "lora": {"rank": 2, "alpha": 4.0},
        "optimizer": {"learning_rate": 1.0e-1},
    },
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), tokenizer.eos_token_id, head_dim=32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tree = lay_over(
        default_values(Recipe), {"name": "served", "prompt_enhancement": SECTION}, Recipe
    )
    rewriter = {"prompt_enhancement": {"rewriter": {"model": str(folder)}}}
    return check(lay_over(tree, rewriter, Recipe))


@pytest.fixture(scope="module")
def endpoint(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    config = recipe.prompt_enhancement
    server = VllmServer(
        rewriter_server(config, config.rewriter.model),
        name=SERVER,
        api_key="a key",
        log_folder=tmp_path_factory.mktemp("logs"),
    )
    stops = threading.Event()
    try:
        server.start()
        while server.status.state == "starting":
            stops.wait(0.25)
            server.check()
        status = server.status
        assert status.state == "ready", status.detail
        yield Endpoint(
            url=status.url, model=SERVER, model_digest=status.model_digest, api_key="a key"
        )
    finally:
        server.stop()


def test_the_server_writes_with_the_weights_that_were_published_last(
    recipe: Recipe, endpoint: Endpoint, tmp_path: Path
) -> None:
    """Every step moves the adapter far; the server's log-probabilities stay the learner's."""
    learner: Any = EnhancerLearner(
        reward_settings(recipe, recipe.prompt_enhancement.rewriter.model)
    )
    start = recipe.prompt_enhancement.rewriter.model
    before = None
    with open_rewriting(recipe, start, learner, lambda name: (endpoint,), tmp_path) as rewriting:
        for step in range(3):
            rewrites = rewriting.rewrite(PROMPTS, SEEDS)
            if step == 0:
                again = rewriting.rewrite(PROMPTS, SEEDS)
                assert again == rewrites, "the same weights and seeds"
            metrics = learner.learn(rewrites, ADVANTAGE, ALL, step=step).metrics
            assert metrics["enhance/sampling_drift/max"] < 1e-4
            assert metrics["enhance/ratio/max_deviation"] == 0.0
            assert metrics["enhance/importance/mean"] == pytest.approx(1.0, abs=1e-4)
            assert rewrites != before
            before = rewrites
        assert rewriting.metrics() == {"enhance/asked_again/count": 0.0}
        # Answers of the adapter before the last step are refused, since it moved so far.
        with pytest.raises(ValueError, match="The sampler has other weights"):
            learner.learn(before, ADVANTAGE, ALL, step=3)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/tmp"}),
        ("/adapters", {"name": "x", "src": "/tmp"}),
        ("/invocations", {"prompt": [1], "max_tokens": 1}),
    ],
)
def test_no_path_loads_an_adapter_or_writes_without_the_key(
    endpoint: Endpoint, path: str, body: dict[str, Any]
) -> None:
    """vLLM alone guards /v1 and leaves the other two open."""
    with httpx.Client(base_url=endpoint.url, trust_env=False, timeout=60.0) as http:
        assert http.post(path, json=body).status_code == 401
        assert http.get("/health").status_code == 200
