"""Where faults are injected: in memory where there is a file system for it, since syncs cost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")


@contextmanager
def quick_folder() -> Iterator[Path]:
    """Yield an empty folder on a file system in memory, or an ordinary one where there is none."""
    folder = Path(tempfile.mkdtemp(prefix="rlvid-test-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
