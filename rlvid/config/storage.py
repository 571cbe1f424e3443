"""The `storage` section: what a run keeps on disk between checkpoints."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlvid.config.base import Section, refuse_unread


class StorageConfig(Section):
    """Scored groups on disk, so that a restart samples none of them again."""

    keep_groups: bool = True
    """Write every scored group into the run folder; False samples them again after a restart."""
    max_mb: float = Field(default=100_000.0, gt=0.0)
    """Megabytes that groups may take beside the checkpoints' share of them. Above it those that
    were learned from longest ago go, and are sampled again if the learner is lost; groups that
    nobody learned from yet stay, whatever they take."""
    disk_deadline_s: float = Field(default=60.0, gt=0.0)
    """Seconds a group's write may take. A slower one is counted and warned of; training goes on,
    and until it is written the group would be sampled again after a restart."""
    max_writes_in_flight: int = Field(default=2, ge=1)
    """Groups at the writer at once; more wait in the object store."""

    @model_validator(mode="after")
    def _check(self) -> StorageConfig:
        if not self.keep_groups:
            unread = ("max_mb", "disk_deadline_s", "max_writes_in_flight")
            refuse_unread(self, unread, "where keep_groups is false")
        return self
