"""The video-text network, its training, and the one that ships."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlvid.models.tiny import video_text_folder
from rlvid.models.tiny.video_text_network import UNKNOWN, VideoTextNetwork
from rlvid.models.tiny.video_text_training import (
    VideoTextTraining,
    contrastive_loss,
    recall_at_1,
    train_video_text,
)
from rlvid.reward_models.tiny_video_text import draw_clips


def test_the_shipped_network_finds_the_caption_of_a_heldout_clip() -> None:
    """Captions and seeds that training never saw; chance is below 2 %, all 102 give 1.0."""
    clips, texts = draw_clips(64, split="heldout", seed=5)
    network = VideoTextNetwork.load(video_text_folder())
    assert recall_at_1(network, clips, texts) >= 0.95


def test_training_brings_a_clip_nearer_to_its_caption() -> None:
    """A few steps on few clips: enough to beat chance by far on the clips themselves."""
    clips, texts = draw_clips(12, split="train", seed=0)
    training = VideoTextTraining(num_steps=60, batch_size=6)
    network = train_video_text(clips, texts, training=training)
    assert recall_at_1(network, clips, texts) >= 0.5  # chance is 1/12


def test_the_same_seed_trains_the_same_network() -> None:
    clips, texts = draw_clips(4, split="train", seed=0)
    training = VideoTextTraining(num_steps=2, batch_size=2)
    first, second = (train_video_text(clips, texts, training=training) for _ in range(2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_padding_changes_no_embedding() -> None:
    """A sentence must not depend on the longest one it is embedded with."""
    network = VideoTextNetwork(["a", "red", "ball", "rolls"])
    alone = network.embed_texts(["a red"])
    beside = network.embed_texts(["a red", "a red ball rolls a red ball"])
    assert torch.allclose(alone[0], beside[0], atol=1e-6)


def test_unknown_words_have_their_own_number() -> None:
    network = VideoTextNetwork(["red"])
    assert network.word_numbers("Red, zebra!") == [2, UNKNOWN]


def test_loss_rewards_the_right_pair_alone() -> None:
    """By hand: two captions, logits of 0, so ln 2 for the softmax and 2 ln 2 for the pairs."""
    loss = contrastive_loss(torch.zeros(1, 2), torch.tensor([0]), sigmoid_weight=1.0)
    assert float(loss) == pytest.approx(3 * 0.693147, abs=1e-5)
    better = contrastive_loss(torch.tensor([[2.0, -2.0]]), torch.tensor([0]), sigmoid_weight=1.0)
    assert better < loss


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no weights at .*video_text\.safetensors"):
        VideoTextNetwork.load(tmp_path)
