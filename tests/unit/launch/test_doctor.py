"""The doctor reports every check and survives each of them."""

from __future__ import annotations

from rlvid.launch.doctor import check_h264, check_package, render
from rlvid.launch.finding import Note, run_check


def test_failing_check_is_reported_with_its_reason() -> None:
    """Whatever a check raises is what is broken; the other checks still run."""

    def broken() -> str:
        raise RuntimeError("no\nsuch device")

    finding = run_check("gpu", broken)
    assert (finding.state, finding.text) == ("broken", "RuntimeError: no such device")


def test_note_does_not_count_as_broken() -> None:
    assert run_check("gpu", lambda: Note("none")).state == "note"


def test_missing_package_says_what_to_install() -> None:
    finding = check_package("no-such-distribution", "json")
    assert finding.state == "broken"
    assert "pip install no-such-distribution" in finding.text


def test_h264_is_really_tried() -> None:
    assert run_check("h264", check_h264).state == "ok"


def test_text_in_brackets_is_shown_as_it_is() -> None:
    """Rich would take [torch] for markup and drop it."""
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    finding = run_check("x", lambda: "extra [torch] found")
    Console(file=out, width=100).print(render([finding]))
    assert "[torch]" in out.getvalue()
