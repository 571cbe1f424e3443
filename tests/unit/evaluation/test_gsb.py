"""Good / Same / Bad against counts made by hand, and above all: that unblinding is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlvid.evaluation.gsb import Side, assign_sides, fleiss_kappa, tally, verdict_of
from rlvid.evaluation.gsb_votes import (
    AXES,
    Choice,
    Vote,
    VoteStore,
    last_votes,
    parse_vote,
    read_votes,
)

PAIRS = [f"p{place:03d}" for place in range(20)]


def vote(pair: str, choice: Choice, voter: str = "anna", axis: str = "VQ", at: float = 1.0) -> Vote:
    return Vote(pair_id=pair, axis=axis, choice=choice, voter=voter, time_s=at)


def of_second(sides: dict[str, Side], pair: str) -> Side:
    return "right" if sides[pair] == "left" else "left"


@pytest.mark.parametrize("num_pairs", [1, 2, 7, 20])
def test_each_policy_is_left_as_often_as_right(num_pairs: int) -> None:
    for seed in range(20):
        left = list(assign_sides(PAIRS[:num_pairs], seed).values()).count("left")
        assert left in (num_pairs // 2, (num_pairs + 1) // 2)


def test_sides_follow_the_seed_and_not_the_order() -> None:
    assert assign_sides(PAIRS, 3) == assign_sides(PAIRS[::-1], 3)
    drawn = {tuple(assign_sides(PAIRS, seed).values()) for seed in range(30)}
    assert len(drawn) == 30
    with pytest.raises(ValueError, match="given twice: p000"):
        assign_sides(["p000", "p000"], 0)


@pytest.mark.parametrize("seed", range(5))
def test_who_always_prefers_policy_b_votes_plus_one_whatever_the_sides(seed: int) -> None:
    sides = assign_sides(PAIRS, seed)
    for_b = [vote(pair, of_second(sides, pair), axis=axis) for pair in PAIRS for axis in AXES]
    for_a = [vote(pair, sides[pair]) for pair in PAIRS]
    assert {choice.choice for choice in for_b} == {"left", "right"}
    assert [axis.gsb for axis in tally(for_b, sides).axes] == [1.0] * len(AXES)
    assert tally(for_a, sides).axes[0].gsb == -1.0


def test_who_always_says_left_prefers_nobody() -> None:
    """The sides are balanced, so a leaning to one of them cancels."""
    found = tally([vote(pair, "left") for pair in PAIRS], assign_sides(PAIRS, 1)).axes[0]
    assert (found.good, found.same, found.bad, found.gsb) == (10, 0, 10, 0.0)


def test_verdicts_by_hand() -> None:
    assert verdict_of("left", "left") == "bad"
    assert verdict_of("right", "left") == "good"
    assert verdict_of("left", "right") == "good"
    assert verdict_of("same", "right") == "same"


def test_counts_and_gsb_by_hand() -> None:
    """A is left throughout: 3 good, 1 same, 1 bad of five votes is (3 - 1) / 5."""
    sides: dict[str, Side] = dict.fromkeys(PAIRS, "left")
    choices: list[Choice] = ["right", "right", "right", "same", "left"]
    votes = [vote(pair, choice) for pair, choice in zip(PAIRS, choices, strict=False)]
    found = tally(votes, sides)
    axis = found.axes[0]
    assert (axis.axis, axis.good, axis.same, axis.bad, axis.num_votes) == ("VQ", 3, 1, 1, 5)
    assert axis.gsb == pytest.approx(0.4)
    assert axis.low is not None
    assert axis.high is not None
    assert axis.low < 0.4 < axis.high
    assert (axis.num_pairs, axis.num_voters, axis.kappa) == (5, 1, None)
    assert (found.num_voters, found.num_replaced) == (1, 0)
    assert found.axes[1].gsb is None  # no votes on MQ: unknown, and not 0


def test_one_pair_has_no_interval() -> None:
    axis = tally([vote("p000", "right")], {"p000": "left"}).axes[0]
    assert (axis.gsb, axis.low, axis.high) == (1.0, None, None)


def test_voters_who_agree_add_no_certainty() -> None:
    """Ten voters who see the same in every pair are still one observation a pair."""
    sides: dict[str, Side] = dict.fromkeys(PAIRS, "left")
    choices: list[Choice] = ["right", "right", "left", "same"] * 5
    alone = [vote(pair, choice) for pair, choice in zip(PAIRS, choices, strict=True)]
    crowd = [vote(one.pair_id, one.choice, voter=f"v{n}") for one in alone for n in range(10)]
    one, ten = tally(alone, sides).axes[0], tally(crowd, sides).axes[0]
    assert (one.low, one.high) == pytest.approx((ten.low, ten.high))
    assert (ten.num_voters, ten.num_votes, ten.num_pairs) == (10, 200, 20)
    assert ten.kappa == pytest.approx(1.0)


def test_the_later_vote_of_a_voter_counts() -> None:
    sides: dict[str, Side] = {"p000": "left", "p001": "left"}
    votes = [vote("p000", "left", at=1.0), vote("p001", "right"), vote("p000", "right", at=2.0)]
    found = tally(votes, sides)
    assert (found.axes[0].good, found.axes[0].bad, found.num_replaced) == (2, 0, 1)
    assert tally(votes[::-1], sides).axes == found.axes  # files may be given in any order
    other = [*votes, vote("p000", "left", voter="ben", at=9.0)]
    assert tally(other, sides).num_replaced == 1
    same_time = [vote("p000", "left"), vote("p000", "same")]
    assert [one.choice for one in last_votes(same_time)] == ["same"]


def test_votes_of_another_sheet_are_refused() -> None:
    with pytest.raises(ValueError, match="1 pairs with votes are not in the key, e.g. 'p009'"):
        tally([vote("p009", "left")], {"p000": "left"})


FLEISS_1971 = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (FLEISS_1971, 0.210),  # the worked example of encyclopaedias: 14 raters, 10 subjects
        ([[2, 0, 0], [0, 0, 2]], 1.0),
        ([[1, 0, 1], [1, 0, 1]], -1.0),
        # P = 1, 1/3, 0 and p = 4/7, 1/7, 2/7: (4/9 - 21/49) / (1 - 21/49) = 1/36
        ([[2, 0, 0], [2, 0, 1], [0, 1, 1]], 1 / 36),
    ],
)
def test_kappa_by_hand(counts: Sequence[Sequence[int]], expected: float) -> None:
    assert fleiss_kappa(counts) == pytest.approx(expected, abs=5e-4)


def test_kappa_where_it_says_nothing() -> None:
    assert fleiss_kappa([]) is None
    assert fleiss_kappa([[3, 0, 0], [2, 0, 0]]) is None
    with pytest.raises(ValueError, match="2 votes a pair at least"):
        fleiss_kappa([[1, 0, 0]])


def test_kappa_takes_the_pairs_that_two_voters_share() -> None:
    sides: dict[str, Side] = dict.fromkeys(PAIRS, "left")
    votes = [vote("p000", "left"), vote("p000", "left", "ben"), vote("p001", "right")]
    votes += [vote("p002", "right"), vote("p002", "right", "ben")]
    axis = tally(votes, sides).axes[0]
    assert (axis.kappa, axis.num_pairs_shared, axis.num_pairs) == (1.0, 2, 3)


GOOD = {"pair_id": "p000", "axis": "VQ", "choice": "left", "voter": "anna", "time_s": 1.7e9}


def test_a_vote_survives_its_line() -> None:
    parsed = parse_vote(GOOD, PAIRS, where="x")
    assert parse_vote(json.loads(parsed.to_json()), PAIRS, where="x") == parsed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pair_id": "q"}, "pair_id: no pair 'q' in this sheet of 20 pairs"),
        ({"axis": "beauty"}, "axis: expected one of VQ, MQ, TA, overall, got 'beauty'"),
        ({"choice": "first"}, "choice: expected one of left, same, right, got 'first'"),
        ({"choice": ["left"]}, "choice: expected a text"),
        ({"voter": ""}, "voter: expected a name of 1 to 64"),
        ({"voter": "a\nb"}, "voter: expected a name"),
        ({"voter": "a" * 65}, "voter: expected a name"),
        ({"time_s": True}, "time_s: expected a number, got True"),
        ({"time_s": float("nan")}, "time_s: expected seconds since the epoch, got nan"),
        ({"time_s": 10**400}, "time_s: expected seconds"),
        ({"time_s": 1.7e12}, "time_s: expected seconds"),
        ({"extra": 1}, "expected an object of pair_id, axis, choice, voter, time_s"),
    ],
)
def test_a_vote_that_is_none_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_vote({**GOOD, **change}, PAIRS, where="line 3")


def test_no_object_is_no_vote() -> None:
    with pytest.raises(ValueError, match="line 3: expected an object of .*, got list"):
        parse_vote([1], PAIRS, where="line 3")


def test_both_votes_of_a_voter_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    votes = (vote("p000", "left"), vote("p000", "right", at=2.0))
    append(path, *votes)
    assert read_votes(path, PAIRS).votes == votes


def test_a_torn_last_line_is_reported_and_cut_off_by_the_next_writer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "votes.jsonl"
    append(path, vote("p000", "left"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    found = read_votes(path, PAIRS)
    assert (len(found.votes), found.torn_line) == (1, whole[:30].decode())
    append(path, vote("p001", "same"))
    assert "removed a torn line" in caplog.text
    assert [one.pair_id for one in read_votes(path, PAIRS).votes] == ["p000", "p001"]


def test_a_vote_that_lacks_its_line_end_only_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    append(path, vote("p000", "left"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(read_votes(path, PAIRS).votes) == 1
    append(path, vote("p001", "same"))
    assert [one.pair_id for one in read_votes(path, PAIRS).votes] == ["p000", "p001"]


def test_a_bad_line_before_the_end_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    append(path, vote("p000", "left"))
    path.write_text("{\n" + path.read_text())
    with pytest.raises(ValueError, match=r"votes.jsonl:1: not JSON"):
        read_votes(path, PAIRS)
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"axis": "x"}) + "\n")
    with pytest.raises(ValueError, match=r"votes.jsonl:2: axis: expected one of"):
        read_votes(path, PAIRS)
    with pytest.raises(ValueError, match="cannot read"):
        read_votes(tmp_path / "none.jsonl", PAIRS)


def test_two_writers_of_one_file_are_refused(tmp_path: Path) -> None:
    first, second = VoteStore(tmp_path / "v.jsonl"), VoteStore(tmp_path / "v.jsonl")
    first.open()
    with pytest.raises(ValueError, match="another process writes"):
        second.open()
    first.close()
    second.open()
    second.close()


def append(path: Path, *votes: Vote) -> None:
    store = VoteStore(path)
    store.open()
    for one in votes:
        store.append(one)
    store.close()
