"""What a node of a cluster finds about itself, and the driver's record of having asked it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from rlvid.launch.doctor import CHECKS, PACKAGES
from rlvid.launch.finding import Check, Finding, run_check

NODE_CHECKS: dict[str, Check] = {
    name: check for name, check in CHECKS.items() if name not in ("ray", "h264", "model", "cores")
}
"""Ray is up where this is asked; the others hold for a machine that runs the tiny model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What one node found about itself."""

    findings: list[Finding]
    versions: dict[str, str]
    """Of Python, rlvid and every package; "" for what is not installed."""
    is_token_asked: bool
    asked_at: float
    """Its clock when the task began, in seconds since 1970."""
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAnswer:
    """A node, when it was asked by the driver's clock, and its report; an error instead of one."""

    name: str
    store_mb: float
    num_gpus: int
    groups: tuple[str, ...] = ()
    """Its resources that recipes name as `node_group`."""
    sent_at: float = 0.0
    received_at: float = 0.0
    report: NodeReport | None = None
    error: str = ""


def examine_node() -> NodeReport:
    """Run the checks of a machine; on the node, within a Ray task."""
    began, asked_at = time.monotonic(), time.time()
    findings = [run_check(name, check) for name, check in NODE_CHECKS.items()]
    return NodeReport(
        findings=findings,
        versions=versions_here(),
        is_token_asked=os.environ.get("RAY_AUTH_MODE") == "token",
        asked_at=asked_at,
        took_s=time.monotonic() - began,
    )


def versions_here() -> dict[str, str]:
    """Return the versions that have to be the same on all nodes."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import rlvid

    found = {"python": platform.python_version(), "rlvid": rlvid.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found
