"""Which weights sampled what was learned from: written down, and held against an earlier run.

A synchronous run follows from its recipe. An overlapped one also depends on which version each
actor happened to hold; with that known it can be done again, bit for bit on a CPU.
"""

from __future__ import annotations

from pathlib import Path

from rlvid.launch.loop.trainer import Batch
from rlvid.launch.replay_log import ReplayLog, ReplayRecord, open_replay_log, read_replay_log

FILE = "replay.log"


class ReplayError(RuntimeError):
    """A run that is done again came out otherwise."""


class Replay:
    """The log of this run, and of the one it repeats."""

    def __init__(self, log: ReplayLog | None, earlier: dict[str, ReplayRecord]) -> None:
        self._log = log
        self._earlier = earlier

    @property
    def versions(self) -> dict[str, int]:
        """Group id to the version that sampled it in the earlier run; {} where there is none."""
        return {group_id: record.policy_version for group_id, record in self._earlier.items()}

    def rewind(self, step: int) -> None:
        """Forget the steps that will be learned again."""
        if self._log is not None:
            self._log.forget_from(step)

    def learned(self, batch: Batch, *, first_order: int) -> None:
        """Write down a step's groups in the order in which the learner took them.

        Raises:
            ReplayError: a group is not what it was in the earlier run.
            DiskFullError: there is no room for the log.
        """
        assert batch.manifest is not None, "the step is published"
        records = [
            ReplayRecord(
                order=first_order + place,
                group_id=group.summary.group_id,
                step=batch.step,
                policy_version=group.summary.policy_version,
                incarnation=batch.manifest.incarnation,
                weights_digest=group.summary.weights_digest,
                group_digest=group.summary.digest,
            )
            for place, group in enumerate(batch.groups)
        ]
        for record in records:
            self._compare(record)
        if self._log is not None:
            self._log.append(records)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def _compare(self, record: ReplayRecord) -> None:
        earlier = self._earlier.get(record.group_id)
        if earlier is None or earlier.group_digest == record.group_digest:
            return
        raise ReplayError(
            f"grpo.replay: group {record.group_id} of step {record.step}, sampled with version "
            f"{record.policy_version}: expected digest {earlier.group_digest} as in the earlier "
            f"run, got {record.group_digest}. Another recipe, device, thread count or version of "
            "rlvid samples differently"
        )


def check_earlier(earlier: str | None) -> None:
    """Raise ValueError unless the log that is to be repeated, if any, is there."""
    if earlier is not None and not Path(earlier).is_file():
        raise ValueError(
            f"grpo.replay: {earlier!r} is no file; name the {FILE} of a run, "
            "<run>/phases/00_grpo/replay.log"
        )


def open_replay(folder: Path, *, writes: bool, earlier: str | None) -> Replay:
    """Open the log in a phase's folder, and read the one that is to be repeated.

    Raises:
        ValueError: the earlier log does not exist or is damaged.
    """
    records: dict[str, ReplayRecord] = {}
    check_earlier(earlier)
    if earlier is not None:
        records = {record.group_id: record for record in read_replay_log(Path(earlier))}
    return Replay(open_replay_log(folder / FILE) if writes else None, records)
