"""A text file that grows by whole lines, of one writer: opened once, written in bunches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

logger = logging.getLogger(__name__)


class AppendLog:
    """Appends lines to `path`, which is made at the first one.

    A line that a crash cut short is removed when the file is opened again, so what follows it is
    readable. What a kill can lose are the lines of one bunch. A disk that refuses a bunch loses it
    too, with a warning: what is written here is for people, and no reason to end a run.
    """

    def __init__(
        self,
        path: Path,
        *,
        first_line: str = "",
        bunch: int = 1,
        bunch_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        first_line: what a new file starts with.
        bunch: lines that are kept back at most.
        bunch_s: seconds after which the next line, or `flush_if_due`, writes them.
        """
        self.path = path
        self.num_lost = 0
        self._first_line = first_line
        self._bunch, self._bunch_s = bunch, bunch_s
        self._clock = clock
        self._kept: list[str] = []
        self._file: FileIO | None = None
        self._written_s = clock()

    def add(self, line: str) -> None:
        """Append a line."""
        self._kept.append(line + "\n")
        if len(self._kept) >= self._bunch:
            self.flush()
        else:
            self.flush_if_due()

    def flush_if_due(self) -> None:
        """Write what is kept back when it is old enough; costs nothing otherwise."""
        if self._kept and self._clock() - self._written_s >= self._bunch_s:
            self.flush()

    def flush(self) -> None:
        """Write what is kept back."""
        lines, self._kept = self._kept, []
        self._written_s = self._clock()
        if not lines:
            return
        try:
            if self._file is None:
                self._file = self._open()
            rest = memoryview("".join(lines).encode())
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.num_lost += len(lines)
            logger.warning("%s: lost %d lines: %s", self.path, len(lines), error.strerror)
            self._close_file()  # what was written of the bunch is cut off when it opens again

    def close(self) -> None:
        """Write what is kept back and close; a later line opens the file again."""
        self.flush()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> FileIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(self.path)
        file = FileIO(self.path, "a")
        if self._first_line and file.tell() == 0:
            file.write(f"{self._first_line}\n".encode())
        return file


def drop_torn_line(path: Path) -> None:
    """Cut what follows the last line end of a file, if there is one."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        keep = end
        while keep > 0:
            start = max(0, keep - 65536)
            file.seek(start)
            found = file.read(keep - start).rfind(b"\n")
            keep = start + found + 1 if found >= 0 else start
            if found >= 0:
                break
        if keep < end:
            file.truncate(keep)


def whole_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file that end, without their ends; none when it is not there."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield line[:-1]
