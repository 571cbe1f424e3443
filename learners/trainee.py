"""A policy in training on one rank: model, ZeRO engine, average; what RL and SFT share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlvid.config import LearnerConfig, ModelConfig, WeightsConfig
from rlvid.flow.prompt_condition import canary_condition
from rlvid.learners import publish as publishing
from rlvid.learners.ema import Ema
from rlvid.learners.schedule import learning_rate
from rlvid.learners.zero_engine import ZeroEngine, join_ranks
from rlvid.models.base import VideoModel
from rlvid.models.policy import Policy, open_policy
from rlvid.records import WeightsManifest
from rlvid.seeds import derive_seed
from rlvid.weights import Bucket, base_digest, canary_tolerance, count_bound, merge_digests

CANARY_SIGMA = 0.7
_STATE_FILE = "learner.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraineeSettings:
    """What it takes to open a policy for training."""

    policy: Policy
    model: ModelConfig
    learner: LearnerConfig
    weights: WeightsConfig = WeightsConfig()
    seed: int
    """The recipe's; the adapter's start is derived from it."""
    total_steps: int
    """Optimiser steps of the phase, for the learning rate's cosine."""
    num_threads: int = 1
    initialise: bool = False
    """Start the transformer from random weights."""


class Trainee:
    """Holds the policy and takes optimiser steps on it."""

    def __init__(
        self,
        settings: TraineeSettings,
        model: VideoModel | None = None,
        *,
        before_wrapping: Callable[[VideoModel], None] = lambda model: None,
    ) -> None:
        """Open and wrap the policy; a collective of all ranks.

        Args:
            model: an opened model to use instead of `settings.policy`; its transformer is bare.
            before_wrapping: called with the model ready for training but not yet wrapped, for those
                who want a copy.
        """
        torch.set_num_threads(settings.num_threads)
        self.settings = settings
        learner = settings.learner
        device = learner_device(settings.model, learner)
        self.model = model or open_policy(settings.policy, settings.model, str(device))
        transformer = self.model.transformer
        if settings.initialise:
            _initialise(transformer, derive_seed(settings.seed, "initialise"))
        if learner.mode == "lora":
            from rlvid.models.lora import add_lora

            add_lora(transformer, learner.lora, seed=derive_seed(settings.seed, "lora"))
        else:
            transformer.requires_grad_(True)
        self.base_digest = base_digest(transformer, learner.mode)
        num_bound = count_bound(transformer, learner.mode)
        if learner.sequence_parallel > 1:
            _share_clips(transformer, learner, device)
        before_wrapping(self.model)
        self.engine = ZeroEngine(transformer, learner, device=device)
        self.model.transformer = self.engine.module
        self.ema = Ema(self.engine, learner.ema) if learner.ema is not None else None
        self.publisher = publishing.Publisher(
            kind=learner.mode,
            base_digest=self.base_digest,
            num_bound=num_bound,
            canary_limit=canary_tolerance(settings.model.dtype),
            bucket_mb=settings.weights.bucket_mb,
        )
        self._moved = publishing.Moved()
        self.publish_metrics: dict[str, float] = {}
        """Seconds of the last publish, of the slowest rank."""
        self.optimizer_steps = 0
        """Optimiser steps taken."""
        # A process starts from a seed of its own choice; two runs of a recipe must be one run.
        torch.manual_seed(derive_seed(settings.seed, "rank", self.rank, 0))

    @property
    def rank(self) -> int:
        return self.engine.ranks.rank

    def next_learning_rate(self) -> float:
        settings = self.settings
        return learning_rate(settings.learner.optimizer, self.optimizer_steps, settings.total_steps)

    def step(self, *, divisor: float = 1.0) -> float:
        """Take the optimiser step on the accumulated gradient; return its norm before clipping.

        Args:
            divisor: what the gradient is still divided by (`ZeroEngine.step`).
        """
        learning_rate = self.next_learning_rate()
        norm = self.engine.step(learning_rate, divisor=divisor)
        self._moved.after_step(learning_rate, norm)
        if self.ema is not None:
            self.ema.after_step(self.optimizer_steps)
        self.optimizer_steps += 1
        return norm

    def publish(
        self,
        version: int,
        *,
        incarnation: int = 0,
        use_ema: bool = False,
        source: publishing.WeightsSource | None = None,
    ) -> tuple[WeightsManifest, dict[int, Bucket]]:
        """Return the manifest of a whole publish and this rank's buckets by index; a collective.

        The buckets are valid until `publisher.release(version)`.

        Args:
            source: what to publish instead of the live parameters.

        Raises:
            WeightsError: the steps since the last publish changed nothing, or none was taken and
                the weights differ.
        """
        source = source or self._source(use_ema)
        self.publisher.snapshot(source, incarnation=incarnation, version=version)
        self._moved.after_snapshot(is_live=source is self.engine)
        return self.settle_publish(version), self.publisher.buckets(version)

    def settle_publish(self, version: int) -> WeightsManifest:
        """Return the manifest of a snapshot once all ranks have hashed it; a collective.

        Raises:
            WeightsError: as `publish`.
        """
        part = self.publisher.part(self.rank, version)
        everybody = self.engine.ranks.gather_json([list(part.digests.items()), part.metrics()])
        manifest = merge_digests(part.head, [dict(digests) for digests, _ in everybody])
        self.publish_metrics = {
            name: max(metrics[name] for _, metrics in everybody) for name in part.metrics()
        }
        self._moved.check(manifest)
        return manifest

    def export(self, folder: Path) -> None:
        """Write the policy into `folder`, and its average into `<folder>_ema`; a collective."""
        targets = [(False, folder)]
        if self.ema is not None:
            targets.append((True, folder.with_name(f"{folder.name}_ema")))
        for use_ema, target in targets:
            publishing.export(
                self._source(use_ema),
                target,
                is_root=self.rank == 0,
                policy=self.settings.policy,
                model_config=self.settings.model,
                learner_config=self.settings.learner,
            )

    def canary(self, text: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents [1, C, F, H, W], sigma [1] and the velocity there; a collective."""
        config = self.settings.model
        shape = self.model.latent_shape(config.num_frames, config.height, config.width)
        latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        sigma = torch.tensor([CANARY_SIGMA])
        device = self.engine.device
        with torch.no_grad():
            condition = canary_condition(self.model, text, shape)
            velocity = self.model.velocity(latents.to(device), sigma.to(device), condition)
        return latents, sigma, velocity.cpu()

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Write everything a resume needs into `folder`; a collective.

        Args:
            state: JSON values of the caller, equal on all ranks.
        """
        from safetensors.torch import save_file

        self.engine.save(folder)
        if self.ema is not None:
            self.ema.save(folder)
        save_file(_rng_state(), folder / f"rng-{self.rank:04d}.safetensors")
        if self.rank == 0:
            tree = {
                "layout": self._layout(),
                "optimizer_steps": self.optimizer_steps,
                "state": dict(state),
            }
            (folder / _STATE_FILE).write_text(json.dumps(tree, indent=1))
        self.engine.ranks.barrier()

    def load(self, folder: Path) -> dict[str, Any]:
        """Read what `save` wrote, right after opening; return the caller's state. A collective.

        Another number of ranks and another ZeRO stage than wrote it hold the same values, bit for
        bit. A rank that was not there before starts its random numbers from the recipe's seed.

        Raises:
            ValueError: it was written with another mode, or with an average where there is none.
        """
        from safetensors.torch import load_file

        tree = json.loads((folder / _STATE_FILE).read_text())
        written, mine = tree["layout"], self._layout()
        fixed = ("mode", "has_ema")
        if any(written[key] != mine[key] for key in fixed):
            raise ValueError(
                f"checkpoint {folder}: learner: expected {mine} (the recipe's), got {written}; "
                f"ranks and stage may change, {' and '.join(fixed)} may not"
            )
        steps = int(tree["optimizer_steps"])
        self.engine.load(folder, num_steps=steps)
        if self.ema is not None:
            self.ema.load(folder)
        if self.rank < written["num_ranks"]:
            _set_rng_state(load_file(folder / f"rng-{self.rank:04d}.safetensors"))
        else:
            torch.manual_seed(derive_seed(self.settings.seed, "rank", self.rank, steps))
        self.optimizer_steps = steps
        self._moved.forget()
        state: dict[str, Any] = tree["state"]
        return state

    def _source(self, use_ema: bool) -> ZeroEngine | Ema:
        if not use_ema:
            return self.engine
        if self.ema is None:
            raise ValueError("learner.ema: is null, so there is no average to publish; set it")
        return self.ema

    def _layout(self) -> dict[str, Any]:
        learner = self.settings.learner
        return {
            "num_ranks": self.engine.ranks.world_size,
            "zero_stage": learner.zero_stage,
            "mode": learner.mode,
            "has_ema": learner.ema is not None,
        }


def learner_device(model: ModelConfig, learner: LearnerConfig) -> torch.device:
    """Return where a rank trains: "auto" is cuda where the recipe gives the rank a GPU."""
    if model.device != "auto":
        return torch.device(model.device)
    return torch.device("cuda" if learner.num_gpus > 0 else "cpu")


def _share_clips(transformer: nn.Module, learner: LearnerConfig, device: torch.device) -> None:
    """Spread the tokens of each clip over the ranks of a group; a collective of all ranks.

    Raises:
        ValueError: nobody knows how, for this transformer, or its heads do not divide.
    """
    from rlvid.models.sequence_parallel import open_sequence_group, spread_tokens

    join_ranks(device, timeout_s=learner.deadline_s)
    group = open_sequence_group(learner.sequence_parallel, timeout_s=learner.deadline_s)
    spread_tokens(transformer, group)


def _initialise(transformer: nn.Module, seed: int) -> None:
    """Redraw every parameter as the class does when it is built."""
    kind: Any = type(transformer)
    source: Any = transformer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = kind.from_config(source.config)
    transformer.load_state_dict(fresh.state_dict())


def _rng_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
