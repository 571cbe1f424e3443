"""All that a source holds is kept or dropped for a reason; see also `tests.bench.intake_faults`."""

from __future__ import annotations

from pathlib import Path

from tests.unit.data.intake_fuzz import KINDS, FuzzReport, malformed, run_fuzz

NUM_INPUTS = 13 * len(KINDS)
"""Each kind as often; about 400 in all."""


def test_malformed_inputs_are_dropped_for_the_right_reason_and_never_lost(tmp_path: Path) -> None:
    """An exception would stop a run over a million clips; a lost one would never be missed."""
    report = FuzzReport()
    run_fuzz(tmp_path, 0, range(NUM_INPUTS), report)
    assert report.wrong == []
    assert report.inputs == NUM_INPUTS
    assert report.seen == report.kept + report.dropped.total() >= NUM_INPUTS
    assert set(report.by_kind) == set(KINDS)


def test_an_input_follows_from_its_seed_and_index() -> None:
    """So that one of ten thousand can be looked at again."""
    for index in range(len(KINDS)):
        assert malformed(3, index) == malformed(3, index)
    assert malformed(3, 3) != malformed(4, 3)
