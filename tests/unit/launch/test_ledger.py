"""The ledger's promise: every group has one life, and the sum always balances."""

from pathlib import Path

import pytest

from rlvid.launch.ledger import Ledger, LedgerError, open_ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return open_ledger(tmp_path / "ledger.sqlite")


def _until_ready(ledger: Ledger, group_id: str) -> None:
    ledger.plan(group_id, 0, "p")
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
