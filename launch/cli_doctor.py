"""`rlvid doctor`, and the doctor before a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rlvid.launch.finding import Finding


def add_doctor_command(app: typer.Typer) -> None:
    """Add `rlvid doctor`."""
    app.command(epilog="Examples: rlvid doctor | rlvid doctor --cluster 10.0.0.1:6379 --nodes 4")(
        doctor
    )


def doctor(
    cluster: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster, or auto: every node, and between them."),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Nodes of the cluster to wait for, 5 minutes at most.")
    ] = None,
) -> None:
    """Check this machine, or a cluster: packages, Ray, limits, GPUs; exit 1 if broken."""
    if cluster is None:
        from rlvid.launch.doctor import examine

        findings: Iterable[Finding] = examine()
    else:
        from rlvid.launch.cluster_doctor import examine_cluster

        findings = examine_cluster(cluster, nodes)
    broken = show(findings)
    if broken:
        typer.echo(f"error: broken: {', '.join(broken)}", err=True)
        raise typer.Exit(1)


def examine_before_run(address: str | None) -> None:
    """Look at every node of the cluster that a run is to join.

    Raises:
        ValueError: something is broken; or there is no cluster to look at.
    """
    if address is None:
        raise ValueError(
            "run: --doctor looks at a cluster that is up: expected cluster.address, got none. For "
            "this machine there is `rlvid doctor`"
        )
    from rlvid.launch.cluster_doctor import examine_cluster

    broken = show(examine_cluster(address))
    if broken:
        raise ValueError(
            f"run: --doctor: broken: {', '.join(broken)}; see the table. Repair it, or leave "
            "--doctor out"
        )


def show(findings: Iterable[Finding]) -> list[str]:
    """Print the findings as a table and return the names of those that are broken."""
    from rich.console import Console

    from rlvid.launch.doctor import render

    found = list(findings)
    Console().print(render(found), highlight=False)
    return [finding.check for finding in found if finding.state == "broken"]
