"""Writers that a harness for disk faults must find at fault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.disk_faults.scenarios import Say, Scenario

OLD, NEW = b"old" * 5000, b"new" * 5000


@dataclass(frozen=True)
class Careless:
    """Replaces a file: in place, or by a rename that no sync came before."""

    in_place: bool

    def prepare(self, folder: Path) -> None:
        (folder / "file").write_bytes(OLD)

    def act(self, folder: Path, say: Say) -> None:
        target = folder / ("file" if self.in_place else "temporary")
        target.write_bytes(NEW)
        target.replace(folder / "file")
        say("done")

    def check(self, folder: Path, said: list[str]) -> None:
        assert (folder / "file").read_bytes() in (OLD, NEW)


def kill() -> dict[str, Scenario]:
    return {"in place": Careless(in_place=True)}


def power() -> dict[str, Scenario]:
    return {"not synced": Careless(in_place=False)}
