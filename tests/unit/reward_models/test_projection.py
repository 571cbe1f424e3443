"""Orthogonal projection keeps an old judgement; without it the old one is lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from rlvid.config.reward_model import RewardModelConfig
from rlvid.learners.reward_model import RewardModelLearner
from rlvid.reward_models import PARTS
from rlvid.reward_models.measure import judge_pairs
from rlvid.reward_models.network import RewardModel
from rlvid.reward_models.pairs import ClipTensor, PairSet, PreferencePair, labels_of
from rlvid.reward_models.projection import project_gradient, sum_of_products


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradient_that_is_not_finite_is_refused(value: float) -> None:
    """A product of NaN is neither below nor above 0, and would spread over every parameter."""
    with pytest.raises(FloatingPointError, match="expected finite gradients"):
        project_gradient([torch.ones(2)], [torch.tensor([1.0, value])])


class _BrightAndRed(nn.Module):
    """Two features a clip: how bright, how red. Few enough that two tastes must share a weight."""

    def forward(self, videos: Tensor, texts: Sequence[str]) -> Tensor:
        red, others = videos[:, :, 0], videos[:, :, 1:]
        features = [videos.mean(dim=(1, 2, 3, 4)), red.mean((1, 2, 3)) - others.mean((1, 2, 3, 4))]
        return 10.0 * torch.stack(features, dim=1)[:, None].expand(-1, len(PARTS), -1)


def _pairs(kind: str, seed: int, count: int = 32) -> PairSet:
    """Old: the brighter clip is better. New: the redder one, which here is far darker too."""
    generator = torch.Generator().manual_seed(seed)
    clips, pairs = [], []
    for index in range(count):
        base = 0.4 + 0.1 * torch.rand(2, 3, 4, 4, generator=generator)
        better = base + 0.15 if kind == "old" else base - 0.3
        if kind == "new":
            better[:, 0] += 0.06
        clips += [better, base]
        pairs.append(
            PreferencePair(
                first=2 * index, second=2 * index + 1, prompt="p", labels=labels_of(VQ=1.0)
            )
        )
    stacked = (torch.stack(clips).clamp(0, 1) * 255).to(torch.uint8)
    return PairSet(clips=ClipTensor(stacked), pairs=tuple(pairs))


def _accuracy(model: RewardModel, kind: str) -> float:
    first, second = judge_pairs(model, _pairs(kind, seed=9), device=torch.device("cpu"))
    return float((first.mean[:, 0] > second.mean[:, 0]).float().mean())


@pytest.mark.parametrize("seed", range(2))
def test_old_aesthetic_is_kept_with_projection_and_lost_without(seed: int) -> None:
    """The experiment: learn brightness, then redness that comes with darkness.

    Both tastes can be held at once. Without the projection, darkness is the shorter way to the new
    labels, and the old pairs are judged the wrong way round.
    """
    config = RewardModelConfig.model_validate(
        {
            "num_steps": 200,
            "batch_size": 8,
            "optimizer": {"learning_rate": 0.2, "weight_decay": 0.0},
            "max_grad_norm": 100.0,
        }
    )
    accuracy = {}
    for keeps_old in (False, True):
        torch.manual_seed(seed)
        model = RewardModel(_BrightAndRed(), 2, has_spread=False)
        RewardModelLearner(model, config, _pairs("old", 0), seed=seed).train_steps(0, 25)
        assert _accuracy(model, "old") == 1.0
        old = _pairs("old", 0) if keeps_old else None
        learner = RewardModelLearner(model, config, _pairs("new", 1), seed=seed, old_pairs=old)
        learner.train_steps(0, 200)
        accuracy[keeps_old] = {kind: _accuracy(model, kind) for kind in ("old", "new")}
    assert accuracy[False] == {"old": 0.0, "new": 1.0}
    assert accuracy[True] == {"old": 1.0, "new": 1.0}


def test_step_of_the_learner_is_projected_whatever_its_optimiser() -> None:
    """AdamW would turn a projected gradient against the old loss; the step itself must hold."""
    config = RewardModelConfig.model_validate({"num_steps": 40, "batch_size": 8})
    torch.manual_seed(0)
    model = RewardModel(_BrightAndRed(), 2, has_spread=False)
    old = _pairs("old", 0)
    learner = RewardModelLearner(model, config, _pairs("new", 1), seed=0, old_pairs=old)
    num_projected = 0
    for step in range(40):
        before = model.head.detach().clone()
        gradient = learner.gradient(old, learner.batch(step, old, "old pairs"))[2]
        (report,) = learner.train_steps(step, step + 1)
        rise = float(sum_of_products([model.head.detach() - before], gradient))
        assert rise <= 1e-6, f"step {step} raises the old loss by {rise} to first order"
        num_projected += int(report.metrics["reward_model/projected/frac"])
    assert num_projected > 10


class _OneOverBrightness(nn.Module):
    """Two features a clip, infinite for a black one."""

    def forward(self, videos: Tensor, texts: Sequence[str]) -> Tensor:
        feature = 1.0 / videos.mean(dim=(1, 2, 3, 4))
        return feature[:, None, None].expand(-1, len(PARTS), 2)


@pytest.mark.parametrize("spoilt", ["new", "old"])
def test_gradient_that_is_not_finite_stops_before_the_weights_change(spoilt: str) -> None:
    """Black clips among either pairs: the step is not taken, the weights stay what they were."""
    config = RewardModelConfig.model_validate({"num_steps": 4, "batch_size": 8})
    torch.manual_seed(0)
    model = RewardModel(_OneOverBrightness(), 2, has_spread=False)
    pairs = {kind: _pairs(kind, 0) for kind in ("new", "old")}
    good = pairs[spoilt]
    black = ClipTensor(torch.zeros_like(torch.stack([good.clips.clip(0)] * len(good.clips))))
    pairs[spoilt] = PairSet(clips=black, pairs=good.pairs)
    learner = RewardModelLearner(model, config, pairs["new"], seed=0, old_pairs=pairs["old"])
    before = model.head.detach().clone()
    with pytest.raises(FloatingPointError, match=f"step 0: the gradient of the {spoilt} pairs"):
        learner.train_steps(0, 1)
    assert torch.equal(model.head.detach(), before)
