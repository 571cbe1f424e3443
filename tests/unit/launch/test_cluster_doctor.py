"""What the doctor concludes from what nodes say; `tests/bench/three_nodes.py` asks real ones."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from rlvid.launch import cluster_findings
from rlvid.launch.finding import Finding, Note
from rlvid.launch.node_report import NodeAnswer, NodeReport, versions_here


def answer(
    name: str,
    *,
    disk: str = "plenty",
    asked_at: float = 100.0,
    is_token_asked: bool = True,
    versions: Mapping[str, str] | None = None,
    store_mb: float = 1000.0,
) -> NodeAnswer:
    """A node that was asked at 100 s, examined itself for 5 s and was heard at 106 s."""
    report = NodeReport(
        findings=[Finding(check="disk", state="ok", text=disk)],
        versions=dict(versions if versions is not None else versions_here()),
        is_token_asked=is_token_asked,
        asked_at=asked_at,
        took_s=5.0,
    )
    return NodeAnswer(
        name=name, store_mb=store_mb, num_gpus=0, sent_at=100.0, received_at=106.0, report=report
    )


def test_what_all_nodes_say_is_said_once() -> None:
    same = list(cluster_findings.merge([answer("a"), answer("b")]))
    assert [(finding.check, finding.text) for finding in same] == [("disk", "plenty")]
    different = list(cluster_findings.merge([answer("a"), answer("b"), answer("c", disk="little")]))
    assert [finding.check for finding in different] == ["disk on a, b", "disk on c"]


def test_a_node_that_gives_no_answer_is_broken() -> None:
    lost = NodeAnswer(name="b", store_mb=1000.0, num_gpus=0, error="no answer within 300 s")
    found = list(cluster_findings.merge([answer("a"), lost]))
    assert [(f.check, f.state) for f in found] == [("node b", "broken"), ("disk", "ok")]


def test_a_package_of_another_version_is_named_with_its_node() -> None:
    ours = versions_here()
    assert "the same on 2 nodes" in cluster_findings.compare_versions([answer("a"), answer("b")])
    other = answer("b", versions={**ours, "torch": "1.0", "ray": ""})
    with pytest.raises(ValueError, match=r"torch 1\.0 on b, .*ray missing on b"):
        cluster_findings.compare_versions([answer("a"), other])


@pytest.mark.parametrize(("asked_at", "off"), [(100.0, 0), (101.0, 0), (103.0, 2.0), (97.0, 3.0)])
def test_a_clock_is_wrong_when_no_delay_explains_it(asked_at: float, off: float) -> None:
    """It was read between 100 and 101 s: the answer came at 106 s, after 5 s of work."""
    found = cluster_findings.compare_clocks([answer("a"), answer("b", asked_at=asked_at)])
    if not off:
        assert isinstance(found, str)
    else:
        assert isinstance(found, Note)
        assert f"b is off by {off:.1f} s" in found.text


def test_a_cluster_open_to_everybody_is_said_to_be() -> None:
    assert isinstance(cluster_findings.judge_token([answer("a")]), str)
    found = cluster_findings.judge_token([answer("a"), answer("b", is_token_asked=False)])
    assert isinstance(found, Note)
    assert "none on b" in found.text


def test_an_object_store_that_holds_no_group_is_broken() -> None:
    assert cluster_findings.judge_stores([answer("a")]) == "1,000 MB on a"
    with pytest.raises(ValueError, match="64 MB on b"):
        cluster_findings.judge_stores([answer("a"), answer("b", store_mb=64.0)])


def test_a_run_asks_the_doctor_only_about_a_cluster_that_is_up() -> None:
    from rlvid.launch.cli_doctor import examine_before_run

    with pytest.raises(ValueError, match=r"cluster\.address, got none"):
        examine_before_run(None)
