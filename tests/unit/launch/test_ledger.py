"""The ledger's promise: every group has one life, and the sum always balances."""

from pathlib import Path

import pytest

from rlvid.launch.ledger import NO_SPREAD, QUARANTINED, Ledger, LedgerError, open_ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return open_ledger(tmp_path / "ledger.sqlite")


def _until_ready(ledger: Ledger, group_id: str) -> None:
    ledger.plan(group_id, 0, "p")
    _bring_to_ready(ledger, group_id)


def _bring_to_ready(ledger: Ledger, group_id: str) -> None:
    lease = ledger.lease(group_id, 10.0)
    assert ledger.sampled(group_id, lease, "actor-0", 0)
    ledger.scoring(group_id)
    ledger.ready(group_id)


def test_group_is_consumed_once(ledger: Ledger) -> None:
    """Learning twice from one group would count its evidence twice."""
    _until_ready(ledger, "a")
    ledger.claim(["a"])
    ledger.consume(["a"])
    with pytest.raises(LedgerError, match="group a cannot become claimed from consumed"):
        ledger.claim(["a"])


def test_late_answer_of_an_expired_lease_is_refused(ledger: Ledger) -> None:
    """A stopped actor that wakes up must not hand in a group that was issued again."""
    ledger.plan("a", 0, "p")
    first = ledger.lease("a", 10.0)
    ledger.expire("a")
    second = ledger.lease("a", 10.0)
    assert not ledger.sampled("a", first, "actor-0", 0)
    assert ledger.sampled("a", second, "actor-1", 0)
    assert not ledger.sampled("a", second, "actor-1", 0)
    assert ledger.num_leases("a") == 2


def test_issued_is_consumed_dropped_and_in_flight(ledger: Ledger) -> None:
    """The balance is what says that no group was lost."""
    for group_id in ("a", "b", "c"):
        _until_ready(ledger, group_id)
    ledger.claim(["a", "b"])
    ledger.consume(["a"])
    ledger.drop("b", "no spread")
    counts = ledger.counts()
    assert (counts.issued, counts.consumed, counts.dropped, counts.in_flight) == (3, 1, 1, 1)
    assert counts.is_balanced
    assert ledger.drop_reasons() == {"no spread": 1}


def test_ledger_survives_its_process(tmp_path: Path) -> None:
    """A killed driver must find what it had issued."""
    first = open_ledger(tmp_path / "ledger.sqlite")
    _until_ready(first, "a")
    first.close()
    assert open_ledger(tmp_path / "ledger.sqlite").state("a") == "ready"


def test_resume_forgets_steps_it_will_issue_again(ledger: Ledger) -> None:
    """Groups of steps after the checkpoint are issued anew with the same ids."""
    ledger.plan("000000-00", 0, "p")
    ledger.plan("000001-00", 1, "p")
    assert ledger.forget_from(1) == 1
    ledger.plan("000001-00", 1, "p")
    assert ledger.counts().issued == 2


def test_group_id_is_planned_once(ledger: Ledger) -> None:
    """Two groups of one id could not be told apart afterwards."""
    ledger.plan("a", 0, "p")
    with pytest.raises(LedgerError, match="already planned"):
        ledger.plan("a", 0, "p")


def test_rewind_makes_later_groups_ready_again_where_their_data_is_kept(ledger: Ledger) -> None:
    """A lost learner costs optimiser steps; a rollout only where its data is gone too."""
    for group_id, step in (("done", 0), ("kept", 1), ("gone", 1), ("uniform", 1), ("flying", 2)):
        ledger.plan(group_id, step, "p")
        if group_id == "flying":
            ledger.lease(group_id, 60.0)
            continue
        _bring_to_ready(ledger, group_id)
        ledger.claim([group_id])
        if group_id == "uniform":
            ledger.drop(group_id, NO_SPREAD)
        else:
            ledger.consume([group_id])
    ledger.rewind(1, kept={"kept", "uniform"}, in_flight={"flying"})
    assert ledger.states_from(0) == {
        "done": "consumed",
        "flying": "leased",
        "gone": "planned",
        "kept": "ready",
        "uniform": "ready",
    }
    ledger.rewind(1, kept=set())
    assert ledger.state("flying") == "planned"


def test_rewind_forgets_evaluations_and_keeps_quarantine(ledger: Ledger) -> None:
    """An evaluation is made again under its old names; a deadly prompt stays out."""
    ledger.plan("heldout-000002-000", 1, "h", trains=False)
    ledger.plan("bad", 1, "b")
    ledger.quarantine("b", "killed three actors")
    ledger.drop("bad", QUARANTINED)
    ledger.rewind(1, kept=set())
    assert ledger.states_from(0) == {"bad": "dropped"}
    assert ledger.quarantined() == {"b": "killed three actors"}


def test_publishes_of_every_incarnation_are_remembered(ledger: Ledger) -> None:
    """A group sampled before the learner was lost is still what was published then."""
    assert ledger.count("learner_starts") == 1
    ledger.published(1, 3, "a")
    assert ledger.count("learner_starts") == 2
    ledger.published(2, 3, "b")
    ledger.published(2, 4, "c")
    assert ledger.publishes(3) == {(3, "a"), (3, "b"), (4, "c")}
    assert ledger.publishes(4) == {(4, "c")}


def test_snapshot_is_a_ledger_of_its_own(ledger: Ledger, tmp_path: Path) -> None:
    _until_ready(ledger, "a")
    ledger.snapshot(tmp_path / "copy.sqlite")
    ledger.claim(["a"])
    copy = open_ledger(tmp_path / "copy.sqlite")
    assert copy.state("a") == "ready"
    assert copy.account() == [("a", 0, "p", "ready", 0, None)]
    copy.close()
