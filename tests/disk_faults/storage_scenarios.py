"""What the driver keeps, while the disk fails: groups, replay log, ledger and its snapshots."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from rlvid.group_digest import digest_of_group
from rlvid.launch.group_store import open_group_store
from rlvid.launch.ledger import open_ledger
from rlvid.launch.local_disk import snapshot
from rlvid.launch.replay_log import ReplayRecord, open_replay_log
from rlvid.records import NoiseSettings, Prompt, Rollout, RolloutGroup, Score, StepPlan
from rlvid.rewards.scoring import GroupScores
from tests.disk_faults.scenarios import Say, Scenario


def small_group(group_id: str, value: float) -> tuple[RolloutGroup, GroupScores]:
    """Return a group of two rollouts whose tensors are filled with `value`, and its scores."""
    latents = torch.full((2, 3, 1, 4, 4), value)
    rollout = Rollout(
        index=0,
        noise_seed=2**63 - 1,
        step_seed=1,
        latents=latents[0],
        trained_latents=latents,
        trained_next_latents=latents + 1,
        behaviour_mean=latents.bfloat16(),
        behaviour_log_prob=torch.tensor([-0.0, float("nan")]),
    )
    plan = StepPlan(
        sigmas=(1.0, 0.7, 1 / 3, 0.0),
        stochastic_steps=(0, 1),
        trained_steps=(0, 1),
        noise=NoiseSettings(schedule="flash", eta=0.7, truncation=0.45, first_sigma=0.7),
        num_noises=1,
    )
    group = RolloutGroup(
        group_id=group_id,
        lease_id="lease",
        prompt=Prompt(prompt_id="p", text="a red ball", facts={"colour": "red"}),
        plan=plan,
        rollouts=(rollout, replace(rollout, index=1, step_seed=2)),
        policy_version=3,
        weights_digest="digest",
        actor_id="actor-0.0",
        sample_s=0.1 + 0.2,
        num_forwards=12,
    )
    scores = (
        Score(group_id=group_id, index=0, scorer="red", value=1 / 3),
        Score(group_id=group_id, index=1, scorer="red", value=None, error="it raised"),
    )
    return group, GroupScores(
        scores=scores, decode_s=0.25, score_s=1.5, guards={"dark": (0.0, 1e-300)}
    )


@dataclass(frozen=True)
class KeepGroups:
    """Two groups; then a third, the second again, links into a checkpoint, the first dropped."""

    def prepare(self, folder: Path) -> None:
        store = open_group_store(folder / "groups")
        store.write(*small_group("000001-00", 1.0), step=1)
        store.write(*small_group("000002-00", 2.0), step=2)

    def act(self, folder: Path, say: Say) -> None:
        store = open_group_store(folder / "groups")
        store.write(*small_group("000003-00", 3.0), step=3)
        say("third")
        store.write(*small_group("000002-00", 2.5), step=2)
        say("second")
        store.link_into(folder / "checkpoint", 2)
        say("linked")
        store.drop_before(2)
        (folder / "groups" / "00000003.000003-00.group").unlink()
        store.restore_from(folder / "checkpoint")
        say("restored")

    def check(self, folder: Path, said: list[str]) -> None:
        store = open_group_store(folder / "groups")
        found = {entry.group_id for entries in store.index().values() for entry in entries}
        odd = [p.name for p in (folder / "groups").iterdir() if p.suffix != ".group"]
        assert not odd, f"damaged or left behind: {odd}"
        assert "000002-00" in found
        assert "000001-00" in found or "linked" in said
        if "third" in said and ("restored" in said or "linked" not in said):
            assert "000003-00" in found
        second = digest_of_group(store.read("000002-00")[0])
        values = (2.5,) if "second" in said else (2.0, 2.5)
        assert second in {digest_of_group(small_group("000002-00", v)[0]) for v in values}
        if "linked" in said:
            linked = {p.name for p in (folder / "checkpoint" / "groups").iterdir()}
            assert linked == {"00000002.000002-00.group", "00000003.000003-00.group"}
        store.write(*small_group("000009-00", 9.0), step=9)
        assert digest_of_group(store.read("000009-00")[0]) == digest_of_group(
            small_group("000009-00", 9.0)[0]
        )


def record(order: int, step: int) -> ReplayRecord:
    return ReplayRecord(
        order=order,
        group_id=f"{step:06d}-{order:02d}",
        step=step,
        policy_version=step,
        incarnation=1,
        weights_digest="w" * 32,
        group_digest="g" * 32,
    )


@dataclass(frozen=True)
class LogReplay:
    """Batches are appended, two taken back, one more appended."""

    states: Sequence[tuple[int, ...]] = field(
        default=((0, 1), (0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 4))
    )
    """Orders that the log holds before the act and after each of its parts."""

    def prepare(self, folder: Path) -> None:
        log = open_replay_log(folder / "run" / "replay.log")
        log.append([record(0, 0), record(1, 0)])
        log.close()

    def act(self, folder: Path, say: Say) -> None:
        log = open_replay_log(folder / "run" / "replay.log")
        log.append([record(2, 1), record(3, 2)])
        say("appended")
        log.forget_from(2)
        say("forgotten")
        log.append([record(4, 2)])
        say("again")
        log.close()

    def check(self, folder: Path, said: list[str]) -> None:
        log = open_replay_log(folder / "run" / "replay.log")
        orders = tuple(entry.order for entry in log.records)
        assert orders in self.states[len(said) : len(said) + 2], f"the log holds {orders}"
        log.append([record(9, 9)])
        log.close()
        again = open_replay_log(folder / "run" / "replay.log")
        assert tuple(entry.order for entry in again.records) == (*orders, 9)
        again.close()


@dataclass(frozen=True)
class TakeSnapshot:
    """A snapshot of the ledger replaces the one before."""

    def prepare(self, folder: Path) -> None:
        self._snapshot(folder, 1)

    def act(self, folder: Path, say: Say) -> None:
        self._snapshot(folder, 2)
        say("done")

    def check(self, folder: Path, said: list[str]) -> None:
        with sqlite3.connect(folder / "ledger.sqlite") as database:
            [(count,)] = database.execute("SELECT COUNT(*) FROM numbers")
        database.close()
        assert count in ((2,) if said else (1, 2)), f"{count} rows"
        self._snapshot(folder, 3)

    def _snapshot(self, folder: Path, num_rows: int) -> None:
        database = sqlite3.connect(":memory:")
        database.execute("CREATE TABLE numbers (number INTEGER)")
        database.executemany("INSERT INTO numbers VALUES (?)", [(n,) for n in range(num_rows)])
        database.commit()
        snapshot(database, folder / "ledger.sqlite")
        database.close()


@dataclass(frozen=True)
class KeepLedger:
    """Groups on their way to ready, in the ledger itself."""

    num_groups: int = 4

    def prepare(self, folder: Path) -> None:
        (folder / "run").mkdir()

    def act(self, folder: Path, say: Say) -> None:
        ledger = open_ledger(folder / "run" / "ledger.sqlite")
        for number in range(self.num_groups):
            group_id = f"000000-{number:02d}"
            ledger.plan(group_id, 0, "p")
            assert ledger.sampled(group_id, ledger.lease(group_id, 10.0), "actor-0", 0)
            ledger.scoring(group_id)
            ledger.ready(group_id)
            say(group_id)
        ledger.close()

    def check(self, folder: Path, said: list[str]) -> None:
        path = folder / "run" / "ledger.sqlite"
        ledger = open_ledger(path)
        assert ledger.counts().is_balanced
        assert [ledger.state(group_id) for group_id in said] == ["ready"] * len(said)
        assert ledger.counts().issued in (len(said), len(said) + 1)
        ledger.plan("000001-00", 1, "p")
        ledger.close()
        database = sqlite3.connect(path)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()


def files() -> dict[str, Scenario]:
    return {"groups": KeepGroups(), "replay log": LogReplay(), "snapshot": TakeSnapshot()}


def ledger() -> dict[str, Scenario]:
    return {"ledger": KeepLedger()}
