"""Several scorers, one reward: every way to combine them, by numbers worked out by hand."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.advantages import credit
from rlvid.algorithms.aggregation import aggregate, gated, net_wins, weights_at
from rlvid.algorithms.running_stats import RunningStats, standardised, updated
from rlvid.algorithms.score_table import RewardTable, ScoreTable
from rlvid.config import AdvantageConfig
from rlvid.config.aggregation import AggregationConfig

NAN = math.nan


def table(**scores: Any) -> ScoreTable:
    values = {name: torch.as_tensor(rows) for name, rows in scores.items()}
    num_groups = len(next(iter(values.values())))
    return ScoreTable(
        group_ids=tuple(f"g{row}" for row in range(num_groups)), values=values, num_missing={}
    )


def rewards(scores: ScoreTable, weights: dict[str, float], **config: Any) -> RewardTable:
    section = AggregationConfig.model_validate(config)
    return aggregate(scores, weights, section, step=0, state={}, min_std=1e-6)[0]


def advantage(given: RewardTable, std: str = "group") -> Tensor:
    config = AdvantageConfig.model_validate({"std": std})
    return credit(given.values, given.weights, config).advantage


@pytest.mark.parametrize(
    ("std", "digest"),
    [
        ("group", "661f572b358a6177"),
        ("global", "58cbe34ad510f09e"),
        ("max_group", "b8cdb547e4aa74c2"),
    ],
)
def test_default_gives_the_advantages_of_before_bit_for_bit(std: str, digest: str) -> None:
    """Digests of the code before aggregation existed, from 3 scorers on 8 groups of 8."""
    generator = torch.Generator().manual_seed(7)
    names = ("adherence", "physics", "realism")
    scores = {name: torch.rand(8, 8, generator=generator) for name in names}
    scores["physics"][2, 3] = NAN
    given = rewards(table(**scores), {"adherence": 1.0, "physics": 1.0, "realism": 0.5})
    got = advantage(given, std)
    assert hashlib.blake2b(got.numpy().tobytes(), digest_size=8).hexdigest() == digest


def test_default_hands_the_scores_through_untouched() -> None:
    """What is credited are the very tensors of the scorers with weight."""
    scores = table(physics=[[0.0, 1.0]], watched=[[NAN, NAN]])
    got = rewards(scores, {"physics": 2.0, "watched": 0.0})
    assert list(got.values) == ["physics"]
    assert got.values["physics"] is scores.values["physics"]
    assert got.weights == {"physics": 2.0}
    assert got.group_ids == ("g0",)


def test_weighted_sum_sums_before_it_normalises() -> None:
    """Sums 0, 1, 50, 51 have mean 25.5 and population std sqrt(625.25)."""
    scores = table(small=[[0.0, 1.0, 0.0, 1.0]], large=[[0.0, 0.0, 100.0, 100.0]])
    got = rewards(scores, {"small": 1.0, "large": 0.5}, kind="weighted_sum")
    assert got.values["weighted_sum"].tolist() == [[0.0, 1.0, 50.0, 51.0]]
    torch.testing.assert_close(
        advantage(got), torch.tensor([[-25.5, -24.5, 24.5, 25.5]]) / math.sqrt(625.25)
    )


def test_missing_score_masks_its_rollout_in_a_weighted_sum() -> None:
    scores = table(a=[[0.0, NAN, 1.0]], b=[[1.0, 1.0, 1.0]])
    got = rewards(scores, {"a": 1.0, "b": 1.0}, kind="weighted_sum").values["weighted_sum"]
    assert got.isnan().tolist() == [[False, True, False]]


def gate(below: float, **caps: float | None) -> dict[str, Any]:
    return {"scorer": "physics", "below": below, "caps": caps}


def gates(*sections: dict[str, Any]) -> tuple[Any, ...]:
    return AggregationConfig.model_validate({"gates": sections}).gates


def test_failed_gate_caps_only_what_it_names() -> None:
    """A score of exactly the threshold passes; a score under its cap stays."""
    values = {
        "physics": torch.tensor([[0.1, 0.5, 0.4, 0.9]]),
        "aesthetic": torch.tensor([[0.9, 0.9, 0.125, 0.9]]),
        "realism": torch.tensor([[0.9, 0.9, 0.9, 0.9]]),
    }
    got = gated(values, gates(gate(0.5, aesthetic=0.25)))
    expected = torch.tensor([[0.25, 0.9, 0.125, 0.9]])
    assert torch.equal(got["aesthetic"], expected)
    assert torch.equal(got["realism"], values["realism"])
    assert torch.equal(got["physics"], values["physics"])


def test_gate_without_a_number_caps_at_the_lowest_of_the_group() -> None:
    """Scale-free: a failing video is never above a passing one, in whatever units."""
    values = {
        "physics": torch.tensor([[0.1, 0.9, 0.9], [0.1, 0.9, 0.9]]),
        "aesthetic": torch.tensor([[7.0, 3.0, NAN], [70.0, 30.0, 50.0]]),
    }
    got = gated(values, gates(gate(0.5, aesthetic=None)))["aesthetic"]
    assert got[0, :2].tolist() == [3.0, 3.0]
    assert got[1].tolist() == [30.0, 30.0, 50.0]


def test_missing_gate_score_masks_the_rollout() -> None:
    """Nobody knows whether it passed; neither pass nor fail may be made of a scorer's failure."""
    scores = table(physics=[[NAN, 0.9, 0.9, 0.1]], aesthetic=[[0.5, 0.6, 0.8, 0.9]])
    got = rewards(scores, {"physics": 0.0, "aesthetic": 1.0}, gates=[gate(0.5, aesthetic=0.0)])
    result = credit(got.values, got.weights, AdvantageConfig())
    assert result.trained.tolist() == [[False, True, True, True]]
    assert float(result.advantage[0, 3]) < 0.0


def test_order_of_gates_does_not_matter() -> None:
    """A gate that looked at capped scores would make it matter; the lowest cap wins."""
    values = {
        "physics": torch.tensor([[0.1, 0.9, 0.2]]),
        "text": torch.tensor([[0.3, 0.1, 0.9]]),
        "aesthetic": torch.tensor([[0.9, 0.8, 0.7]]),
    }
    one = gate(0.5, text=0.0, aesthetic=0.5)
    two = {"scorer": "text", "below": 0.25, "caps": {"aesthetic": 0.25}}
    first, second = gated(values, gates(one, two)), gated(values, gates(two, one))
    assert all(torch.equal(first[name], second[name]) for name in values)
    torch.testing.assert_close(first["aesthetic"], torch.tensor([[0.5, 0.25, 0.5]]))


def test_gate_cannot_pay_for_a_failure() -> None:
    """Whatever the aesthetic, a video that fails physics gets no more than the cap's advantage."""
    scores = table(physics=[[0.0, 1.0, 1.0, 1.0]], aesthetic=[[9.0, 0.2, 0.4, 0.3]])
    open_gate = rewards(scores, {"physics": 0.0, "aesthetic": 1.0})
    shut = rewards(scores, {"physics": 0.0, "aesthetic": 1.0}, gates=[gate(0.5, aesthetic=None)])
    assert advantage(open_gate)[0].argmax() == 0
    assert float(advantage(shut)[0, 0]) == float(advantage(shut)[0].min())


ORDER = ("physics", "realism")


def wins(physics: list[float], realism: list[float], tolerance: float = 0.0) -> list[float]:
    values = {"physics": torch.tensor([physics]), "realism": torch.tensor([realism])}
    got: list[float] = net_wins(values, ORDER, {"physics": tolerance})[0].tolist()
    return got


def test_first_scorer_decides_and_the_second_breaks_ties() -> None:
    """Ranks: (0.9, -) > (0.5, 0.8) > (0.5, 0.1); realism 1.0 of the worst helps it nothing."""
    got = wins([0.5, 0.9, 0.5, 0.1], [0.8, 0.0, 0.1, 1.0])
    assert got == pytest.approx([1 / 3, 1.0, -1 / 3, -1.0])


def test_difference_within_the_tolerance_is_a_tie() -> None:
    """0.50 and 0.54 are equal to within 0.05, so realism decides between them; 0.9 is above."""
    got = wins([0.50, 0.54, 0.9], [1.0, 0.0, 0.0], 0.05)
    assert got == pytest.approx([0.0, -1.0, 1.0])


def test_tie_that_does_not_carry_over_is_resolved() -> None:
    """0.00 ~ 0.04 ~ 0.08 but 0.08 > 0.00: net wins still give one number each, adding up to 0."""
    got = wins([0.00, 0.04, 0.08], [0.5, 0.5, 0.5], 0.05)
    assert got == pytest.approx([-0.5, 0.0, 0.5])


def test_shift_scale_of_ranks_and_permutation_change_nothing_else() -> None:
    """Adding a constant to a scorer must not move a tie; rollouts have no order."""
    generator = torch.Generator().manual_seed(3)
    # Multiples of 1/8, so that the shifted differences are exact.
    values = {n: torch.randint(0, 8, (3, 6), generator=generator) / 8.0 for n in ORDER}
    tolerance = {"physics": 0.2}
    got = net_wins(values, ORDER, tolerance)
    shifted = {name: scores + 64.0 for name, scores in values.items()}
    assert torch.equal(net_wins(shifted, ORDER, tolerance), got)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = {name: scores[:, order] for name, scores in values.items()}
    assert torch.equal(net_wins(permuted, ORDER, tolerance), got[:, order])
    torch.testing.assert_close(got.sum(dim=1), torch.zeros(3, dtype=torch.float64))


def test_rollout_without_a_score_takes_no_part_in_the_order() -> None:
    """The others compare as if it were not there, and it is masked."""
    got = wins([0.5, NAN, 0.9], [0.0, 0.0, 0.0])
    assert math.isnan(got[1])
    assert [got[0], got[2]] == [-1.0, 1.0]


def test_negative_weight_turns_the_order_of_its_scorer_round() -> None:
    scores = table(physics=[[0.0, 1.0]], realism=[[0.0, 0.0]])
    weights = {"physics": -1.0, "realism": 1.0}
    got = rewards(scores, weights, kind="lexicographic", order=ORDER)
    assert got.values["lexicographic"].tolist() == [[1.0, -1.0]]


def test_curriculum_is_linear_between_its_steps_and_constant_outside() -> None:
    config = AggregationConfig.model_validate({"curriculum": {"a": [[10, 0.0], [20, 1.0]]}})
    got = [weights_at({"a": 2.0, "b": 1.0}, config, step)["a"] for step in (0, 10, 15, 20, 99)]
    assert got == [0.0, 0.0, 1.0, 2.0, 2.0]
    assert weights_at({"a": 2.0, "b": 1.0}, config, 15)["b"] == 1.0


def test_scorer_at_factor_zero_neither_counts_nor_masks() -> None:
    """Before its time it is watched: its missing scores must not cost rollouts."""
    scores = table(a=[[NAN, 0.0, 1.0]], b=[[0.0, 1.0, 2.0]])
    got = rewards(scores, {"a": 1.0, "b": 1.0}, curriculum={"a": [[5, 0.0], [9, 1.0]]})
    assert got.weights == {"b": 1.0}


def test_running_statistics_are_those_of_the_weighted_past() -> None:
    """Momentum 0.5 over steps {0, 2} and {4, 4}: weights 1/3 and 2/3.

    Mean 1/3 * 1 + 2/3 * 4 = 3; variance 1/3 (1 + 4) + 2/3 (0 + 1) = 7/3.
    """
    stats = updated(RunningStats(), torch.tensor([[0.0, 2.0]]), 0.5)
    assert (stats.mean, stats.variance, stats.num_steps) == (1.0, 1.0, 1)
    stats = updated(stats, torch.tensor([[4.0, 4.0]]), 0.5)
    assert stats.mean == pytest.approx(3.0, rel=1e-12)
    assert stats.variance == pytest.approx(7.0 / 3.0, rel=1e-12)
    got = standardised(torch.tensor([[3.0, NAN]]), stats, 1e-6)
    assert got[0, 0] == pytest.approx(0.0, abs=1e-12)
    assert bool(got[0, 1].isnan())


def test_running_variance_ignores_a_constant_and_missing_scores() -> None:
    """Scores near 1000 have the spread of scores near 0. Tolerance: float64 of 1e3 squared."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand(4, 4, generator=generator, dtype=torch.float64) for _ in range(5)]
    plain, shifted = RunningStats(), RunningStats()
    for batch in batches:
        plain = updated(plain, batch, 0.9)
        gap = torch.cat([batch + 1000.0, torch.full((4, 1), NAN, dtype=torch.float64)], dim=1)
        shifted = updated(shifted, gap, 0.9)
    assert shifted.variance == pytest.approx(plain.variance, rel=1e-9)
    assert updated(plain, torch.full((2, 2), NAN), 0.9) == plain


def test_running_statistics_resume_bit_for_bit_from_json() -> None:
    """A checkpoint holds them as JSON; Python writes floats so that they read back the same."""
    stats = RunningStats()
    for step in range(7):
        batch = torch.rand(3, 5, generator=torch.Generator().manual_seed(step))
        stats = updated(stats, batch, 0.9)
    again = RunningStats(**json.loads(json.dumps(asdict(stats))))
    assert again == stats
    more = torch.rand(3, 5, generator=torch.Generator().manual_seed(99))
    assert updated(again, more, 0.9) == updated(stats, more, 0.9)


def test_running_spread_keeps_the_size_of_a_group_spread() -> None:
    """A step whose scores spread half as far as before gets half the advantage."""
    config = AggregationConfig.model_validate({"running": {"momentum": 0.999999}})
    wide, narrow = table(a=[[-1.0, 1.0]]), table(a=[[-0.5, 0.5]])
    state: Any = {}
    for _ in range(50):
        got, state, _ = aggregate(wide, {"a": 1.0}, config, step=0, state=state, min_std=1e-6)
    assert advantage(got, "none").tolist() == [[-1.0, 1.0]]
    got, _, _ = aggregate(narrow, {"a": 1.0}, config, step=50, state=state, min_std=1e-6)
    # The narrow step is 1 of 51 in the running variance.
    torch.testing.assert_close(
        advantage(got, "none"), torch.tensor([[-0.5, 0.5]]), rtol=0.01, atol=0.0
    )
