"""Of every family, the levels that a driver plans with are those that the model itself gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rlvid.config import ModelConfig, Recipe, RolloutConfig
from rlvid.flow.causal_ode import ode_schedule
from rlvid.flow.few_step import student_sigmas
from rlvid.flow.sigmas import LevelTable, shifted_sigmas
from rlvid.launch.groups import pinned_task, training_task
from rlvid.models import model_folder
from rlvid.models.noise_levels import TABLE_STEPS, sampling_sigmas, training_shift
from rlvid.models.wan import WanModel
from rlvid.records import Prompt
from tests.unit.models.family_checks import FAMILIES, build

PROMPT = Prompt(prompt_id="ball", text="a red ball")


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_plan_has_the_levels_of_the_model(name: str, tmp_path: Path) -> None:
    """The folder holds no weights here, so nobody can have loaded them."""
    family = FAMILIES[name]
    model = build(family)
    model.save(str(tmp_path))
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    num_frames, height, width = family.clip
    config = ModelConfig(
        path=str(tmp_path), use=family.use, num_frames=num_frames, height=height, width=width
    )
    recipe = Recipe(name="levels", model=config, rollout=RolloutConfig(num_denoising_steps=6))
    training = training_task(recipe, PROMPT, visit=0, step=0, position=0)
    pinned = pinned_task(recipe, PROMPT, label="a", position=0, num_seeds=1)
    assert training.plan.sigmas == model.sigmas(6, *family.clip)
    assert pinned.plan.sigmas == model.sigmas(recipe.evaluate.num_denoising_steps, *family.clip)
    assert training.plan.noise.first_sigma == training.plan.sigmas[1]


@pytest.fixture
def wan(tmp_path: Path) -> ModelConfig:
    """The shipped model as a folder of the user's."""
    shutil.copytree(model_folder(ModelConfig()), tmp_path / "wan")
    return ModelConfig(path=str(tmp_path / "wan"))


def test_number_overrides_the_scheduler(wan: ModelConfig) -> None:
    own = sampling_sigmas(None, wan, 5)
    model = WanModel.load(wan.path, device=torch.device("cpu"))
    assert own == model.sigmas(5, wan.num_frames, wan.height, wan.width)
    assert sampling_sigmas(7.0, wan, 5) == shifted_sigmas(5, 7.0) != own
    assert training_shift(7.0, wan) == 7.0


def test_shipped_model_keeps_shift_3() -> None:
    """Its figures, and the runs that go on, are of those levels."""
    assert sampling_sigmas(None, ModelConfig(), 10) == shifted_sigmas(10, 3.0)
    assert training_shift(None, ModelConfig()) == 3.0


def test_training_draws_the_levels_that_sampling_visits(wan: ModelConfig) -> None:
    table = training_shift(None, wan)
    assert isinstance(table, LevelTable)
    assert (table.levels[0], table.levels[-1], len(table.levels)) == (0.0, 1.0, TABLE_STEPS + 1)
    u = torch.linspace(0.0, 1.0, 101)
    drawn = table.at(u)
    assert bool((drawn.diff() > 0).all())
    torch.testing.assert_close(drawn, 3 * u / (1 + 2 * u), rtol=0.0, atol=0.01)


def test_model_that_is_no_flow_takes_no_number(wan: ModelConfig) -> None:
    path = Path(wan.path) / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(
        ValueError, match=r"rollout\.shift: .* 'v_prediction'.*expected null, got 3"
    ):
        sampling_sigmas(3.0, wan, 5)
    with pytest.raises(ValueError, match=r"rollout\.shift: "):
        training_shift(3.0, wan)


def test_family_that_says_no_levels_needs_a_number(wan: ModelConfig) -> None:
    foreign = wan.model_copy(update={"use": "rlvid.models.video_vae:VideoVae"})
    with pytest.raises(ValueError, match=r"rollout\.shift: null .*VideoVae.*expected a number"):
        sampling_sigmas(None, foreign, 5)


def test_levels_of_a_student_lie_on_the_table(wan: ModelConfig) -> None:
    """It starts from pure noise, and its teacher's trajectory visits each of its levels."""
    table = training_shift(None, wan)
    levels = student_sigmas((1.0, 0.75, 0.5, 0.25), table)
    assert levels[0] == 1.0
    assert levels[2] == pytest.approx(0.75, abs=2e-3)  # 1/2 at shift 3
    schedule = ode_schedule(levels, 48, table)
    assert set(levels) <= set(schedule)
    assert (schedule[0], schedule[-1], len(schedule)) == (1.0, 0.0, 49)
