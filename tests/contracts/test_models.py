"""Every built-in model keeps the protocol, with the weights that ship."""

from __future__ import annotations

from rlvid.config import ModelConfig
from rlvid.models import load_model, model_folder
from rlvid.testing import check_model, tiny_model


def test_tiny_test_model_keeps_the_protocol() -> None:
    check_model(tiny_model())


def test_shipped_model_keeps_the_protocol_at_its_own_clip_size() -> None:
    """The default recipe uses this model at this size."""
    config = ModelConfig()
    check_model(
        load_model(config, device="cpu"),
        num_frames=config.num_frames,
        height=config.height,
        width=config.width,
    )


def test_shipped_pipeline_is_small() -> None:
    """It travels in the wheel and in the repository; the design allows about 12 MB."""
    files = [file for file in model_folder(ModelConfig()).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12e6
