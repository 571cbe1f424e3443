r"""The life of every group of a run, in one SQLite file on the driver's disk.

    planned -> leased -> sampled -> scoring -> ready -> claimed -> consumed
                  \-> planned (lease expired)                \-> dropped (with a reason)

At the end and after any crash: issued = consumed + dropped + in flight, and nothing is consumed
twice. A late answer of an expired lease is refused by its id. A step's groups are claimed by the
learner and consumed when its update is done.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlvid.launch.local_disk import snapshot

TERMINAL = ("consumed", "dropped")
_NEXT = {
    "leased": ("planned",),
    "sampled": ("leased",),
    "scoring": ("sampled",),
    "ready": ("scoring",),
    "claimed": ("ready",),
    "consumed": ("claimed",),
    "dropped": ("planned", "leased", "sampled", "scoring", "ready", "claimed"),
    "planned": ("leased", "sampled", "scoring", "ready"),
}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS groups (
    group_id TEXT PRIMARY KEY, step INTEGER NOT NULL, prompt_id TEXT NOT NULL,
    state TEXT NOT NULL, lease_id TEXT, actor_id TEXT, version INTEGER, deadline REAL,
    num_leases INTEGER NOT NULL DEFAULT 0, reason TEXT, trains INTEGER NOT NULL DEFAULT 1);
CREATE INDEX IF NOT EXISTS groups_by_step ON groups (step);
CREATE TABLE IF NOT EXISTS quarantine (prompt_id TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS published (
    incarnation INTEGER NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (incarnation, version));
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
NO_SPREAD = "no spread in its rewards"
QUARANTINED = "its prompt is quarantined"
"""Reasons of dropped groups that the ledger itself acts on."""


class LedgerError(RuntimeError):
    """A group was moved in a way its life does not allow; the message names group and states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerCounts:
    """How many groups are where."""

    issued: int
    consumed: int
    dropped: int
    in_flight: int

    @property
    def is_balanced(self) -> bool:
        return self.issued == self.consumed + self.dropped + self.in_flight


class Ledger:
    """One writer: the driver."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self.path = path

    # The life of a group

    def plan(self, group_id: str, step: int, prompt_id: str, *, trains: bool = True) -> None:
        """Enter a group; a group id is entered once.

        Args:
            step: it will be trained in, or evaluated after.
            trains: False for groups of an evaluation, which a resume makes again.
        """
        try:
            with self._db:
                self._db.execute(
                    "INSERT INTO groups (group_id, step, prompt_id, state, trains) "
                    "VALUES (?, ?, ?, 'planned', ?)",
                    (group_id, step, prompt_id, trains),
                )
        except sqlite3.IntegrityError as error:
            raise LedgerError(f"ledger: group {group_id} is already planned") from error

    def lease(self, group_id: str, deadline_s: float) -> str:
        """Give the group out and return the new lease id; earlier leases become worthless."""
        lease_id = uuid.uuid4().hex
        self._move(
            group_id,
            "leased",
            "lease_id = ?, deadline = ?, num_leases = num_leases + 1",
            (lease_id, time.time() + deadline_s),
        )
        return lease_id

    def sampled(self, group_id: str, lease_id: str, actor_id: str, version: int) -> bool:
        """Take an answer; False when the lease is not the current one and the answer is refused."""
        if not self.is_leased(group_id, lease_id):
            return False
        self._move(group_id, "sampled", "actor_id = ?, version = ?", (actor_id, version))
        return True

    def is_leased(self, group_id: str, lease_id: str) -> bool:
        """Return whether the group is given out under this lease."""
        row = self._db.execute(
            "SELECT lease_id, state FROM groups WHERE group_id = ?", (group_id,)
        ).fetchone()
        return row is not None and (row[0], row[1]) == (lease_id, "leased")

    def expire(self, group_id: str) -> None:
        """Take the lease back: the group is planned again and its lease worthless."""
        self._move(group_id, "planned", "lease_id = NULL")

    def scoring(self, group_id: str) -> None:
        self._move(group_id, "scoring")

    def ready(self, group_id: str) -> None:
        self._move(group_id, "ready")

    def claim(self, group_ids: Sequence[str]) -> None:
        with self._db:
            for group_id in group_ids:
                self._change(group_id, "claimed")

    def consume(self, group_ids: Sequence[str]) -> None:
        with self._db:
            for group_id in group_ids:
                self._change(group_id, "consumed")

    def drop(self, group_id: str, reason: str) -> None:
        """End a group's life unlearned; the reason stays in the ledger."""
        self._move(group_id, "dropped", "reason = ?", (reason,))

    # Prompts, publishes, counters

    def quarantine(self, prompt_id: str, reason: str) -> None:
        """Issue no group of this prompt any more."""
        with self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO quarantine (prompt_id, reason) VALUES (?, ?)",
                (prompt_id, reason),
            )

    def quarantined(self) -> dict[str, str]:
        """Return prompt id to reason."""
        return dict(self._db.execute("SELECT prompt_id, reason FROM quarantine").fetchall())

    def published(self, incarnation: int, version: int, digest: str) -> None:
        """Remember what the learner of this incarnation published under a version."""
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO published VALUES (?, ?, ?)", (incarnation, version, digest)
            )

    def publishes(self, since_version: int) -> set[tuple[int, str]]:
        """Return (version, manifest digest) of every publish of any incarnation since a version."""
        rows = self._db.execute(
            "SELECT version, digest FROM published WHERE version >= ?", (since_version,)
        ).fetchall()
        return {(int(version), str(digest)) for version, digest in rows}

    def count(self, name: str, by: int = 1) -> int:
        """Add to a counter that outlives the driver and return its new value."""
        with self._db:
            self._db.execute(
                "INSERT INTO counters VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (name, by),
            )
        return self.counter(name)

    def counter(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    # What is where

    def state(self, group_id: str) -> str:
        row = self._db.execute(
            "SELECT state FROM groups WHERE group_id = ?", (group_id,)
        ).fetchone()
        if row is None:
            raise LedgerError(f"ledger: no group {group_id}")
        return str(row[0])

    def num_leases(self, group_id: str) -> int:
        """How often the group was given out."""
        row = self._db.execute(
            "SELECT num_leases FROM groups WHERE group_id = ?", (group_id,)
        ).fetchone()
        if row is None:
            raise LedgerError(f"ledger: no group {group_id}")
        return int(row[0])

    def counts(self) -> LedgerCounts:
        by_state = self.by_state()
        issued = int(self._db.execute("SELECT COUNT(*) FROM groups").fetchone()[0])
        consumed, dropped = (int(by_state.get(state, 0)) for state in TERMINAL)
        in_flight = sum(int(n) for state, n in by_state.items() if state not in TERMINAL)
        return LedgerCounts(issued=issued, consumed=consumed, dropped=dropped, in_flight=in_flight)

    def by_state(self) -> dict[str, int]:
        """Return state to the number of groups in it."""
        return dict(
            self._db.execute("SELECT state, COUNT(*) FROM groups GROUP BY state").fetchall()
        )

    def drop_reasons(self) -> dict[str, int]:
        rows = self._db.execute(
            "SELECT reason, COUNT(*) FROM groups WHERE state = 'dropped' GROUP BY reason"
        ).fetchall()
        return {str(reason): int(count) for reason, count in rows}

    def states_of_step(self, step: int) -> dict[str, str]:
        """Return group id to state of the groups of one step."""
        rows = self._db.execute("SELECT group_id, state FROM groups WHERE step = ?", (step,))
        return {str(group_id): str(state) for group_id, state in rows.fetchall()}

    def states_from(self, step: int) -> dict[str, str]:
        """Return group id to state of the groups of `step` and later, in order of their ids."""
        rows = self._db.execute(
            "SELECT group_id, state FROM groups WHERE step >= ? ORDER BY group_id", (step,)
        ).fetchall()
        return {str(group_id): str(state) for group_id, state in rows}

    def account(self) -> list[tuple[str, int, str, str, int | None, str | None]]:
        """Return (group, step, prompt, state, version, reason) of every group, by id.

        What two runs must agree on. Leases and actors are left out: who sampled a group, and how
        often it had to be given out, leaves no trace in it.
        """
        return self._db.execute(
            "SELECT group_id, step, prompt_id, state, version, reason FROM groups ORDER BY group_id"
        ).fetchall()

    # After a crash

    def forget_from(self, step: int) -> int:
        """Remove the groups of `step` and later; a resumed run issues them again, same seeds."""
        with self._db:
            return self._db.execute("DELETE FROM groups WHERE step >= ?", (step,)).rowcount

    def forget(self, group_ids: Sequence[str]) -> None:
        """Remove groups of an evaluation that will be made again."""
        with self._db:
            self._db.executemany(
                "DELETE FROM groups WHERE group_id = ? AND NOT trains",
                [(group_id,) for group_id in group_ids],
            )

    def rewind(self, step: int, *, kept: Collection[str], in_flight: Collection[str] = ()) -> None:
        """Go back to where `step` was the next to train: no later group has been learned from.

        Evaluations since then are forgotten, they will be made again. Groups of quarantined prompts
        stay dropped.

        Args:
            kept: groups whose data is at hand; they are ready again.
            in_flight: groups that rollout actors or scorers still work on; they stay as they are.
                The others are planned again, and their leases worthless.
        """
        with self._db:
            self._db.execute("DELETE FROM groups WHERE step >= ? AND NOT trains", (step,))
            for group_id, state in self.states_from(step).items():
                if group_id in in_flight and state in ("leased", "sampled", "scoring"):
                    continue
                self._db.execute(
                    "UPDATE groups SET state = ?, lease_id = NULL, reason = NULL "
                    "WHERE group_id = ? AND reason IS NOT ?",
                    ("ready" if group_id in kept else "planned", group_id, QUARANTINED),
                )

    def snapshot(self, path: Path) -> None:
        """Write a copy of the whole ledger, as it is now, to a file: all of it or nothing."""
        snapshot(self._db, path)

    def close(self) -> None:
        self._db.close()

    def _move(
        self, group_id: str, state: str, changes: str = "", values: Sequence[object] = ()
    ) -> None:
        with self._db:
            self._change(group_id, state, changes, values)

    def _change(
        self, group_id: str, state: str, changes: str = "", values: Sequence[object] = ()
    ) -> None:
        """Change the state, if the present one allows it, together with other columns."""
        marks = ", ".join("?" for _ in _NEXT[state])
        assign = f", {changes}" if changes else ""
        moved = self._db.execute(
            f"UPDATE groups SET state = ?{assign} WHERE group_id = ? AND state IN ({marks})",
            (state, *values, group_id, *_NEXT[state]),
        ).rowcount
        if moved != 1:
            raise LedgerError(
                f"ledger: group {group_id} cannot become {state} from {self.state(group_id)}; "
                f"expected {' or '.join(_NEXT[state])}"
            )


def open_ledger(path: Path) -> Ledger:
    """Open or create the ledger file; writes survive a killed driver."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.executescript(_SCHEMA)
    return Ledger(connection, path)
