"""The Wan TI2V adapter, beside what all families that hold a first frame do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlvid.models.tiny_families.wan import build_ti2v, tiny_ti2v
from rlvid.models.wan import WanModel
from rlvid.models.wan_ti2v import WanTextImageModel
from tests.unit.models.family_checks import CPU, FOLDERS, batch


def test_text_alone_is_the_text_to_video_model() -> None:
    model = tiny_ti2v()
    plain = WanModel(model._pipeline, device=CPU)
    inputs = batch(FOLDERS["wan_ti2v_text"], model)
    with torch.no_grad():
        assert torch.equal(model.velocity(*inputs), plain.velocity(*inputs))


def test_folder_without_expanded_timesteps_is_refused(tmp_path: Path) -> None:
    build_ti2v().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "expand_timesteps": False}))
    with pytest.raises(ValueError, match="has no expand_timesteps: expected true"):
        WanTextImageModel.load(tmp_path, device=CPU)
