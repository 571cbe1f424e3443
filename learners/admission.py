"""Which groups the learner takes: those of a version it published and that is not too old."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

from rlvid.records import NoiseSettings, RolloutGroup, StepPlan


class StaleGroupError(ValueError):
    """A group must not be trained on; the message names group, version and digest."""


class GroupUnavailableError(LookupError):
    """A group's tensors are gone, with the machine that held them; it must be sampled again."""

    def __init__(self, group_ids: Sequence[str], reason: str) -> None:
        super().__init__(
            f"learner: group {', '.join(group_ids)} cannot be fetched: {reason}. Issue it again; "
            "nothing was trained"
        )
        self.group_ids = tuple(group_ids)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.group_ids, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFacts:
    """What every rank must know of a group that one of them holds."""

    row: int
    """Place in the batch's order of group ids."""
    group_id: str
    policy_version: int
    weights_digest: str
    plan: StepPlan

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> GroupFacts:
        plan = tree["plan"]
        return cls(
            row=tree["row"],
            group_id=tree["group_id"],
            policy_version=tree["policy_version"],
            weights_digest=tree["weights_digest"],
            plan=StepPlan(
                sigmas=tuple(plan["sigmas"]),
                stochastic_steps=tuple(plan["stochastic_steps"]),
                trained_steps=tuple(plan["trained_steps"]),
                noise=NoiseSettings(**plan["noise"]),
                num_noises=plan["num_noises"],
                num_nodes=tuple(plan["num_nodes"]),
                branch_scale=plan["branch_scale"],
                own_steps=tuple(plan["own_steps"]),
            ),
        )


def facts_of(row: int, group: RolloutGroup) -> GroupFacts:
    return GroupFacts(
        row=row,
        group_id=group.group_id,
        policy_version=group.policy_version,
        weights_digest=group.weights_digest,
        plan=group.plan,
    )


def check_groups(
    facts: Sequence[GroupFacts],
    *,
    expected_ids: Mapping[int, str],
    version: int,
    published: Set[tuple[int, str]],
    max_staleness: int,
) -> None:
    """Refuse the batch unless every group may be trained on.

    Args:
        expected_ids: row to group id, of every group that should be here.
        version: the newest one published.
        published: (version, manifest digest) of what may still be consumed. A learner that was
            started again publishes its versions again, with other digests; groups of both count.

    Raises:
        StaleGroupError: too old, from the future, or sampled with other weights.
        ValueError: a group came under another id.
    """
    for fact in facts:
        if expected_ids.get(fact.row) != fact.group_id:
            raise ValueError(
                f"learner: expected group {expected_ids.get(fact.row)!r}, got {fact.group_id!r}"
            )
        where = f"learner: group {fact.group_id} from policy {fact.policy_version}"
        staleness = version - fact.policy_version
        if not 0 <= staleness <= max_staleness:
            raise StaleGroupError(
                f"{where} reached policy {version}, rollout.max_staleness is {max_staleness}. "
                "Raise it, or let the ledger issue the group again"
            )
        if (fact.policy_version, fact.weights_digest) not in published:
            known = sorted(digest for number, digest in published if number == fact.policy_version)
            raise StaleGroupError(
                f"{where} was sampled with weights {fact.weights_digest}: expected "
                f"{' or '.join(known) or 'none'}, which was published under that version. "
                "The actor missed a publish"
            )
