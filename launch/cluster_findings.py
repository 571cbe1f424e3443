"""What the doctor concludes from what the nodes of a cluster say, each and compared."""

from __future__ import annotations

from collections.abc import Iterator

from rlvid.launch.finding import Finding, Note
from rlvid.launch.node_report import NODE_CHECKS, NodeAnswer, versions_here

MAX_CLOCK_S = 1.0
"""Times of one run are laid side by side in its trace and its report."""
MIN_STORE_MB = 256


def merge(answers: list[NodeAnswer]) -> Iterator[Finding]:
    """Yield the nodes' findings, one for all where they say the same."""
    for answer in answers:
        if answer.report is None:
            yield Finding(check=f"node {answer.name}", state="broken", text=answer.error)
    for check in NODE_CHECKS:
        said: dict[tuple[str, str], list[str]] = {}
        for answer in answers:
            for finding in answer.report.findings if answer.report else ():
                if finding.check == check:
                    said.setdefault((finding.state, finding.text), []).append(answer.name)
        for (state, text), names in said.items():
            where = "" if len(said) == 1 else f" on {', '.join(names)}"
            yield Finding(check=check + where, state=state, text=text)


def compare_versions(answers: list[NodeAnswer]) -> str:
    """Return that all nodes have the same; ValueError names what differs and where."""
    by_node = {answer.name: answer.report.versions for answer in answers if answer.report}
    ours = versions_here()
    different = [
        f"{name} {found.get(name) or 'missing'} on {node}, {version or 'missing'} at the driver"
        for node, found in by_node.items()
        for name, version in ours.items()
        if found.get(name) != version
    ]
    if different:
        raise ValueError(f"{'; '.join(different)}. Install launch/environment/ on every node")
    missing = [name for name, found in ours.items() if not found]
    if missing:
        raise ValueError(f"not installed: {', '.join(missing)}; see launch/environment/")
    return f"the same on {len(by_node)} nodes: {len(ours)} packages, rlvid {ours['rlvid']}"


def compare_clocks(answers: list[NodeAnswer]) -> str | Note:
    """Return the largest difference to the driver's clock that can be told; a note when large.

    A node read its clock between the question and the answer less its own time, so a clock within
    those bounds is right as far as anybody can tell.
    """
    off = {"": 0.0}
    for answer in answers:
        if answer.report is not None:
            latest = answer.received_at - answer.report.took_s
            early = answer.sent_at - answer.report.asked_at
            off[answer.name] = max(early, answer.report.asked_at - latest, 0.0)
    worst = max(off, key=off.__getitem__)
    if off[worst] > MAX_CLOCK_S:
        return Note(
            f"{worst} is off by {off[worst]:.1f} s or more: traces and reports will not fit "
            "together; run an NTP client"
        )
    return f"none is off by more than {MAX_CLOCK_S:g} s, as far as can be told"


def judge_token(answers: list[NodeAnswer]) -> str | Note:
    """Return whether Ray asks for a token on every node."""
    without = [a.name for a in answers if a.report and not a.report.is_token_asked]
    if without:
        return Note(
            f"Ray asks for none on {', '.join(without)}: whoever reaches its ports runs code "
            "there. Export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before `ray start`"
        )
    return "Ray asks for one on every node; it is sent in clear text, so keep the network private"


def name_groups(answers: list[NodeAnswer]) -> str:
    """Return which nodes a recipe's `node_group` reaches, by its name."""
    nodes: dict[str, list[str]] = {}
    for answer in answers:
        for group in answer.groups:
            nodes.setdefault(group, []).append(answer.name)
    found = [f"{group} on {', '.join(names)}" for group, names in sorted(nodes.items())]
    return "; ".join(found) or "none: no node has a resource of its own, recipes name no group"


def judge_stores(answers: list[NodeAnswer]) -> str:
    """Return the sizes of the object stores; ValueError when one holds no group."""
    text = ", ".join(f"{answer.store_mb:,.0f} MB on {answer.name}" for answer in answers)
    if any(answer.store_mb < MIN_STORE_MB for answer in answers):
        raise ValueError(f"{text}; expected {MIN_STORE_MB} MB or more: --object-store-memory")
    return text
