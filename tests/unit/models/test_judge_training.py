"""The network of the independent judge and its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlvid.models.tiny.attribute_network import AttributeNetwork
from rlvid.models.tiny.judge_training import JudgeTraining, accuracy, augment, train_judge

ATTRIBUTES = {"colour": ("red", "blue"), "direction": ("left", "right")}


def clips_of(count: int) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """A square that is red or blue and moves to the left or right, [N, 17, 3, 32, 32] uint8."""
    clips = torch.full((count, 17, 3, 32, 32), 200, dtype=torch.uint8)
    facts = []
    for index, clip in enumerate(clips):
        colour, direction = index % 2, index // 2 % 2
        for frame in range(17):
            left = 4 + frame if direction else 20 - frame
            clip[frame, :, 10 + index % 5 : 18 + index % 5, left : left + 8] = 30
            clip[frame, 2 * colour, 10 + index % 5 : 18 + index % 5, left : left + 8] = 220
        facts.append(
            {
                "colour": ATTRIBUTES["colour"][colour],
                "direction": ATTRIBUTES["direction"][direction],
            }
        )
    return clips, facts


def test_network_learns_colour_and_direction() -> None:
    """Direction is in the order of the frames alone, so pooling must not throw time away."""
    clips, facts = clips_of(40)
    network = train_judge(
        clips, facts, ATTRIBUTES, training=JudgeTraining(num_steps=40, batch_size=8)
    )
    assert accuracy(network, clips, facts) == {"colour": 1.0, "direction": 1.0}


def test_saved_network_gives_the_same_logits(tmp_path: Path) -> None:
    network = AttributeNetwork(ATTRIBUTES).eval()
    network.save(tmp_path)
    loaded = AttributeNetwork.load(tmp_path)
    videos = torch.rand(2, 17, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(videos)["colour"], network(videos)["colour"])
    assert loaded.attributes == ATTRIBUTES


def test_missing_weights_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights at .*judge.safetensors"):
        AttributeNetwork.load(tmp_path)


def test_augmentation_keeps_the_hue_of_the_object() -> None:
    """A clip whose colour changed would be trained with a wrong label."""
    clips, _ = clips_of(8)
    augmented = augment(clips.float() / 255.0, torch.Generator().manual_seed(0))
    assert augmented.min() >= 0.0
    assert augmented.max() <= 1.0
    for index, clip in enumerate(augmented):
        in_the_square = clip[8, :, 15, 16]
        assert in_the_square.argmax() == 2 * (index % 2)
