"""What an actor's process runs: one of several workers behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor

from rlvid.config import LearnerConfig, ModelConfig, WeightsConfig
from rlvid.config.inference import InferenceConfig
from rlvid.models.policy import Policy
from rlvid.plugins import resolve
from rlvid.records import GroupTask, RolloutGroup, WeightsManifest, WeightsReceipt
from rlvid.weights import Bucket, WeightsPart

if TYPE_CHECKING:
    from rlvid.actors.gang_peers import GangSettings
    from rlvid.actors.rollout_worker import RolloutWorker

WORKERS = {
    "diffusion": "rlvid.actors.rollout_worker:open_rollout_worker",
    "sleeping": "rlvid.actors.sleeping:open_sleeping_worker",
}
IMPORTED_LATE: Mapping[str, tuple[str, ...]] = {
    "diffusion": ("diffusers.pipelines.wan.pipeline_wan", "transformers.models.umt5.modeling_umt5")
}
"""What a worker imports no sooner than it loads its policy."""


class Worker(Protocol):
    """Samples groups with the newest weights it was given; see RolloutWorker for each method.

    `stage` and `num_steps` are called from other threads while `sample` runs.
    """

    @property
    def live(self) -> tuple[int, int]: ...

    @property
    def num_steps(self) -> int: ...

    def sample(self, task: GroupTask) -> RolloutGroup: ...

    def stage(
        self, manifest: WeightsManifest, parts: Sequence[Bucket | WeightsPart]
    ) -> WeightsReceipt: ...

    def use_policy(self, policy: Policy) -> None: ...

    def canary(self, latents: Tensor, sigma: Tensor, text: str) -> Tensor: ...


class OpenWorker(Protocol):
    """A factory that `rollout.worker` may name."""

    def __call__(
        self,
        policy: Policy,
        model_config: ModelConfig,
        learner_config: LearnerConfig | None,
        *,
        actor_id: str,
        num_threads: int,
        weights_config: WeightsConfig | None,
        options: Mapping[str, Any] | None,
    ) -> Worker: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What an actor's process is given to open its worker with."""

    use: str
    """`rollout.worker`."""
    policy: Policy
    model_config: ModelConfig
    learner_config: LearnerConfig | None
    weights_config: WeightsConfig | None
    num_threads: int
    options: Mapping[str, Any] = field(default_factory=dict)
    inference: InferenceConfig = InferenceConfig()
    """Of the diffusion worker, see `RolloutConfig.inference`."""
    gang: GangSettings | None = None
    """Of the diffusion worker: the processes it samples with; None samples alone."""


def prepare_worker(use: str) -> None:
    """Import what opening such a worker will need.

    Raises:
        ValueError: `use` names nothing.
    """
    resolve(use, WORKERS, where="rollout.worker")
    for module in IMPORTED_LATE.get(use, ()):
        import_module(module)


def open_worker(settings: WorkerSettings, actor_id: str) -> Worker:
    """Load the policy.

    Raises:
        ValueError: `rollout.worker` names nothing, or what it names cannot be opened so.
        GangError: a process that it is to sample with did not start or load.
    """
    if settings.gang is None:
        return _open_alone(settings, actor_id)
    from rlvid.actors.gang import Gang
    from rlvid.actors.gang_peers import start_peers

    peers = start_peers(  # which load while this process does
        settings.gang,
        settings.policy,
        settings.model_config,
        settings.learner_config,
        num_threads=settings.num_threads,
    )
    gang = Gang(peers)
    try:
        worker = cast("RolloutWorker", _open_alone(settings, actor_id))
        worker.join(gang)
    except BaseException:
        gang.close()
        raise
    return worker


def _open_alone(settings: WorkerSettings, actor_id: str) -> Worker:
    factory = cast(OpenWorker, resolve(settings.use, WORKERS, where="rollout.worker"))
    worker = factory(
        settings.policy,
        settings.model_config,
        settings.learner_config,
        actor_id=actor_id,
        num_threads=settings.num_threads,
        weights_config=settings.weights_config,
        options=settings.options,
    )
    if settings.inference != InferenceConfig():  # RolloutConfig has it for no other worker
        cast("RolloutWorker", worker).optimise(settings.inference)
    return worker
