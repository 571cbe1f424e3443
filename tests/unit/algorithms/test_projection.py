"""PCGrad against a hand-computed case, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch

from rlvid.algorithms.projection import project_conflicts


def test_two_that_conflict_by_hand() -> None:
    """(1, 0) and (-1, 1): product -1, squares 1 and 2; (1/2, 1/2) and (0, 1)."""
    gradients = [[torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]]
    (total,), conflicts = project_conflicts(gradients, seed=0)
    assert total.tolist() == pytest.approx([0.5, 1.5])
    assert conflicts == 2


def test_parameters_make_one_vector() -> None:
    """Each parameter conflicts alone, both together do not."""
    gradients = [
        [torch.tensor([1.0]), torch.tensor([2.0])],
        [torch.tensor([-1.0]), torch.tensor([2.0])],
    ]
    total, conflicts = project_conflicts(gradients, seed=0)
    assert conflicts == 0
    assert [part.tolist() for part in total] == [[0.0], [4.0]]


def test_no_task_is_hurt_to_first_order() -> None:
    """With two tasks the sum goes against neither of them."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(50):
        gradients = [[torch.randn(6, generator=generator)] for _ in range(2)]
        (total,), _ = project_conflicts(gradients, seed=trial)
        for (gradient,) in gradients:
            assert float(total @ gradient) > -1e-5


def test_what_was_given_is_not_changed() -> None:
    gradients = [[torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]]
    project_conflicts(gradients, seed=0)
    assert gradients[0][0].tolist() == [1.0, 0.0]
