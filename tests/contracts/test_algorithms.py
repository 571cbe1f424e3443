"""Every built-in algorithm keeps its protocol, and broken promises are named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from rlvid.algorithms import ALGORITHMS
from rlvid.algorithms.base import Credit, LossTerms
from rlvid.algorithms.grpo import Grpo
from rlvid.algorithms.nft import Nft
from rlvid.algorithms.opening import open_algorithm
from rlvid.config import AlgorithmConfig
from rlvid.testing import check_algorithm


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_built_in_algorithm_keeps_its_promises(name: str) -> None:
    config = AlgorithmConfig(use=name)
    check_algorithm(open_algorithm(config), config)


@pytest.mark.parametrize("kind", ["reference", "moving_anchor", "dual"])
def test_grpo_keeps_them_with_a_pull(kind: str) -> None:
    config = AlgorithmConfig.model_validate({"kl": {"kind": kind, "coefficient": 1.0}})
    check_algorithm(Grpo(), config)


class Mean(Nft):
    """Divides by its rows, which the learner does over all ranks."""

    def loss(self, *arguments: Any, **settings: Any) -> LossTerms:
        terms = super().loss(*arguments, **settings)
        return replace(terms, loss_sum=terms.loss_sum / max(terms.num_rows, 1))


class Everything(Grpo):
    """Trains masked rows as well."""

    def loss(self, batch: Any, velocity: Tensor, **settings: Any) -> LossTerms:
        terms = super().loss(batch, velocity, **settings)
        return replace(terms, loss_sum=terms.loss_sum + velocity.square().sum())


class Generous(Grpo):
    """Gives a rollout without a score the benefit of the doubt."""

    def credit(self, *arguments: Any) -> Credit:
        found = super().credit(*arguments)
        return replace(found, trained=found.trained | True)


class Nothing:
    """Has no method at all."""


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (Mean(), "Mean: loss.. is no sum over rows"),
        (Everything(), "Everything: rows that are not trained add to the loss"),
        (Generous(), "Generous: credit.. trains a rollout without a score"),
        (Nothing(), "Nothing: has the methods of neither"),
    ],
)
def test_broken_promise_is_named(algorithm: object, expected: str) -> None:
    with pytest.raises(AssertionError, match=expected):
        check_algorithm(algorithm)


def test_learner_refuses_what_is_no_algorithm() -> None:
    with pytest.raises(ValueError, match=r"algorithm\.use: .*Nothing is no algorithm"):
        open_algorithm(AlgorithmConfig(use=f"{__name__}:Nothing"))
