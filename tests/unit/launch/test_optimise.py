"""`rlvid optimise` on the tiny policy, and what it writes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from rlvid.config import Recipe
from rlvid.config.inference import InferenceConfig, SearchSpace
from rlvid.config.inference_files import load_inference
from rlvid.inference.search import Bounds, Found, LeftOut, Point
from rlvid.launch.cli import app
from rlvid.launch.cli_optimise import HEADINGS, _show
from rlvid.launch.heldout import heldout_prompts
from rlvid.launch.optimise import (
    OptimiseSettings,
    open_judges,
    optimise_policy,
    table_rows,
    write_found,
)
from rlvid.models.policy import Policy

SPACE = """
attention: [null, flash]
step_cache: [{}, {kind: first_block, threshold: 1000.0}]
guidance_interval: [null]
quantise: [none]
batch_prompts: [1]
"""
SETTINGS = OptimiseSettings(bounds=Bounds(min_psnr_db=30.0, max_reward_loss=0.01))


def _point(config: InferenceConfig, speedup: float) -> Point:
    return Point(
        config=config,
        seconds=1.0 / speedup,
        speedup=speedup,
        speedup_range=(speedup, speedup),
        psnr_db=40.0 if speedup > 1.0 else 100.0,
        psnr_db_min=35.0,
        feature_distance=0.01,
        reward_change=-0.002,
    )


def test_artifact_is_the_chosen_setting_and_the_table_names_all(tmp_path: Path) -> None:
    plain, fast = _point(InferenceConfig(), 1.0), _point(InferenceConfig(vae="sliced"), 1.5)
    left_out = LeftOut(config=InferenceConfig(attention="flash"), reason="needs a GPU")
    found = Found(points=(plain, fast), left_out=(left_out,), chosen=fast)
    recipe = Recipe(name="optimise")
    path = write_found(tmp_path, found, recipe, Policy(model_path="tiny"), SETTINGS)
    assert load_inference(path) == fast.config
    tree = json.loads(path.read_text())
    assert [point["setting"] for point in tree["front"]] == ["vae sliced", "plain"]
    assert tree["settings"]["bounds"] == {"min_psnr_db": 30.0, "max_reward_loss": 0.01}
    table = (tmp_path / "optimised.md").read_text()
    assert "| vae sliced | 0.6667 | 1.50 | 1.50-1.50 | 40.0 | 0.0100 | -0.0020 | chosen |" in table
    assert "- attention flash: needs a GPU" in table
    assert [row[0] for row in table_rows(found)] == ["vae sliced", "plain"]


def test_rewards_are_those_of_the_recipe_on_frames_of_eight_bits() -> None:
    """As the pool scores them; another rounding would be a reward change of no setting's."""
    recipe = Recipe.model_validate(
        {"name": "optimise", "rewards": {"scorers": ({"use": "adherence", "name": "adherence"},)}}
    )
    prompts = heldout_prompts(recipe, 2)
    levels = torch.randint(255, (2, 17, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    clips = levels / 255.0
    judges = open_judges(recipe)
    assert judges.reward(clips, prompts) == judges.reward(clips + 0.001, prompts)
    assert judges.features(clips).shape == (2, 64)


def test_scorer_that_asks_a_server_is_refused() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "optimise",
            "rewards": {
                "scorers": ({"use": "vlm_judge", "name": "judge", "server": "judge"},),
                "servers": {"judge": {"urls": ("http://127.0.0.1:9",), "model": "judge"}},
            },
        }
    )
    with pytest.raises(ValueError, match="scorer 'judge' asks a model server, which only a run"):
        open_judges(recipe)


def test_search_measures_the_shipped_model() -> None:
    """Two steps of one prompt: the cache holds the first step's blocks for the second."""
    recipe = Recipe.model_validate({"name": "o", "evaluate": {"num_denoising_steps": 2}})
    seen: list[str] = []
    space = SearchSpace(
        attention=(None,),
        step_cache=SearchSpace().step_cache[:1],
        guidance_interval=(None, (0.95, 1.0)),
        quantise=("none",),
        batch_prompts=(1,),
    )
    settings = OptimiseSettings(
        num_prompts=1, num_seeds=1, repeats=1, bounds=Bounds(min_psnr_db=99.0, max_reward_loss=1.0)
    )
    found = optimise_policy(
        recipe,
        Policy(model_path="tiny"),
        space,
        settings,
        on_measured=lambda result: seen.append(result.config.describe()),
    )
    assert seen == ["plain", "guidance in [0.95, 1]"]
    assert found.points[1].psnr_db < 99.0
    assert found.points[1].feature_distance > 0.0
    assert found.chosen.config == InferenceConfig()


def test_figures_stand_whole_at_80_columns() -> None:
    """However long a setting is: it wraps in its own column, behind the figures."""
    many = InferenceConfig(vae="tiled", quantise="int8_weight_only", batch_prompts=4)
    long = _point(many.model_copy(update={"guidance_interval": (0.3, 1.0)}), 12.5)
    found = Found(points=(_point(InferenceConfig(), 1.0), long), left_out=(), chosen=long)
    console = Console(width=80, record=True, file=io.StringIO())
    _show(found, console)
    lines = console.export_text().splitlines()
    figures = "*   0.08 12.50 12.50-12.50  40.0 0.0100 -0.0020 guidance in [0.3, 1],"
    assert lines[2].rstrip() == figures
    assert lines[1].split() == list(HEADINGS[1:])
    assert max(len(line.rstrip()) for line in lines) <= 80


@pytest.mark.slow
def test_command_prints_the_table_and_writes_the_artifact(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    arguments = ["optimise", "tiny", "evaluate.num_denoising_steps=4", "--space", str(space)]
    arguments += ["--prompts", "2", "--seeds", "1", "--repeats", "1", "--out", str(tmp_path / "o")]
    answer = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"}, catch_exceptions=False)
    assert answer.exit_code == 0
    assert "first-block cache 1000" in answer.output
    assert "left out: attention flash: inference.attention: 'flash' is not available" in (
        answer.output
    )
    tree = json.loads((tmp_path / "o" / "optimised.json").read_text())
    assert len(tree["points"]) == 2
    assert tree["points"][1]["psnr_db"] < 100.0
    assert "| setting | s/clip |" in (tmp_path / "o" / "optimised.md").read_text()
