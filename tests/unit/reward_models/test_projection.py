"""Orthogonal projection keeps an old judgement; without it the old one is lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlvid.config.reward_model import RewardModelConfig
from rlvid.learners.reward_model import RewardModelLearner
from rlvid.reward_models.measure import judge_pairs
from rlvid.reward_models.network import RewardModel, build_reward_model
from rlvid.reward_models.pairs import ClipTensor, PairSet, PreferencePair, labels_of
from rlvid.reward_models.projection import project_gradient, sum_of_products

CPU = torch.device("cpu")


def _gradients(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,))]


@pytest.mark.parametrize("seed", range(8))
def test_projected_step_never_raises_the_old_loss_to_first_order(seed: int) -> None:
    """<g, g_old> >= 0; after a projection it is 0, and g is the nearest such vector."""
    new, old = _gradients(2 * seed), _gradients(2 * seed + 1)
    projected, is_projected = project_gradient(new, old)
    product = float(sum_of_products(projected, old))
    assert product >= -1e-5
    assert is_projected == (float(sum_of_products(new, old)) < 0.0)
    if is_projected:
        assert product == pytest.approx(0.0, abs=1e-5)
    else:
        assert all(torch.equal(p, n) for p, n in zip(projected, new, strict=True))


def test_projection_by_hand() -> None:
    """(1, -1) against (0, 2) loses its second part."""
    projected, is_projected = project_gradient(
        [torch.tensor([1.0, -1.0])], [torch.tensor([0.0, 2.0])]
    )
    assert is_projected
    assert projected[0].tolist() == [1.0, 0.0]


def test_gradients_of_other_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="of the same parameters"):
        project_gradient([torch.zeros(2)], [torch.zeros(3)])


def _pairs(kind: str, seed: int, count: int = 48) -> PairSet:
    """Old: the brighter clip is better. New: the redder one, which here is always darker too."""
    generator = torch.Generator().manual_seed(seed)
    clips, pairs = [], []
    for index in range(count):
        base = 0.35 + 0.1 * torch.rand(5, 3, 8, 8, generator=generator)
        better = base.clone()
        if kind == "old":
            better = better + 0.15
        else:
            better[:, 0] += 0.12
            better[:, 1:] -= 0.15
        clips += [better, base]
        label = labels_of(VQ=1.0)
        pairs.append(
            PreferencePair(first=2 * index, second=2 * index + 1, prompt="p", labels=label)
        )
    stacked = (torch.stack(clips).clamp(0, 1) * 255).to(torch.uint8)
    return PairSet(clips=ClipTensor(stacked), pairs=tuple(pairs))


def _accuracy(model: RewardModel, pairs: PairSet) -> float:
    first, second = judge_pairs(model, pairs, device=CPU)
    return float((first.mean[:, 0] > second.mean[:, 0]).float().mean())


def _config(num_steps: int) -> RewardModelConfig:
    return RewardModelConfig.model_validate(
        {
            "backbone": {"width": 4},
            "num_steps": num_steps,
            "batch_size": 12,
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.0},
        }  # fmt: skip
    )


def test_old_aesthetic_is_kept_with_projection_and_lost_without() -> None:
    """The experiment of the module: learn brightness, then redness that comes with darkness."""
    accuracy = {}
    for keeps_old in (False, True):
        model = build_reward_model(_config(1), vocabulary=("p",), fps=8, seed=0)
        RewardModelLearner(model, _config(60), _pairs("old", 0), seed=0).train_steps(0, 60)
        assert _accuracy(model, _pairs("old", 1)) > 0.95
        learner = RewardModelLearner(
            model, _config(60), _pairs("new", 2), seed=1,
            old_pairs=_pairs("old", 0) if keeps_old else None,
        )  # fmt: skip
        learner.train_steps(0, 60)
        accuracy[keeps_old] = (
            _accuracy(model, _pairs("old", 1)),
            _accuracy(model, _pairs("new", 3)),
        )
    assert accuracy[False][0] < 0.6, accuracy
    assert accuracy[True][0] > 0.9, accuracy
    assert accuracy[False][1] > 0.9, accuracy
    assert accuracy[True][1] > 0.9, accuracy
