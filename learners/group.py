"""The gang of learner ranks: one placement group, started, asked and ended together.

Owned by the driver. Every call goes to all ranks, since each is a collective of theirs; every wait
has a deadline, and an error names the rank. Ray notices a dead rank at once and a stuck one never.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlvid.algorithms.score_table import RewardTable
from rlvid.config import Recipe
from rlvid.learners import checkpoint
from rlvid.learners.ray_actor import LearnerActor
from rlvid.learners.rl import RlSettings, rl_settings
from rlvid.learners.sft import SftSettings, sft_settings
from rlvid.learners.trainee import learner_device
from rlvid.models.policy import Policy
from rlvid.records import StepReport, WeightsManifest
from rlvid.weights import owner_of

GRACE_S = 2.0
"""Between the first rank's failure and the report of it."""
RANK_LOST = (RayActorError, OutOfMemoryError)
"""What Ray raises for a dead rank; one that its memory monitor killed is no RayActorError."""


class LearnerLostError(RuntimeError):
    """A rank died or is stuck; the gang must be started again from the last checkpoint."""


class LearnerGroup:
    """Learner ranks as one."""

    def __init__(self, settings: RlSettings | SftSettings) -> None:
        """Start the ranks; they load while the caller goes on, until `wait_ready`."""
        learner = settings.trainee.learner
        self._learner = learner
        bundle = {"CPU": learner.num_cpus}
        if learner.num_gpus:
            bundle["GPU"] = learner.num_gpus
        self._placement = placement_group([bundle] * learner.num_ranks, strategy="PACK")
        accelerator = learner_device(settings.trainee.model, learner).type
        self._ranks = [
            LearnerActor.options(  # type: ignore[attr-defined, unused-ignore]
                num_cpus=learner.num_cpus,
                num_gpus=learner.num_gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._placement, placement_group_bundle_index=rank
                ),
                runtime_env={
                    "env_vars": {
                        "RANK": str(rank),
                        "WORLD_SIZE": str(learner.num_ranks),
                        "LOCAL_RANK": "0",
                        "DS_ACCELERATOR": accelerator,
                        "OMP_NUM_THREADS": str(settings.trainee.num_threads),
                    }
                },
            ).remote(settings)
            for rank in range(learner.num_ranks)
        ]
        # A reference given as an argument arrives resolved, so nothing waits here.
        endpoint = self._ranks[0].endpoint.remote()
        self._opening = [rank.open.remote(endpoint) for rank in self._ranks]

    @classmethod
    def start_rl(cls, recipe: Recipe, policy: Policy) -> LearnerGroup:
        """Start the learner of the `grpo` phase."""
        return cls(rl_settings(recipe, policy))

    @classmethod
    def start_sft(cls, recipe: Recipe, policy: Policy, folder: Path) -> LearnerGroup:
        """Start the learner of the `sft` phase; encoded clips are kept in `folder`."""
        return cls(sft_settings(recipe, policy, folder))

    def wait_ready(self, deadline_s: float) -> None:
        """Block until every rank has loaded its policy.

        Raises:
            LearnerLostError: a rank died or did not answer in time.
        """
        self._wait(self._opening, deadline_s, "loading the policy")

    def train(
        self,
        group_refs: Sequence[Any],
        rewards: RewardTable,
        *,
        step: int,
    ) -> StepReport:
        """Train on scored groups; every rank fetches its own share of them.

        Args:
            group_refs: object references of RolloutGroups, owned by the driver, in the order of
                `rewards.group_ids`.
            rewards: of all of them.
        """
        references = dict(zip(rewards.group_ids, group_refs, strict=True))
        calls = [rank.train.remote(references, rewards, step) for rank in self._ranks]
        reports: list[StepReport] = self._wait(calls, self._learner.deadline_s, f"step {step}")
        return reports[0]

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        """Take SFT steps `first` to `last` - 1; one call for many steps spares the round trips."""
        calls = [rank.train_steps.remote(first, last) for rank in self._ranks]
        deadline_s = self._learner.deadline_s * max(last - first, 1)
        reports: list[list[StepReport]] = self._wait(
            calls, deadline_s, f"steps {first} to {last - 1}"
        )
        return reports[0]

    def publish(
        self, version: int, *, incarnation: int = 0, use_ema: bool = False
    ) -> tuple[WeightsManifest, list[Any]]:
        """Return the manifest and one object reference per bucket, owned by the caller.

        Args:
            incarnation: starts of the learner in the run; it orders publishes at the actors.
        """
        calls = [rank.publish.remote(version, incarnation, use_ema) for rank in self._ranks]
        manifest: WeightsManifest = self._wait(
            calls, self._learner.deadline_s, f"publishing version {version}"
        )[0]
        buckets = [
            self._ranks[owner_of(bucket.index, len(self._ranks))].bucket.remote(bucket.index)
            for bucket in manifest.buckets
        ]
        for rank in self._ranks:
            rank.release_buckets.remote()
        return manifest, buckets

    def canary(self, text: str) -> tuple[Any, Any, Any]:
        """Return latents [1, C, F, H, W], sigma [1] and the learner's velocity there."""
        calls = [rank.canary.remote(text) for rank in self._ranks]
        answer: tuple[Any, Any, Any] = self._wait(calls, self._learner.deadline_s, "the canary")[0]
        return answer

    def save_checkpoint(
        self,
        folder: str | Path,
        *,
        step: int,
        keep: int,
        driver_files: Mapping[str, str] | None = None,
    ) -> Path:
        """Write a checkpoint of `step` steps done; the folder must be one all ranks see.

        Args:
            driver_files: name to text of what the caller wants to find in it again.
        """
        temporary = checkpoint.begin(Path(folder).resolve(), step)
        for name, text in (driver_files or {}).items():
            (temporary / name).write_text(text)
        calls = [rank.save.remote(temporary) for rank in self._ranks]
        self._wait(calls, self._learner.deadline_s, f"writing checkpoint {step}")
        return checkpoint.commit(temporary, step=step, keep=keep)

    def load_checkpoint(self, path: str | Path) -> None:
        """Go on from a checkpoint; right after `wait_ready`.

        Digests are verified first: the files of DeepSpeed are pickles, and only bytes that this
        project wrote are opened.
        """
        checkpoint.verify(path)
        calls = [rank.load.remote(Path(path).resolve()) for rank in self._ranks]
        self._wait(calls, self._learner.deadline_s, f"loading {path}")

    def export(self, folder: str | Path) -> None:
        """Write the policy in diffusers' layout, and its average to `<folder>_ema` where kept."""
        calls = [rank.export.remote(Path(folder).resolve()) for rank in self._ranks]
        self._wait(calls, self._learner.deadline_s, f"exporting to {folder}")

    def shutdown(self) -> None:
        """End the ranks and give back their place."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []
        remove_placement_group(self._placement)

    def _wait(self, calls: Sequence[Any], deadline_s: float, doing: str) -> list[Any]:
        """Return all answers; the first failure ends the wait, since the others hang on it."""
        pending = list(calls)
        end = time.monotonic() + deadline_s
        while pending:
            done, pending = ray.wait(pending, timeout=max(end - time.monotonic(), 0.0))
            if not done:
                late = [calls.index(call) for call in pending]
                raise LearnerLostError(
                    f"learner: rank {', '.join(map(str, late))} did not finish {doing} within "
                    f"{deadline_s:g} s. Raise learner.deadline_s, or look at its log"
                )
            failures = {call: error for call in done if (error := _error_of(call)) is not None}
            if failures:
                # A death makes the other ranks fail too: give them a moment, and name the dead one.
                ray.wait(pending or done, num_returns=len(pending or done), timeout=GRACE_S)
                _raise_failure(calls, doing)
        answers: list[Any] = ray.get(list(calls))
        return answers


def _error_of(call: Any) -> Exception | None:
    """Return what a finished call ended in; None for an answer."""
    try:
        ray.get(call, timeout=0.0)
    except (*RANK_LOST, RayTaskError) as error:
        return cast(Exception, error)
    except GetTimeoutError:
        return None
    return None


def _raise_failure(calls: Sequence[Any], doing: str) -> NoReturn:
    """Raise for the rank that died, else for the first that failed."""
    errors = [(rank, error) for rank, call in enumerate(calls) if (error := _error_of(call))]
    for rank, error in errors:
        if isinstance(error, RANK_LOST):
            reason = str(error).splitlines()[0].rstrip(".")
            raise LearnerLostError(
                f"learner: rank {rank} died while {doing}: {reason}. Resume the run: it goes on "
                "from the last checkpoint"
            ) from error
    rank, error = errors[0]
    cause = error.cause if isinstance(error, RayTaskError) else None
    if not isinstance(cause, Exception):
        raise error
    cause.add_note(f"learner rank {rank}, while {doing}")
    raise cause from error
