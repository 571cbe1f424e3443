"""The gang of learner ranks: one placement group, started, asked and ended together.

Owned by the driver. Every call goes to all ranks, since each is a collective of theirs. Calls that
`begin_` something queue up at the ranks in the order in which they were begun and return at once;
the driver may give the last chunk of a step, the publish and the first chunks of the next step
without waiting for any of them. Every call has a deadline, counted from when those before it have
ended, and an error names the rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlvid.algorithms.score_table import RewardTable
from rlvid.bell import Bell
from rlvid.config import Recipe
from rlvid.config.distillation import StageName
from rlvid.config.node_group import said_of, share_of
from rlvid.learners import checkpoint
from rlvid.learners.calls import LearnerLostError
from rlvid.learners.delivery import Delivery
from rlvid.learners.distill import DistillSettings, distill_settings
from rlvid.learners.dpo import DpoSettings, dpo_settings
from rlvid.learners.enhancer_settings import EnhancerSettings
from rlvid.learners.gang_loop import GangLoop, Pending
from rlvid.learners.ray_actor import ChunkPlace, LearnerActor
from rlvid.learners.rl import RlSettings, rl_settings
from rlvid.learners.sft import SftSettings, sft_settings
from rlvid.learners.trainee import learner_device
from rlvid.models.policy import Policy
from rlvid.process_env import runtime_env_of
from rlvid.records import StepPlan, StepReport, WeightsManifest

__all__ = ["LearnerGroup", "LearnerLostError", "Pending"]

ROOM_S = 1.0
"""In which Ray answers whether the ranks have their places; asked with 0, it never says yes."""


class LearnerGroup:
    """Learner ranks as one."""

    def __init__(
        self,
        settings: RlSettings | SftSettings | DpoSettings | EnhancerSettings | DistillSettings,
        *,
        bell: Bell | None = None,
    ) -> None:
        """Start the ranks; they load while the caller goes on, until `wait_ready`.

        Args:
            bell: rung when a call has ended.
        """
        learner = settings.trainee.learner
        self._learner = learner
        bundle = {"CPU": learner.num_cpus, **share_of(learner.node_group)}
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
                runtime_env=runtime_env_of({"OMP_NUM_THREADS": str(settings.trainee.num_threads)}),
            ).remote(
                settings,
                {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(learner.num_ranks),
                    "LOCAL_RANK": "0",
                    "DS_ACCELERATOR": accelerator,
                },
            )
            for rank in range(learner.num_ranks)
        ]
        self.delivery = Delivery(
            settings.trainee.weights, self._ranks, host=ray.util.get_node_ip_address()
        )
        self._loop = GangLoop(learner.num_ranks, stall_s=learner.stall_s, bell=bell)
        # A reference given as an argument arrives resolved, so nothing waits here.
        endpoint = self._ranks[0].endpoint.remote()
        self._opening = self._loop.begin(
            "loading the policy",
            lambda: [rank.open.remote(endpoint) for rank in self._ranks],
            self._opened,
            deadline_s=math.inf,
            explain=self._why_not_open,
        )
        self.process_ids: tuple[int, ...] = ()
        """Of the ranks, once they are ready; for those who test how they die."""

    @classmethod
    def start_rl(cls, recipe: Recipe, policy: Policy, *, bell: Bell | None = None) -> LearnerGroup:
        """Start the learner of the `grpo` phase."""
        return cls(rl_settings(recipe, policy), bell=bell)

    @classmethod
    def start_sft(cls, recipe: Recipe, policy: Policy, folder: Path) -> LearnerGroup:
        """Start the learner of the `sft` phase; encoded clips are kept in `folder`."""
        return cls(sft_settings(recipe, policy, folder))

    @classmethod
    def start_dpo(cls, recipe: Recipe, policy: Policy, folder: Path) -> LearnerGroup:
        """Start the learner of the `dpo` phase; encoded clips are kept in `folder`."""
        return cls(dpo_settings(recipe, policy, folder))

    @classmethod
    def start_distillation(
        cls, recipe: Recipe, stage: StageName, start: Policy, teacher: Policy, folder: Path
    ) -> LearnerGroup:
        """Start the learner of a stage of the `distillation` phase; see `distill_settings`."""
        return cls(distill_settings(recipe, stage, start, teacher, folder))

    # Calls that return at once

    def begin_ready(self, deadline_s: float) -> Pending[None]:
        """Return when every rank has loaded its policy, at most `deadline_s` from now."""
        self._loop.set_deadline(self._opening, deadline_s)
        return self._opening

    def begin_chunk(
        self,
        group_refs: Mapping[str, Any],
        rewards: RewardTable,
        *,
        step: int,
        num_groups: int,
        first_row: int,
        is_last: bool,
        rows: Sequence[int] | None = None,
        plans: Sequence[StepPlan] | None = None,
    ) -> Pending[StepReport | None]:
        """Add a chunk's gradient; the last of a step takes the updates and reports.

        A chunk that is refused (StaleGroupError, GroupUnavailableError, drift) leaves no gradient,
        and the chunks of its step that are queued behind it are refused as well; the step begins
        again at row 0.

        Args:
            group_refs: group id to object reference of the RolloutGroup, owned by the driver; the
                ids of `rewards`. Every rank fetches its own share of them.
            rewards: of these groups.

        The others are those of `RlLearner.train_chunk`.
        """
        place = ChunkPlace(
            step=step,
            num_groups=num_groups,
            first_row=first_row,
            is_last=is_last,
            rows=None if rows is None else tuple(rows),
            # They open the batch; later chunks need not carry them.
            plans=None if plans is None or first_row else tuple(plans),
        )
        # References inside a mapping stay references: a rank resolves what it looks up.
        references = dict(group_refs)
        return self._loop.begin(
            f"step {step}, chunk at row {first_row}",
            lambda: [rank.train_chunk.remote(references, rewards, place) for rank in self._ranks],
            _first,
            deadline_s=self._learner.deadline_s,
            has_progress=True,
        )

    def begin_publish(
        self, version: int, *, incarnation: int = 0, use_ema: bool = False
    ) -> Pending[tuple[WeightsManifest, list[Any]]]:
        """Return the manifest and the parts for the actors (`rlvid.learners.delivery`).

        Objects among them are owned by the caller: they outlive the ranks, which go on with the
        next call while their buckets are fetched.

        Args:
            incarnation: starts of the learner in the run; it orders publishes at the actors.
        """

        return self._loop.begin(
            f"publishing version {version}",
            lambda: self.delivery.calls(version, incarnation, use_ema),
            self.delivery.finish,
            deadline_s=self._learner.deadline_s,
        )

    def begin_save(
        self,
        folder: str | Path,
        *,
        step: int,
        keep: int,
        fill: Callable[[Path], None] = lambda folder: None,
        recipe: str = "",
    ) -> Pending[Path]:
        """Write a checkpoint of `step` steps done; see `save_checkpoint`.

        The ranks go on with the next call while the driver syncs and commits.
        """
        temporary = checkpoint.begin(Path(folder).resolve(), step)
        try:
            fill(temporary)
        except Exception as error:
            found = checkpoint.failed(temporary, step, error)
            if found is error:
                raise
            raise found from error
        deadline_s = self._learner.deadline_s

        def commit(answers: tuple[Any, ...]) -> Path:
            return checkpoint.commit(
                temporary,
                step=step,
                keep=keep,
                recipe=recipe,
                expected=[name for names in answers for name in names],
                deadline_s=deadline_s,
            )

        return self._loop.begin(
            f"writing checkpoint {step}",
            lambda: [rank.save.remote(temporary) for rank in self._ranks],
            commit,
            deadline_s=deadline_s,
            explain=lambda error: checkpoint.failed(temporary, step, error),
        )

    def begin_load(self, path: str | Path) -> Pending[None]:
        """Go on from a checkpoint, whose digests the caller has verified; right after loading."""
        return self._begin(f"loading {path}", "load", Path(path).resolve())

    def begin_abandon(self) -> Pending[None]:
        """Forget the chunks of a step that will not be finished."""
        return self._begin("abandoning a step", "abandon")

    def begin_restore_published(self, pairs: Iterable[tuple[int, str]]) -> Pending[None]:
        """Admit groups of these (version, manifest digest) too; see `RlLearner`."""
        return self._begin("admitting versions", "restore_published", sorted(pairs))

    def begin_canary(self, text: str) -> Pending[tuple[Any, Any, Any]]:
        """Return latents [1, C, F, H, W], sigma [1] and the learner's velocity there."""
        return self._loop.begin(
            "the canary",
            lambda: [rank.canary.remote(text) for rank in self._ranks],
            _first,
            deadline_s=self._learner.deadline_s,
        )

    def check(self) -> None:
        """Raise LearnerLostError if the gang is lost, also while it has nothing to do."""
        self._loop.check()

    # Calls that wait

    def wait_ready(self, deadline_s: float) -> None:
        """Block until every rank has loaded its policy.

        Raises:
            LearnerLostError: a rank died or did not answer in time.
        """
        self.begin_ready(deadline_s).result()

    def train(
        self,
        group_refs: Sequence[Any],
        rewards: RewardTable,
        *,
        step: int,
    ) -> StepReport:
        """Train on scored groups in one chunk.

        Args:
            group_refs: object references of RolloutGroups, owned by the driver, in the order of
                `rewards.group_ids`.
            rewards: of all of them.
        """
        report = self.begin_chunk(
            dict(zip(rewards.group_ids, group_refs, strict=True)),
            rewards,
            step=step,
            num_groups=len(rewards.group_ids),
            first_row=0,
            is_last=True,
        ).result()
        assert report is not None, "the last chunk of a batch reports"
        return report

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        """Take SFT steps `first` to `last` - 1; one call for many steps spares the round trips."""
        reports: list[StepReport] = self._loop.begin(
            f"steps {first} to {last - 1}",
            lambda: [rank.train_steps.remote(first, last) for rank in self._ranks],
            _first,
            deadline_s=self._learner.deadline_s * max(last - first, 1),
        ).result()
        return reports

    def publish(
        self, version: int, *, incarnation: int = 0, use_ema: bool = False
    ) -> tuple[WeightsManifest, list[Any]]:
        """Publish and wait; see `begin_publish`."""
        return self.begin_publish(version, incarnation=incarnation, use_ema=use_ema).result()

    def canary(self, text: str) -> tuple[Any, Any, Any]:
        """Ask for the canary and wait; see `begin_canary`."""
        return self.begin_canary(text).result()

    def save_checkpoint(
        self,
        folder: str | Path,
        *,
        step: int,
        keep: int,
        fill: Callable[[Path], None] = lambda folder: None,
        recipe: str = "",
    ) -> Path:
        """Write a checkpoint of `step` steps done; the folder must be one all ranks see.

        Args:
            fill: writes into the folder what the caller wants to find in it again.
            recipe: digest of what a resume must agree with; "" is not checked.
        """
        return self.begin_save(folder, step=step, keep=keep, fill=fill, recipe=recipe).result()

    def load_checkpoint(self, path: str | Path) -> None:
        """Go on from a checkpoint; right after `wait_ready`.

        Digests are verified first. It may have been written by another number of ranks, at another
        ZeRO stage (`Trainee.load`).
        """
        checkpoint.verify(path)
        self.begin_load(path).result()

    def export(self, folder: str | Path) -> None:
        """Write the policy in diffusers' layout, and its average to `<folder>_ema` where kept."""
        self._begin(f"exporting to {folder}", "export", Path(folder).resolve()).result()

    def shutdown(self) -> None:
        """End the ranks, stopped ones too, and give back their place.

        Ray asks a rank to end and kills it after some 5 s; the end of its placement group kills it
        at once, and by a signal that a stopped process cannot ignore.
        """
        self._loop.stop()
        remove_placement_group(self._placement)
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []

    # Inside

    def _opened(self, answers: tuple[Any, ...]) -> None:
        self.process_ids = tuple(int(answer) for answer in answers)
        self._loop.listen(lambda rank: self._ranks[rank].progress.remote())

    def _why_not_open(self, error: Exception) -> Exception:
        """Return the error of ranks that did not load, with the group they found no room in."""
        group = said_of(self._learner.node_group, "node_group of the phase's learner section")
        if not (group and isinstance(error, LearnerLostError)) or self._placement.wait(ROOM_S):
            return error
        return LearnerLostError(f"{error}. No room for all ranks was found.{group}")

    def _begin(self, doing: str, method: str, *arguments: Any) -> Pending[None]:
        return self._loop.begin(
            doing,
            lambda: [getattr(rank, method).remote(*arguments) for rank in self._ranks],
            _nothing,
            deadline_s=self._learner.deadline_s,
        )


def _first(answers: tuple[Any, ...]) -> Any:
    """Return rank 0's answer; all ranks give the same."""
    return answers[0]


def _nothing(answers: tuple[Any, ...]) -> None:
    return None
