"""`rlvid slim-decoder` on the shipped model, and what uses its folder: search, samples, streams."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rlvid.config import ModelConfig, Recipe
from rlvid.config.inference import InferenceConfig, SearchSpace
from rlvid.inference.search import Bounds, LeftOut, Point
from rlvid.inference.slim_decoder import SlimDecoder, SlimShape
from rlvid.inference.slim_folder import save_slim_decoder, vae_of
from rlvid.launch.cli import app
from rlvid.launch.optimise import OptimiseSettings, optimise_policy
from rlvid.launch.sample import open_stream, sample_student
from rlvid.launch.slim_decoder import training_prompts
from rlvid.models import load_model
from rlvid.models.causal_layout import BlockLayout
from rlvid.models.policy import Policy
from rlvid.models.student import StudentSampling
from rlvid.models.tiny import pipeline_folder

TEXT = "a red ball falls"


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> InferenceConfig:
    """A random decoder of the shipped model's VAE, as a setting."""
    folder = tmp_path_factory.mktemp("slim")
    shape = SlimShape(channels=16, temporal=4, spatial=8, width=4, num_blocks=1)
    save_slim_decoder(folder, SlimDecoder(shape), vae=vae_of(load_model(ModelConfig())), about={})
    return InferenceConfig(slim_decoder=str(folder))


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """The shipped model in the folder of a causal student of one step."""
    folder = tmp_path_factory.mktemp("causal") / "policy"
    shutil.copytree(pipeline_folder(), folder)
    StudentSampling(sigmas=(1.0,), layout=BlockLayout(frames_per_block=1)).save(folder)
    return Policy(model_path=str(folder))


def test_command_trains_measures_and_writes_what_optimise_tries(tmp_path: Path) -> None:
    """Of a handful of steps: that it learns is `test_slim_training`'s, how far the bench's."""
    few, folder = ["evaluate.num_denoising_steps=1"], tmp_path / "slim"
    sizes = ["--clips", "3", "--heldout", "1", "--at-once", "2", "--steps", "2", "--width", "4"]
    runner, out = CliRunner(), tmp_path / "optimised"
    made = runner.invoke(
        app,
        ["slim-decoder", "tiny", *few, *sizes, "--out", str(folder)],
        catch_exceptions=False,
    )
    assert made.exit_code == 0
    assert "held-out PSNR" in made.output
    about = json.loads((folder / "slim_decoder.json").read_text())["about"]
    assert about["settings"]["num_clips"] == 3
    assert about["heldout"]["psnr_db"] >= about["heldout"]["psnr_db_min"] > 0.0
    space = tmp_path / "space.yaml"
    space.write_text(
        "attention: [null]\nstep_cache: [{}]\nguidance_interval: [null]\nquantise: [none]\n"
        "batch_prompts: [1]\n"
    )
    asked = ["--prompts", "1", "--seeds", "1", "--repeats", "1", "--min-psnr", "0"]
    asked += ["--max-reward-loss", "1", "--space", str(space), "--out", str(out)]
    found = runner.invoke(
        app,
        ["optimise", "tiny", *few, *asked, "--slim-decoder", str(folder)],
        catch_exceptions=False,
    )
    assert found.exit_code == 0
    assert "slim decoder" in found.output
    [_, point] = json.loads((out / "optimised.json").read_text())["points"]
    assert point["config"]["slim_decoder"] == str(folder)
    assert 0.0 < point["psnr_db"] < 100.0


def test_student_is_measured_as_itself_and_only_its_decoding_is_changed(
    slim: InferenceConfig, causal: Policy
) -> None:
    recipe = Recipe.model_validate({"name": "o", "model": {"num_frames": 5}})
    space = SearchSpace(
        attention=(None,),
        step_cache=SearchSpace().step_cache[:1],
        guidance_interval=(None, (0.5, 1.0)),
        quantise=("none",),
        slim_decoder=(None, slim.slim_decoder),
        batch_prompts=(1,),
    )
    seen: list[Point | LeftOut] = []
    settings = OptimiseSettings(
        num_prompts=1, num_seeds=1, repeats=1, bounds=Bounds(min_psnr_db=99.0, max_reward_loss=1.0)
    )
    optimise_policy(recipe, causal, space, settings, on_measured=seen.append)
    plain, interval, slimmed = seen
    assert isinstance(plain, Point)
    assert isinstance(interval, LeftOut)
    assert "a distilled student is sampled as it was trained" in interval.reason
    assert isinstance(slimmed, Point)
    assert slimmed.config == slim
    assert slimmed.psnr_db < plain.psnr_db


def test_streamed_student_is_the_whole_one_decoded_slim(
    slim: InferenceConfig, causal: Policy
) -> None:
    model = ModelConfig(num_frames=9)
    whole = sample_student(TEXT, causal, model, seed=1, inference=slim)
    parts = list(open_stream(TEXT, causal, model, seed=1, num_frames=13, inference=slim))
    assert [len(part.frames) for part in parts] == [1, 4, 4, 4]
    streamed = torch.cat([part.frames for part in parts])
    torch.testing.assert_close(streamed[:9], whole, rtol=0.0, atol=1e-5)
    by_vae = sample_student(TEXT, causal, model, seed=1)
    assert not torch.allclose(whole, by_vae, atol=1e-2)


def test_few_prompts_give_several_clips_each(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball falls\na blue box slides\n")
    recipe = Recipe.model_validate({"name": "o", "prompts": {"source": str(path), "split": "all"}})
    prompts, num_seeds = training_prompts(recipe, 5)
    assert (len(prompts), num_seeds) == (2, 3)
    assert len(training_prompts(Recipe(name="o"), 5)[0]) == 5
