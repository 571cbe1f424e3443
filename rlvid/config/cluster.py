"""The `cluster` section: the Ray cluster of a run."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlvid.config.base import Section


class ClusterConfig(Section):
    """Where Ray runs."""

    address: str | None = Field(default=None, min_length=1)
    """None starts Ray on this machine for the length of the run; else an address to join."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local cluster; None counts what the recipe's roles ask for."""
    object_store_mb: int = Field(default=512, ge=100)
    """Shared memory of a local cluster for groups and published weights. A cluster that is joined
    has what `ray start` gave its nodes: with an address it is said that this is not looked at."""
    metrics_port: int | None = Field(default=None, ge=1024, le=65535)
    """Port of Ray's Prometheus metrics on a local cluster; None takes a free one. Ray shows them on
    all interfaces, to anybody who can reach the port."""
    threads_per_role: int = Field(default=1, ge=1)
    """torch threads of each process; two busy-waiting processes on two cores are far slower."""
    start_deadline_s: float = Field(default=240.0, gt=0.0)
    """Seconds that roles may take to find room and to load their models. Nodes that an autoscaler
    brings for a `node_group` take minutes, of these."""
    grace_s: float = Field(default=110.0, gt=0.0)
    """Seconds between a request to make room (SIGTERM, SIGUSR1, a notice) and the kill: phase grpo
    stops issuing groups, drains, writes a checkpoint and exits with status 75 within them. Any
    other phase exits at once, and a resume goes on from its last checkpoint. Below what the
    scheduler grants: Slurm's --signal=...@120, Kubernetes' terminationGracePeriodSeconds."""

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        """Refuse what only `ray start` can settle for a cluster that is joined."""
        for name in ("num_cpus", "metrics_port") if self.address is not None else ():
            if (got := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name}: is of a cluster that the run starts, got {got} with address "
                    f"{self.address!r}; give it to `ray start`, and leave it out"
                )
        return self
