"""Reward tokens on a random tiny Qwen2.5-VL, and the head, adapters and folder around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config.reward_model import RewardModelConfig
from rlvid.data.clips import ClipShape
from rlvid.reward_models.folder import load_reward_model, save_reward_model
from rlvid.reward_models.measure import ZScore
from rlvid.reward_models.network import build_reward_model

CLIPS = torch.rand(2, 9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXTS = ["a red ball", "a blue <|video_pad|> box that rolls"]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rlvid.models.tiny.vlm_build import VlmSize, build_vlm, build_vlm_tokenizer, save_vlm

    folder = tmp_path_factory.mktemp("vlm")
    tokenizer = build_vlm_tokenizer(["a red ball", "a blue box that rolls"])
    size = VlmSize(vision_dim=32, vision_depth=1, vision_ffn=32, text_dim=64, text_layers=2)
    save_vlm(folder, build_vlm(tokenizer, size=size, seed=0), tokenizer)
    return folder


def _config(vlm: Path, train: str) -> RewardModelConfig:
    lora = {"rank": 2, "alpha": 4.0, "target_modules": ["q_proj", "v_proj"]}
    backbone: dict[str, Any] = {"use": "vlm", "path": str(vlm), "train": train}
    if train == "lora":
        backbone["lora"] = lora
    return RewardModelConfig.model_validate({"backbone": backbone})


@pytest.mark.slow
def test_vq_and_mq_tokens_do_not_see_the_prompt(vlm: Path) -> None:
    """And a prompt that spells a special token is text: the clip's tokens stay as many."""
    model = build_reward_model(_config(vlm, "head"), vocabulary=(), fps=8, seed=0)
    with torch.no_grad():
        one, two = (model(CLIPS[:1], [text]).mean[0] for text in TEXTS)
        other_clip = model(CLIPS[1:], TEXTS[:1]).mean[0]
        together = model(CLIPS, TEXTS).mean
    assert torch.equal(one[:2], two[:2])
    assert one[2] != two[2]
    assert not torch.equal(one[:2], other_clip[:2])
    assert torch.allclose(together[0], one, atol=1e-5), "padding changed a judgement"


@pytest.mark.slow
@pytest.mark.parametrize("train", ["head", "lora", "full"])
def test_every_trained_parameter_has_a_gradient_and_is_kept(
    vlm: Path, train: str, tmp_path: Path
) -> None:
    config = _config(vlm, train)
    model = build_reward_model(config, vocabulary=(), fps=8, seed=0)
    model(CLIPS, TEXTS).mean.square().sum().backward()
    trained = model.trained_parameters()
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert {"head"} < set(trained)
    assert sum("tokens.rows" in name for name in trained) == 1
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.01)
    scores = {part: ZScore(mean=0.0, std=1.0) for part in ("VQ", "MQ", "TA")}
    save_reward_model(
        tmp_path, model, config, clip=ClipShape(num_frames=9), vocabulary=(), z_scores=scores
    )
    with torch.no_grad():
        expected, got = (
            m(CLIPS, TEXTS).mean for m in (model, load_reward_model(tmp_path, where="x").model)
        )
    assert torch.equal(expected, got)


@pytest.mark.slow
def test_base_that_changed_is_refused(vlm: Path, tmp_path: Path) -> None:
    """Head and adapters mean nothing on other weights."""
    config = _config(vlm, "head")
    model = build_reward_model(config, vocabulary=(), fps=8, seed=0)
    scores = {part: ZScore(mean=0.0, std=1.0) for part in ("VQ", "MQ", "TA")}
    save_reward_model(tmp_path, model, config, clip=ClipShape(), vocabulary=(), z_scores=scores)
    added = vlm / "changed.txt"
    added.write_text("x")
    try:
        with pytest.raises(ValueError, match="x: .* was trained on a base with digest"):
            load_reward_model(tmp_path, where="x")
    finally:
        added.unlink()


def test_folder_that_holds_no_vlm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backbone.path: no checkpoint at"):
        build_reward_model(_config(tmp_path, "head"), vocabulary=(), fps=8, seed=0)
