"""The `cluster` section: the Ray cluster of a run."""

from __future__ import annotations

from pydantic import Field

from rlvid.config.base import Section


class ClusterConfig(Section):
    """Where Ray runs."""

    address: str | None = Field(default=None, min_length=1)
    """None starts Ray on this machine for the length of the run; else an address to join."""
    num_cpus: int | None = None
    """Logical CPUs of a local cluster; None counts what the recipe's roles ask for."""
    object_store_mb: int = Field(default=512, ge=100)
    metrics_port: int | None = Field(default=None, ge=1024, le=65535)
    """Port of Ray's Prometheus metrics on a local cluster; None takes a free one. Ray shows them on
    all interfaces, to anybody who can reach the port."""
    threads_per_role: int = Field(default=1, ge=1)
    """torch threads of each process; two busy-waiting processes on two cores are far slower."""
    start_deadline_s: float = Field(default=240.0, gt=0.0)
    """Seconds the actors may take to load their models."""
    grace_s: float = Field(default=110.0, gt=0.0)
    """Seconds between a request to make room (SIGTERM, SIGUSR1, a notice) and the kill: the run
    stops issuing groups, drains, writes a checkpoint and exits with status 75 within them. Below
    what the scheduler grants: Slurm's --signal=...@120, Kubernetes' terminationGracePeriodSeconds.
    """
