"""`rlvid sample --inference`: a clip by the setting that `rlvid optimise` wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rlvid.config import ModelConfig
from rlvid.config.errors import ConfigError
from rlvid.config.inference import InferenceConfig
from rlvid.data.video_files import read_mp4
from rlvid.launch.cli import app
from rlvid.launch.cli_sample import inference_for_sample
from rlvid.launch.sample import sample_clip
from rlvid.models.policy import Policy
from rlvid.models.student import StudentSampling
from rlvid.records import Prompt

TEXT = "a red ball falls"
SETTING = '{"inference": {"guidance_interval": [0.95, 1.0], "vae": "sliced"}}'


def test_clip_is_made_by_the_setting(tmp_path: Path) -> None:
    """Two steps, from sigma 1 and 0.75: the second is without guidance, so the clip is another."""
    setting, out = tmp_path / "optimised.json", tmp_path / "clip.mp4"
    setting.write_text(SETTING)
    arguments = ["sample", TEXT, "--steps", "2", "--inference", str(setting), "--out", str(out)]
    answer = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert answer.exit_code == 0
    assert "inference: guidance in [0.95, 1], vae sliced" in answer.output
    assert read_mp4(out)[0].shape[0] == 17


def test_default_setting_changes_no_bit() -> None:
    model = ModelConfig()

    def sampled(inference: InferenceConfig | None) -> torch.Tensor:
        policy = Policy(model_path="tiny")
        return sample_clip(
            Prompt(prompt_id="0", text=TEXT),
            policy,
            model,
            seed=0,
            num_denoising_steps=2,
            shift=3.0,
            guidance_scale=4.0,
            inference=inference,
        )

    plain = sampled(None)
    assert torch.equal(plain, sampled(InferenceConfig()))
    assert not torch.equal(plain, sampled(InferenceConfig(guidance_interval=(0.95, 1.0))))


def test_student_takes_what_leaves_its_latents_as_they_are(tmp_path: Path) -> None:
    setting, policy = tmp_path / "optimised.json", Policy(model_path=str(tmp_path))
    StudentSampling(sigmas=(1.0,)).save(tmp_path)
    setting.write_text('{"inference": {"slim_decoder": "slim"}}')
    assert inference_for_sample(setting, policy).slim_decoder == "slim"
    setting.write_text(SETTING)
    with pytest.raises(ValueError, match=r"is a distilled student: .*got 'guidance in \[0.95, 1\]"):
        inference_for_sample(setting, policy)


def test_file_without_a_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"points": []}')
    with pytest.raises(ConfigError, match="expected what rlvid optimise writes"):
        inference_for_sample(tmp_path / "x.json", Policy(model_path="tiny"))
