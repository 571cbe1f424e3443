"""The list of a checkpoint's files, by which every byte of it is verified.

`manifest.json` holds format, step, recipe, sizes and digests of all files, and a digest over those.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from rlvid import durable

MANIFEST = "manifest.json"
FORMAT = "rlvid-checkpoint-1"
LINKED = "groups/"
"""Files under it are hard links that the run's group store shares: they take no room."""
_KEYS = ("format", "step", "recipe", "files")


@dataclass(slots=True)
class Progress:
    """How far the writing of a checkpoint is; told of every file, and by it the work is ended."""

    total: int = 0
    """Bytes to go through, each file once for its digest and once to read it back."""
    done: int = 0
    now: str = "listing its files"
    is_cancelled: bool = False
    on_change: Callable[[int, int], None] = lambda done, total: None

    def begin(self, doing: str) -> None:
        """Say what comes next; raises InterruptedError when the work was given up."""
        if self.is_cancelled:
            raise InterruptedError("the checkpoint was given up")
        self.now = doing

    def add(self, num_bytes: int) -> None:
        self.done += num_bytes
        self.on_change(self.done, self.total)


def write_manifest(folder: Path, step: int, recipe: str, progress: Progress) -> None:
    """Sync every file of a folder and list them in its manifest."""
    files = list(files_of(folder))
    progress.total = 2 * sum(file.stat().st_size for file in files)
    entries = {}
    for file in files:
        name = file.relative_to(folder).as_posix()
        progress.begin(f"syncing {name}")
        durable.sync(file)
        entries[name] = {
            "num_bytes": file.stat().st_size,
            "xxh3_128": durable.digest_file(file),
        }
        progress.add(file.stat().st_size)
    manifest: dict[str, Any] = {"format": FORMAT, "step": step, "recipe": recipe, "files": entries}
    manifest["digest"] = _digest(manifest)
    text = json.dumps(manifest, indent=1, sort_keys=True)
    durable.write_file(folder / MANIFEST, (text.encode(),))
    for inner in sorted(folder.rglob("*")):
        if inner.is_dir():
            durable.sync(inner)
    durable.sync(folder)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint folder.

    Raises:
        ValueError: it is missing, damaged, or of something else; the message says which.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        got = manifest.get("format") if isinstance(manifest, dict) else None
        if got != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}, got {got!r}")
        expected, got = manifest["digest"], _digest(manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({type(error).__name__}: {error})") from error
    if got != expected:
        raise ValueError(f"{MANIFEST}: expected digest {expected}, got {got}")
    return manifest


def problem_of(
    path: Path, step: int, *, reads_bytes: bool = True, progress: Progress | None = None
) -> str | None:
    """Return what is wrong with a checkpoint folder, None when nothing is.

    Args:
        reads_bytes: False compares names and sizes only.
    """
    try:
        manifest = read_manifest(path)
        listed: dict[str, dict[str, Any]] = manifest["files"]
        if manifest["step"] != step:
            return f"{MANIFEST}: expected the step of {path.name}, got {manifest['step']}"
        present = {file.relative_to(path).as_posix() for file in files_of(path)} - {MANIFEST}
        if present != set(listed):
            return f"expected the {len(listed)} files listed, differing: {present ^ set(listed)}"
        for name, entry in listed.items():
            size = (path / name).stat().st_size
            if size != entry["num_bytes"]:
                return f"{name}: expected {entry['num_bytes']} bytes, got {size}"
        for name, entry in listed.items() if reads_bytes else ():
            if progress is not None:
                progress.begin(f"reading back {name}")
            forget_pages(path / name)
            digest = durable.digest_file(path / name)
            if digest != entry["xxh3_128"]:
                return f"{name}: expected digest {entry['xxh3_128']}, got {digest}"
            if progress is not None:
                progress.add(int(entry["num_bytes"]))
    except InterruptedError:
        raise
    except OSError as error:
        return f"cannot be read ({error})"
    except ValueError as error:
        return str(error)
    return None


def own_bytes(path: Path) -> int:
    """Return the room that a checkpoint takes, 0 where its manifest cannot be read."""
    try:
        files = read_manifest(path)["files"]
    except ValueError:
        return 0
    return sum(
        int(entry["num_bytes"]) for name, entry in files.items() if not name.startswith(LINKED)
    )


def files_of(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def forget_pages(path: Path) -> None:
    """Ask the system to drop what it holds of a synced file, so that the disk is what is read."""
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _digest(manifest: dict[str, Any]) -> str:
    content = {key: manifest[key] for key in _KEYS}
    return str(xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode()))
