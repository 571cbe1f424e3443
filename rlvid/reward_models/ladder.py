"""Makes the clips of the ladder's rungs: true clips through the VAE, and samples of policies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config import ModelConfig
from rlvid.config.reward_model import RungConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import initial_noise, sample_ode
from rlvid.models.base import VideoModel
from rlvid.models.noise_levels import sampling_sigmas
from rlvid.models.policy import Policy, open_policy

BATCH = 16
"""Clips sampled at once; part of what makes a clip the same at every call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """How rungs become clips; calling it gives those of one rung, kept in `folder`."""

    rungs: tuple[RungConfig, ...]
    policy: Policy
    """The newest policy of the run."""
    model: ModelConfig
    shift: float | None
    """`rollout.shift`; None is the model's own noise levels."""
    guidance_scale: float
    folder: Path
    """Sampled clips are kept here, so that a resume does not sample again."""

    def __call__(
        self, index: int, texts: Sequence[str], seeds: Sequence[int], true: Tensor
    ) -> Tensor:
        """Return the clips [N, T, 3, H, W] uint8 of rung `index`; see weak.RungClips."""
        rung = self.rungs[index]
        path = self.folder / f"rung_{index}.safetensors"
        policy = Policy(model_path=rung.path) if rung.path else self.policy
        settings = {
            "rung": rung.model_dump(), "policy": policy.to_json(), "seeds": list(map(str, seeds)),
            "texts": list(texts), "shift": self.shift, "guidance_scale": self.guidance_scale,
        }  # fmt: skip
        label = json.dumps(settings, sort_keys=True)
        kept = _kept(path, label)
        if kept is not None:
            return kept
        model = open_policy(policy, self.model)
        clips = (
            _decoded(model, true)
            if rung.source == "decoded"
            else self._sampled(model, rung, texts, seeds)
        )
        part = path.with_suffix(".part")
        save_file({"clips": clips}, part, metadata={"settings": label})
        part.replace(path)
        return clips

    @torch.no_grad()
    def _sampled(
        self, model: VideoModel, rung: RungConfig, texts: Sequence[str], seeds: Sequence[int]
    ) -> Tensor:
        size = (self.model.num_frames, self.model.height, self.model.width)
        shape = model.latent_shape(*size)
        sigmas = sampling_sigmas(self.shift, self.model, rung.num_denoising_steps)
        scale = self.guidance_scale
        made = []
        for start in range(0, len(texts), BATCH):
            rows = texts[start : start + BATCH]
            noise = torch.stack([initial_noise(s, shape) for s in seeds[start : start + BATCH]])
            condition = model.encode_prompts(rows)
            negative = model.encode_prompts([""] * len(rows)) if scale != 1.0 else None

            def velocity(
                latents: Tensor,
                sigma: Tensor,
                condition: Condition = condition,
                negative: Condition | None = negative,
            ) -> Tensor:
                return guided_velocity(model, latents, sigma, condition, negative, scale)

            made.append(_bytes(model.decode(sample_ode(velocity, noise.to(model.device), sigmas))))
        return torch.cat(made)


@torch.no_grad()
def _decoded(model: VideoModel, true: Tensor) -> Tensor:
    made = []
    for start in range(0, len(true), BATCH):
        videos = true[start : start + BATCH].float() / 255.0
        made.append(_bytes(model.decode(model.encode(videos.to(model.device)))))
    return torch.cat(made)


def _kept(path: Path, label: str) -> Tensor | None:
    """Return the clips an earlier attempt kept with the same settings."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if file.metadata().get("settings") != label:
            return None
        clips: Tensor = file.get_tensor("clips")
        return clips


def _bytes(videos: Tensor) -> Tensor:
    return videos.mul(255.0).round().clamp(0, 255).to(torch.uint8).cpu()
