"""The sleeping twin of RolloutWorker: given costs and failures, real records, no model.

The pool, the loop and the chaos tests run on it as on the real one, so what they show of
scheduling needs neither weights nor a device.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from rlvid.config import LearnerConfig, ModelConfig, WeightsConfig
from rlvid.config.base import Section
from rlvid.models.policy import Policy
from rlvid.records import GroupTask, Rollout, RolloutGroup, WeightsManifest, WeightsReceipt
from rlvid.seeds import derive_seed
from rlvid.weights import Bucket, WeightsError, WeightsPart


class SleepingOptions(Section):
    """Costs in seconds, and how often a group ends in which failure."""

    sample_s: float = Field(default=1.0, ge=0.0)
    """Of one group; each denoising step takes its part."""
    load_s: float = Field(default=0.0, ge=0.0)
    stage_s: float = Field(default=0.0, ge=0.0)
    die_frac: float = Field(default=0.0, ge=0.0, le=1.0)
    """Groups in the middle of which the process is killed (SIGKILL)."""
    stop_frac: float = Field(default=0.0, ge=0.0, le=1.0)
    """Groups in the middle of which it is stopped (SIGSTOP)."""
    fail_frac: float = Field(default=0.0, ge=0.0, le=1.0)
    """Groups that end in an exception."""
    slow_frac: float = Field(default=0.0, ge=0.0, le=1.0)
    """Groups that take ten times as long."""
    seed: int = 0
    """With the lease id it decides a group's fate; another lease of the group has another."""
    latent_shape: tuple[int, int, int, int] = (1, 1, 2, 2)
    """(C, F, H, W) of the latents it returns."""


class SleepingWorker:
    """Sleeps where RolloutWorker computes."""

    def __init__(self, actor_id: str, options: SleepingOptions) -> None:
        self._actor_id = actor_id
        self._options = options
        self._live: WeightsManifest | None = None
        self._staged: WeightsManifest | None = None
        self._num_steps = 0

    @property
    def live(self) -> tuple[int, int]:
        return self._live.order if self._live else (-1, -1)

    @property
    def num_steps(self) -> int:
        return self._num_steps

    def sample(self, task: GroupTask) -> RolloutGroup:
        """Sleep, then return a group that is a function of the task alone, but for its weights."""
        began = time.perf_counter()
        self._live, self._staged = self._staged or self._live, None
        live = self._live
        options = self._options
        fate = random.Random(derive_seed(options.seed, task.lease_id, "fate")).random()
        ends = _ends(options)
        pace = 10.0 if ends["fail"] <= fate < ends["slow"] else 1.0
        num_steps = task.plan.num_steps
        for step in range(num_steps):
            if step == num_steps // 2:
                self._fail(fate, ends, task)
            until = began + pace * options.sample_s * (step + 1) / num_steps
            time.sleep(max(0.0, until - time.perf_counter()))
            self._num_steps += 1
        return RolloutGroup(
            group_id=task.group_id,
            lease_id=task.lease_id,
            prompt=task.prompt,
            plan=task.plan,
            rollouts=tuple(self._rollout(task, index) for index in range(len(task.noise_seeds))),
            policy_version=live.version if live else -1,
            weights_digest=live.digest if live else "base",
            actor_id=self._actor_id,
            sample_s=time.perf_counter() - began,
            num_forwards=len(task.noise_seeds) * num_steps,
        )

    def stage(
        self, manifest: WeightsManifest, parts: Sequence[Bucket | WeightsPart]
    ) -> WeightsReceipt:
        """Sleep, then sample with this version from the next group on."""
        began = time.perf_counter()
        time.sleep(self._options.stage_s)
        newest = self._staged or self._live
        if newest is not None and manifest.order < newest.order:
            raise WeightsError(
                f"{self._actor_id}: weights version {manifest.version}: expected one newer than "
                f"{newest.version}, which is held; fetch the newest publish"
            )
        self._staged = manifest
        return WeightsReceipt(
            actor_id=self._actor_id,
            version=manifest.version,
            incarnation=manifest.incarnation,
            digest=manifest.digest,
            num_bytes=manifest.num_bytes,
            transport_s=0.0,
            copy_s=time.perf_counter() - began,
            verify_s=0.0,
            swap_s=0.0,
        )

    def use_policy(self, policy: Policy) -> None:
        """Forget the weights; `policy` is not looked at."""
        time.sleep(self._options.load_s)
        self._live = self._staged = None

    def canary(self, latents: Tensor, sigma: Tensor, text: str) -> Tensor:
        """Return zeros: there is no velocity to compare."""
        self._live, self._staged = self._staged or self._live, None
        return torch.zeros_like(latents)

    def _fail(self, fate: float, ends: Mapping[str, float], task: GroupTask) -> None:
        if fate < ends["die"]:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fate < ends["stop"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fate < ends["fail"]:
            raise RuntimeError(f"{self._actor_id}: group {task.group_id} was fated to fail")

    def _rollout(self, task: GroupTask, index: int) -> Rollout:
        num_trained = task.plan.num_recorded
        generator = torch.Generator().manual_seed(task.step_seeds[index])
        latents = torch.randn(self._options.latent_shape, generator=generator)
        trained = latents.expand(num_trained, *latents.shape).clone()
        return Rollout(
            index=index,
            noise_seed=task.noise_seeds[index],
            step_seed=task.step_seeds[index],
            latents=latents,
            trained_latents=trained,
            trained_next_latents=trained,
            behaviour_mean=trained,
            behaviour_log_prob=torch.zeros(num_trained),
        )


def open_sleeping_worker(
    policy: Policy,
    model_config: ModelConfig,
    learner_config: LearnerConfig | None,
    *,
    actor_id: str,
    num_threads: int,
    weights_config: WeightsConfig | None = None,
    options: Mapping[str, Any] | None = None,
) -> SleepingWorker:
    """Open a worker that sleeps as `rollout.worker_options` says."""
    try:
        chosen = SleepingOptions.model_validate(dict(options or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"rollout.worker_options.{where}: {first['msg']}") from error
    torch.set_num_threads(num_threads)
    time.sleep(chosen.load_s)
    return SleepingWorker(actor_id, chosen)


def _ends(options: SleepingOptions) -> dict[str, float]:
    """Return where in [0, 1] each fate ends; they lie one after the other."""
    ends, total = {}, 0.0
    for name in ("die", "stop", "fail", "slow"):
        total += getattr(options, f"{name}_frac")
        ends[name] = total
    return ends
