"""Prompt enhancement on real Ray, DeepSpeed, the tiny video model and a tiny language model: killed
in the middle it ends with the same enhancer, and evaluation shows the policy its rewrites.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rlvid.config import PromptsConfig
from rlvid.config.loader import dump_recipe, load_recipe
from rlvid.data.prompts import load_prompts
from rlvid.data.tiny_world.grammar import caption
from rlvid.launch.cli import app
from rlvid.launch.ledger import open_ledger
from rlvid.launch.local_disk import LEDGER
from rlvid.launch.run import artifacts_of
from rlvid.observability.recorder import read_rows
from tests.system.conftest import SMALL, merged
from tests.system.interrupted import finish, run_and_copy, start
from tests.unit.enhancement.conftest import make_model, make_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_STEPS = 3
KILLED_AFTER = 1
"""Steps whose row is written."""
SECTION: dict[str, Any] = {
    "phases": ["prompt_enhancement", "evaluate"],
    "prompt_enhancement": {
        "rewriter": {"max_new_tokens": 80, "template": "tiny_world"},
        "reward": {"length": {"min_words": 8, "max_words": 20}},
        "prompts": {"source": "tiny_world_vague", "limit": 4},
        "cold_start": {
            "num_steps": 90,
            "batch_size": 5,
            "optimizer": {"learning_rate": 1.0e-2},
        },
        "num_steps": NUM_STEPS,
        "prompts_per_step": 2,
        "group_size": 3,
        "clips_per_rewrite": 2,
        "num_denoising_steps": 4,
        "evaluate_every": NUM_STEPS,
        "evaluate_prompts": 3,
        "learner": {"mode": "full", "zero_stage": 0, "optimizer": {"learning_rate": 1.0e-3}},
        "checkpoint": {"every": 1},
    },
    "evaluate": {
        "prompts": {"source": "tiny_world_vague", "split": "heldout", "limit": 6},
        "enhance": "artifact",
        "stages": {},
    },
}
WITHIN_S = 600.0
TIMES = ("time/", "per_s", "/seconds")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a language model without any knowledge, and pairs to teach it by."""
    folder = tmp_path_factory.mktemp("recipe")
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), tokenizer.eos_token_id).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    wishes = load_prompts(PromptsConfig(source="tiny_world_vague", limit=4))
    wishes += load_prompts(PromptsConfig(source="tiny_world_vague", split="heldout", limit=6))
    pairs = folder / "pairs.jsonl"
    lines = [
        {"text": wish.text, "reason": "words", "prompt": caption(wish.facts)} for wish in wishes
    ]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = {"rewriter": {"model": str(folder / "llama")}, "cold_start": {"pairs": str(pairs)}}
    tree = merged(SMALL, SECTION, {"prompt_enhancement": own})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def _rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of the phase, without times."""
    path = run / "metrics.jsonl"
    rows = read_rows(path) if path.exists() else []
    return [
        {
            "step": row["step"],
            **{n: v for n, v in row["metrics"].items() if not any(t in n for t in TIMES)},
        }
        for row in rows
        if row["phase"] == "00_prompt_enhancement"
    ]


def _phase(run: Path) -> Path:
    return run / "phases" / "00_prompt_enhancement"


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An uninterrupted run, and its folder as a kill after the first step leaves it."""
    folder = tmp_path_factory.mktemp("whole")
    run, killed = folder / "run", folder / "killed"
    run_and_copy(
        recipe,
        run,
        killed,
        lambda: any(row["step"] >= KILLED_AFTER for row in _rows(run)),
        within_s=WITHIN_S,
    )
    return run, killed


@pytest.fixture(scope="module")
def whole(runs: tuple[Path, Path]) -> Path:
    return runs[0]


def test_the_cold_start_taught_the_form_and_the_rest_learned_from_clips(whole: Path) -> None:
    rows = _rows(whole)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows[1:]:
        assert row["enhance/malformed/frac"] < 1.0
        assert row["enhance/ratio/max_deviation"] == 0.0, "one update a batch"
        assert row["rewards/physics/missing_frac"] == 0.0
    assert sum(row["enhance/rows/count"] for row in rows[1:]) > 0
    assert rows[1]["enhance/kl/mean"] == 0.0
    assert rows[3]["enhance/kl/mean"] > 0.0
    assert "enhance/heldout_gain/mean" in rows[0]
    assert "enhance/heldout_gain/mean" in rows[3]


def test_every_group_is_accounted_for(whole: Path) -> None:
    """A malformed rewrite has none; every other has one, and the measurements theirs."""
    ledger = open_ledger(_phase(whole) / LEDGER)
    counts = ledger.counts()
    ledger.close()
    assert counts.is_balanced
    assert counts.in_flight == 0
    asked = sum(round(6 * (1 - row["enhance/malformed/frac"])) for row in _rows(whole)[1:])
    assert counts.dropped == asked + 3 * 3, "plain once, rewritten at the start and at the end"


def test_the_evaluation_shows_rewrites_and_keeps_the_users_words(whole: Path) -> None:
    artifacts = artifacts_of(whole)
    assert artifacts.enhancer == str(_phase(whole) / "enhancer")
    assert artifacts.evaluation is not None
    tree = json.loads(Path(artifacts.evaluation).read_text())
    told = tree["enhanced"]
    assert told["prompts"] == 4
    assert told["rewritten"] + sum(told["malformed"].values()) == 4
    shown = {pair["prompt"]: pair.get("enhanced_prompt") for pair in tree["pairs"]}
    vague = load_prompts(PromptsConfig(source="tiny_world_vague", split="heldout", limit=6))
    assert set(shown) <= {prompt.text for prompt in vague}
    assert sum(text is not None for text in shown.values()) == told["rewritten"]
    assert "rewritten prompts" in (whole / "report.html").read_text()
    # What the run has a column for is what was measured already: no clip is sampled for it.
    base, enhanced = tree["stages"]["columns"]
    assert (base["name"], enhanced["name"]) == ("base", "prompt_enhancement")
    assert enhanced["sets"]["full"]["enhanced"] == told
    [reward, *_] = tree["rows"]
    assert enhanced["sets"]["full"]["lines"]["reward"]["mean"] == pytest.approx(reward["after"])
    ledger = open_ledger(whole / "phases" / "01_evaluate" / LEDGER)
    assert ledger.counts().issued == 2 * 4
    ledger.close()


def test_the_command_rewrites_or_fails_but_passes_nothing_off_as_a_rewrite(whole: Path) -> None:
    wish = load_prompts(PromptsConfig(source="tiny_world_vague", limit=1))[0].text
    found = CliRunner().invoke(app, ["enhance", wish, "--enhancer", str(whole), "--tries", "8"])
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("reason: ")
    assert "\nprompt: " in found.stdout
    assert "\nintent: " in found.stdout


def test_killed_in_the_middle_it_ends_with_the_same_enhancer(runs: tuple[Path, Path]) -> None:
    whole, run = runs
    assert not (_phase(run) / "artifacts.json").exists()
    # The phase after it has nothing to resume.
    recipe = load_recipe(str(run / "recipe.yaml"))
    recipe = recipe.model_copy(update={"phases": ("prompt_enhancement",)})
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    finish(start(run / "recipe.yaml", run, "--resume"), run, within_s=WITHIN_S)
    assert _rows(run) == _rows(whole)
    names = ["enhancer/model.safetensors", f"heldout-{NUM_STEPS:06d}.json"]
    for name in names:
        digests = [
            hashlib.sha256((_phase(each) / name).read_bytes()).hexdigest() for each in (run, whole)
        ]
        assert digests[0] == digests[1], name
