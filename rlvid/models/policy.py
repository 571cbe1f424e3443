"""A policy as files: a pipeline folder and, after LoRA training, the adapter that goes on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvid.config import ModelConfig
from rlvid.models import load_model
from rlvid.models.base import VideoModel
from rlvid.models.student import StudentSampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Where the weights of a policy lie."""

    model_path: str
    """Pipeline folder in diffusers layout, or "tiny"."""
    lora_path: str | None = None
    """Folder of a LoRA in diffusers' file format, fused into the transformer when loaded."""

    @property
    def sampling(self) -> StudentSampling | None:
        """How a distilled student is sampled, read from the folder; None of any other policy."""
        return StudentSampling.load(Path(self.lora_path or self.model_path))

    def to_json(self) -> dict[str, Any]:
        return {"model_path": self.model_path, "lora_path": self.lora_path}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Policy:
        return cls(model_path=tree["model_path"], lora_path=tree["lora_path"])


def open_policy(policy: Policy, config: ModelConfig, device: str | None = None) -> VideoModel:
    """Load the policy; a LoRA is fused, so the model has the parameter names of its base.

    Raises:
        ValueError: a folder is missing or holds no such weights.
    """
    model = load_model(config.model_copy(update={"path": policy.model_path}), device)
    if policy.lora_path is not None:
        if not Path(policy.lora_path).is_dir():
            raise ValueError(
                f"policy: no LoRA folder at {policy.lora_path!r}; "
                "it is written by a training phase into <run>/phases/<n>_<phase>/policy"
            )
        from rlvid.models.lora import fuse_lora

        fuse_lora(model.transformer, policy.lora_path)
    return model
