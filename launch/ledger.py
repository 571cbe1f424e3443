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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TERMINAL = ("consumed", "dropped")
_NEXT = {
    "leased": ("planned",),
    "sampled": ("leased",),
    "scoring": ("sampled",),
    "ready": ("scoring",),
    "claimed": ("ready",),
    "consumed": ("claimed",),
    "dropped": ("planned", "leased", "sampled", "scoring", "ready", "claimed"),
    "planned": ("leased", "sampled", "scoring"),
}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS groups (
    group_id TEXT PRIMARY KEY, step INTEGER NOT NULL, prompt_id TEXT NOT NULL,
    state TEXT NOT NULL, lease_id TEXT, actor_id TEXT, version INTEGER, deadline REAL,
    num_leases INTEGER NOT NULL DEFAULT 0, reason TEXT);
CREATE INDEX IF NOT EXISTS groups_by_step ON groups (step);
"""


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

    def plan(self, group_id: str, step: int, prompt_id: str) -> None:
        """Enter a group; a group id is entered once."""
        try:
            with self._db:
                self._db.execute(
                    "INSERT INTO groups (group_id, step, prompt_id, state) VALUES (?, ?, ?, ?)",
                    (group_id, step, prompt_id, "planned"),
                )
        except sqlite3.IntegrityError as error:
            raise LedgerError(f"ledger: group {group_id} is already planned") from error

    def lease(self, group_id: str, deadline_s: float) -> str:
        """Give the group out and return the new lease id; earlier leases become worthless."""
        lease_id = uuid.uuid4().hex
        self._move(group_id, "leased")
        with self._db:
            self._db.execute(
                "UPDATE groups SET lease_id = ?, deadline = ?, num_leases = num_leases + 1 "
                "WHERE group_id = ?",
                (lease_id, time.time() + deadline_s, group_id),
            )
        return lease_id

    def sampled(self, group_id: str, lease_id: str, actor_id: str, version: int) -> bool:
        """Take an answer; False when the lease is not the current one and the answer is refused."""
        row = self._db.execute(
            "SELECT lease_id, state FROM groups WHERE group_id = ?", (group_id,)
        ).fetchone()
        if row is None or row[0] != lease_id or row[1] != "leased":
            return False
        self._move(group_id, "sampled")
        with self._db:
            self._db.execute(
                "UPDATE groups SET actor_id = ?, version = ? WHERE group_id = ?",
                (actor_id, version, group_id),
            )
        return True

    def expire(self, group_id: str) -> None:
        """Take the lease back: the group is planned again and its lease worthless."""
        self._move(group_id, "planned")
        with self._db:
            self._db.execute("UPDATE groups SET lease_id = NULL WHERE group_id = ?", (group_id,))

    def scoring(self, group_id: str) -> None:
        self._move(group_id, "scoring")

    def ready(self, group_id: str) -> None:
        self._move(group_id, "ready")

    def claim(self, group_ids: Sequence[str]) -> None:
        for group_id in group_ids:
            self._move(group_id, "claimed")

    def consume(self, group_ids: Sequence[str]) -> None:
        for group_id in group_ids:
            self._move(group_id, "consumed")

    def drop(self, group_id: str, reason: str) -> None:
        """End a group's life unlearned; the reason stays in the ledger."""
        self._move(group_id, "dropped")
        with self._db:
            self._db.execute("UPDATE groups SET reason = ? WHERE group_id = ?", (reason, group_id))

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
        by_state = dict(
            self._db.execute("SELECT state, COUNT(*) FROM groups GROUP BY state").fetchall()
        )
        issued = int(self._db.execute("SELECT COUNT(*) FROM groups").fetchone()[0])
        consumed, dropped = (int(by_state.get(state, 0)) for state in TERMINAL)
        in_flight = sum(int(n) for state, n in by_state.items() if state not in TERMINAL)
        return LedgerCounts(issued=issued, consumed=consumed, dropped=dropped, in_flight=in_flight)

    def drop_reasons(self) -> dict[str, int]:
        rows = self._db.execute(
            "SELECT reason, COUNT(*) FROM groups WHERE state = 'dropped' GROUP BY reason"
        ).fetchall()
        return {str(reason): int(count) for reason, count in rows}

    def forget_from(self, step: int) -> int:
        """Remove the groups of `step` and later; a resumed run issues them again, same seeds."""
        with self._db:
            return self._db.execute("DELETE FROM groups WHERE step >= ?", (step,)).rowcount

    def close(self) -> None:
        self._db.close()

    def _move(self, group_id: str, state: str) -> None:
        marks = ", ".join("?" for _ in _NEXT[state])
        with self._db:
            moved = self._db.execute(
                f"UPDATE groups SET state = ? WHERE group_id = ? AND state IN ({marks})",
                (state, group_id, *_NEXT[state]),
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
