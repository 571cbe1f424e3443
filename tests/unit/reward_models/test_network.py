"""The network, its folder, what is measured of it, and the training that can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config.reward_model import RewardModelConfig
from rlvid.data.clips import ClipShape
from rlvid.learners.reward_model import RewardModelLearner
from rlvid.reward_models.folder import CONFIG_FILE, load_reward_model, save_reward_model
from rlvid.reward_models.measure import ZScore, measure_pairs
from rlvid.reward_models.network import Judgement, RewardModel, build_reward_model
from rlvid.reward_models.pairs import ClipTensor, PairSet, PreferencePair, labels_of
from rlvid.reward_models.video_encoder import vocabulary_of

CPU = torch.device("cpu")
WORDS = vocabulary_of(["a red ball falls to the left", "a blue box rolls to the right"])
CLIP = ClipShape(num_frames=5, height=8, width=8, fps=8)


def _config(**changes: Any) -> RewardModelConfig:
    tree = {"backbone": {"width": 4}, "num_steps": 6, "batch_size": 4, **changes}
    return RewardModelConfig.model_validate(tree)


def _model(config: RewardModelConfig) -> RewardModel:
    return build_reward_model(config, vocabulary=WORDS, fps=8, seed=0)


def _videos(count: int) -> torch.Tensor:
    return torch.rand(count, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _pairs(count: int = 12) -> PairSet:
    clips = (_videos(2 * count) * 255).to(torch.uint8)
    pairs = tuple(
        PreferencePair(
            first=2 * n, second=2 * n + 1, prompt=f"a red ball {n % 4}",
            labels=labels_of(VQ=1.0, MQ=0.0),
        )
        for n in range(count)
    )  # fmt: skip
    return PairSet(clips=ClipTensor(clips), pairs=pairs)


def test_vq_and_mq_do_not_see_the_prompt_and_ta_does() -> None:
    model, videos = _model(_config()), _videos(1)
    one, two = (model(videos, [text]).mean[0] for text in ("a red ball", "a blue box"))
    assert torch.equal(one[:2], two[:2])
    assert one[2] != two[2]


def test_word_order_counts_within_a_phrase() -> None:
    """Left and right both occur in a caption; which of them belongs to the camera must be told."""
    model, videos = _model(_config()), _videos(1)
    texts = ("falls to the left pans right", "falls to the right pans left")
    one, two = (model(videos, [text]).mean[0, 2] for text in texts)
    assert one != two


def test_judgement_does_not_depend_on_the_batch() -> None:
    model, videos = _model(_config()), _videos(3)
    texts = ["a red ball", "a blue box rolls to the right", ""]
    together = model(videos, texts).mean
    alone = torch.cat([model(videos[n : n + 1], texts[n : n + 1]).mean for n in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_spread_is_positive_and_starts_equal() -> None:
    spread = _model(_config(head="spread"))(_videos(3), ["a red ball"] * 3).spread
    assert spread is not None
    assert float(spread.min()) > 0.05
    assert float(spread.max() - spread.min()) < 1e-6


def test_resumed_training_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    """Bit for bit, moments included, since a step depends on nothing but the step before."""
    whole = RewardModelLearner(_model(_config()), _config(), _pairs(), seed=1)
    whole.train_steps(0, 6)
    first = RewardModelLearner(_model(_config()), _config(), _pairs(), seed=1)
    first.train_steps(0, 3)
    first.save(tmp_path)
    second = RewardModelLearner(_model(_config()), _config(), _pairs(), seed=1)
    second.load(tmp_path)
    second.train_steps(3, 6)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(second.model.named_parameters())[name]), name


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    frozen = _config(backbone={"width": 4, "train": "head"})
    RewardModelLearner(_model(frozen), frozen, _pairs(), seed=1).save(tmp_path)
    with pytest.raises(ValueError, match="expected the parameters of this model"):
        RewardModelLearner(_model(_config()), _config(), _pairs(), seed=1).load(tmp_path)


def test_frozen_backbone_stays_and_the_head_moves() -> None:
    config = _config(backbone={"width": 4, "train": "head"})
    model = _model(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    RewardModelLearner(model, config, _pairs(), seed=1).train_steps(0, 2)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head"}


def _save(folder: Path, config: RewardModelConfig, model: RewardModel) -> None:
    scores = {part: ZScore(mean=1.0, std=2.0) for part in ("VQ", "MQ", "TA")}
    save_reward_model(folder, model, config, clip=CLIP, vocabulary=WORDS, z_scores=scores)


@pytest.mark.parametrize("train", ["full", "head"])
@pytest.mark.parametrize("head", ["ties", "spread"])
def test_folder_gives_back_the_same_judgement(tmp_path: Path, head: str, train: str) -> None:
    config = _config(head=head, backbone={"width": 4, "train": train})
    model = build_reward_model(config, vocabulary=WORDS, fps=8, seed=77)
    _save(tmp_path, config, model)
    loaded = load_reward_model(tmp_path, where="here")
    assert (loaded.clip, loaded.vocabulary) == (CLIP, WORDS)
    assert loaded.z_scores["MQ"] == ZScore(mean=1.0, std=2.0)
    texts = ["a red ball", "a blue box"]
    one, two = model(_videos(2), texts), loaded.model(_videos(2), texts)
    assert torch.equal(one.mean, two.mean)
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_folder_that_is_none_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="here: no reward model at"):
        load_reward_model(tmp_path, where="here")
    _save(tmp_path, _config(), _model(_config()))
    tree = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**tree, "head": "spread"}))
    with pytest.raises(ValueError, match="tensors do not fit the configuration, e.g. 'head'"):
        load_reward_model(tmp_path, where="here")
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**tree, "format": 99}))
    with pytest.raises(ValueError, match="expected format 1"):
        load_reward_model(tmp_path, where="here")


class _Brightness(RewardModel):
    """Knows the answer: VQ is ten times the mean brightness."""

    def __init__(self, sign: float) -> None:
        super().__init__(torch.nn.Identity(), 1, has_spread=False)
        self.sign = sign

    def forward(self, videos: torch.Tensor, texts: Any) -> Judgement:
        value = self.sign * 10.0 * videos.mean(dim=(1, 2, 3, 4))
        return Judgement(mean=value[:, None].expand(-1, 3), spread=None)


@pytest.mark.parametrize(("sign", "accuracy"), [(1.0, 1.0), (-1.0, 0.0)])
def test_accuracy_of_a_model_that_knows_the_answer(sign: float, accuracy: float) -> None:
    """And of its opposite; pairs are turned round, so "always A" would get a half."""
    levels = torch.linspace(0.0, 250.0, 24).to(torch.uint8)
    clips = levels.flip(0)[:, None, None, None, None].expand(24, 5, 3, 8, 8)
    pairs = PairSet(clips=ClipTensor(clips), pairs=_pairs().pairs)
    (measured,) = measure_pairs(
        _Brightness(sign), pairs, tie_k=5.0, seed=0, num_bootstrap=200, device=CPU
    )
    assert (measured.part, measured.num_pairs) == ("VQ", 12)
    assert measured.accuracy == measured.low == measured.high == accuracy
    assert sum(count for _, _, count in measured.reliability) == 12
    assert len(measured.reliability) >= 2, "pairs were not turned round"
