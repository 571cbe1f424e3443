"""The recipe of GigaVideo-1 at its published size: it cannot run here; it is read and planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvid.config import Recipe
from rlvid.config.loader import find_recipe, load_recipe
from rlvid.launch.artifact_names import check_dataset
from rlvid.launch.cli_plan import print_plan
from rlvid.launch.demand import ClusterError, demanded
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.phases import estimate, misfits
from rlvid.launch.estimate.render import phase_lines
from rlvid.launch.estimate.sampling import num_rendered
from rlvid.launch.memory import sft_rows
from rlvid.launch.planner import plan
from rlvid.rewards.registry import open_scorer

NAME = "gigavideo_wan2.1_1.3b"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recipe:
    """Return it as on a machine without its models, where sizes are the nominal ones."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return load_recipe(NAME)


def test_settings_of_the_paper(recipe: Recipe) -> None:
    model, learner = recipe.model, recipe.sft.learner
    assert (model.num_frames, model.height, model.width, model.fps) == (81, 480, 832, 16)
    assert (learner.mode, learner.optimizer.learning_rate) == ("full", 1e-6)
    assert recipe.sft.batch_size == 4
    assert recipe.phases == ("data_engine", "sft", "evaluate")


def test_one_epoch(recipe: Recipe) -> None:
    probed, made = num_rendered(recipe)
    assert (probed, made) == (0, 9_504)
    assert recipe.sft.num_steps * recipe.sft.batch_size == made
    assert sft_rows(recipe) == recipe.sft.learner.num_ranks


def test_every_scorer_opens_with_its_settings(recipe: Recipe) -> None:
    """No server is asked for that; a question that is not in its file would be an error."""
    for scorer in (*recipe.rewards.scorers, *recipe.evaluate.judges):
        open_scorer(scorer, scorer.label)
        assert not scorer.server or scorer.server in recipe.rewards.servers
    labels = {scorer.label for scorer in recipe.rewards.scorers}
    assert {given.scorer for given in recipe.data_engine.weakness.given} <= labels
    assert recipe.data_engine.prompts.llm.server in recipe.rewards.servers
    check_dataset(recipe)


def test_judges_of_the_evaluation_are_of_another_model(recipe: Recipe) -> None:
    servers = recipe.rewards.servers
    trained = {servers[s.server].model for s in recipe.rewards.scorers if s.server}
    judged = {servers[j.server].model for j in recipe.evaluate.judges if j.server}
    assert trained
    assert judged
    assert not trained & judged


def test_cost_in_the_header_is_the_planners(recipe: Recipe) -> None:
    """Paste what `phase_lines` gives when settings or assumptions change."""
    planned = plan(recipe)
    lines = [f"#   {line}" for line in phase_lines(estimate(recipe, planned, Assumptions()))]
    text = find_recipe(NAME).read_text(encoding="utf-8").splitlines()
    first = text.index(lines[0])
    assert text[first : first + len(lines)] == lines


def test_it_fits_on_eight_gpus(recipe: Recipe) -> None:
    assert demanded(recipe)["GPU"] == 8
    assert misfits(plan(recipe), Assumptions()) == []


def test_plan_is_printed_before_the_machine_is_found_too_small(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = recipe.model_copy(
        update={"learner": recipe.learner.model_copy(update={"num_gpus": 512})}
    )
    with pytest.raises(ClusterError, match="GPUs together"):
        print_plan(joined, ["sampling_mfu=0.5"])
    printed = capsys.readouterr().out
    assert "9,504 clips x 50 steps x 2 (guidance)" in printed
    assert "sampling_mfu=0.5" in printed
    assert "sizes are those of Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in printed
