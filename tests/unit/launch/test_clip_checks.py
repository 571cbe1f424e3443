"""Clips that do not divide are refused, clips unlike those trained on are warned of."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest

from rlvid.config import LearnerConfig, ModelConfig
from rlvid.launch.clip_checks import check_clip, outside_native
from rlvid.launch.model_size import latent_shape, read_model_size
from rlvid.models import MODELS

PUBLISHED = "~/models/Wan2.1-T2V-1.3B-Diffusers"
"""Planned without being there."""
NATIVE = {"path": PUBLISHED, "num_frames": 81, "height": 480, "width": 832}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_frames": 80}, "model.num_frames: expected a multiple of 4 plus 1, got 80. Take 77."),
        ({"height": 488}, "model.height: expected a multiple of 16, got 488."),
        ({"width": 840}, "model.width: expected a multiple of 16, got 840."),
    ],
)
def test_a_clip_that_does_not_divide_is_refused_as_the_model_does(
    setting: dict[str, int], message: str
) -> None:
    """Planned with a frame cut off, it would be refused by an actor, minutes later."""
    model = ModelConfig.model_validate({**NATIVE, **setting})
    for refuses in (check_clip, lambda model: read_model_size(model, LearnerConfig())):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            refuses(model)


def test_latents_of_a_clip_that_divides() -> None:
    assert latent_shape(ModelConfig.model_validate(NATIVE)) == (16, 21, 60, 104)
    assert latent_shape(ModelConfig()) == (16, 5, 4, 4)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({}, ""),
        ({"num_frames": 33, "height": 720, "width": 1280}, ""),
        ({"num_frames": 401}, "401 frames (at most 81) lie outside what wan was trained on"),
        ({"use": "cogvideox", "num_frames": 5}, "5 frames (at least 9 and at most 161) and height"),
        ({"height": 640}, "height x width 640x832 (480x832, 832x480, 720x1280, 1280x720) lie"),
        ({"path": "tiny", "height": 32, "width": 32}, ""),
        ({"use": "rlvid.models.pipeline_model:PipelineModel"}, ""),
    ],
)
def test_clips_unlike_those_trained_on_are_told_of(setting: dict[str, object], said: str) -> None:
    found = outside_native(ModelConfig.model_validate({**NATIVE, **setting}))
    assert found.startswith(f"model: {said}") if said else found == ""


def test_a_run_is_warned_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_clip(ModelConfig.model_validate({**NATIVE, "num_frames": 161}))
    [record] = caplog.records
    assert record.getMessage().startswith("model: 161 frames (at most 81)")


def test_to_know_a_family_takes_no_diffusers() -> None:
    """Its import takes longer than a plan."""
    code = (
        "import sys; from rlvid.models import MODELS; from rlvid.plugins import resolve\n"
        "for name in MODELS: resolve(name, MODELS, where='').NATIVE\n"
        "assert 'diffusers' not in sys.modules and 'transformers' not in sys.modules"
    )
    assert len(MODELS) > 10
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60.0)
