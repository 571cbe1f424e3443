"""The `weights` section: how the learner's weights reach the rollout actors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section


class WeightsConfig(Section):
    """Transport and proofs of a publish."""

    transport: Literal["object_store", "shared_folder", "nccl"] = "object_store"
    """object_store: one object per bucket in Ray's store, any number of actors, late ones too;
    shared_folder: files that actors without Ray can read; nccl: a broadcast from GPU to GPU over a
    process group of our own, for large models and a fleet that seldom changes."""
    bucket_mb: int = Field(default=64, ge=1)
    """MiB of one bucket, which is all that a rank holds whole of a model sharded by ZeRO 3."""
    folder: str | None = None
    """For `shared_folder`: one of this run alone that all nodes see."""
    deadline_s: float = Field(default=120.0, gt=0.0)
    """Seconds an actor may take for a publish before it is replaced; and in which the members of a
    broadcast must meet, and each of its buckets must arrive."""
    verify_live_every: int = Field(default=1, ge=0)
    """Versions between digests of the parameters that sample, taken beside the sampling; 0 never.
    What arrives is always verified."""
    canary_every: int = Field(default=10, ge=0)
    """Versions between comparisons of each actor's velocity on a fixed input with the learner's;
    at the start and for a joining actor always; 0 only then."""

    @model_validator(mode="after")
    def _check(self) -> WeightsConfig:
        if (self.folder is not None) != (self.transport == "shared_folder"):
            raise ValueError(
                f"folder goes with transport shared_folder, got transport {self.transport!r} and "
                f"folder {self.folder!r}; set both or none"
            )
        return self
