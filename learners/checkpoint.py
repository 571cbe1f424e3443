"""Checkpoints that a crash at any moment cannot spoil.

Written under a temporary name, synced, listed with sizes and digests in manifest.json, renamed;
then `latest` moves, then old ones go. A folder without a manifest that verifies is no checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LATEST = "latest"
_PREFIX = "step-"
_TEMPORARY = ".writing-"
_REPLACED = ".replaced-"
_CHUNK = 8 * 2**20


class CheckpointError(ValueError):
    """No checkpoint can be used; the message names each one and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint."""

    step: int
    """Steps done when it was written; the next one to take."""
    path: Path


def begin(folder: Path, step: int) -> Path:
    """Return an empty temporary folder for the checkpoint of `step`; leftovers of crashes go."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover)
    path = folder / f"{_TEMPORARY}{_name(step)}"
    path.mkdir()
    return path


def commit(temporary: Path, *, step: int, keep: int) -> Path:
    """Make what `begin` gave, now filled, the newest checkpoint, and drop all but `keep`."""
    folder = temporary.parent
    entries = {}
    for file in _files(temporary):
        _sync(file)
        name = file.relative_to(temporary).as_posix()
        entries[name] = {"num_bytes": file.stat().st_size, "xxh3_128": _digest(file)}
    manifest = {"step": step, "files": entries}
    manifest["digest"] = _manifest_digest(manifest)
    _write_synced(temporary / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
    for inner in [path for path in temporary.rglob("*") if path.is_dir()]:
        _sync(inner)
    _sync(temporary)
    final = folder / _name(step)
    replaced = folder / f"{_REPLACED}{_name(step)}"
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    temporary.rename(final)
    _sync(folder)
    _write_synced(folder / f".{LATEST}", final.name)
    (folder / f".{LATEST}").replace(folder / LATEST)
    _sync(folder)
    for old in sorted(folder.glob(f"{_PREFIX}*"))[:-keep]:
        shutil.rmtree(old)
    for old in folder.glob(f"{_REPLACED}*"):
        shutil.rmtree(old)
    return final


def find_latest(folder: str | Path) -> Checkpoint | None:
    """Return the newest checkpoint whose every byte verifies; None where none was ever written.

    Damaged ones are skipped with a warning that names them.

    Raises:
        CheckpointError: there are checkpoints, and none of them verifies.
    """
    candidates = sorted(Path(folder).glob(f"{_PREFIX}*"), reverse=True)
    problems = []
    for path in candidates:
        problem = _problem(path)
        if problem is None:
            return Checkpoint(step=int(path.name.removeprefix(_PREFIX)), path=path)
        logger.warning("skipped damaged checkpoint path=%s problem=%s", path, problem)
        problems.append(f"{path.name}: {problem}")
    if problems:
        raise CheckpointError(
            f"checkpoints {str(folder)!r}: none of {len(problems)} can be used: "
            f"{'; '.join(problems)}. Start a new run folder, or restore one from a backup"
        )
    return None


def verify(path: str | Path) -> None:
    """Raise CheckpointError unless every file of the checkpoint is what was written."""
    problem = _problem(Path(path))
    if problem is not None:
        raise CheckpointError(f"checkpoint {str(path)!r}: {problem}; resume from an older one")


def _problem(path: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, None when nothing is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        expected, listed = manifest["digest"], manifest["files"]
        got = _manifest_digest({"step": manifest["step"], "files": listed})
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    if got != expected:
        return f"{MANIFEST}: expected digest {expected}, got {got}"
    if _name(manifest["step"]) != path.name:
        return f"{MANIFEST}: expected the step of {path.name}, got {manifest['step']}"
    present = {file.relative_to(path).as_posix() for file in _files(path)} - {MANIFEST}
    if present != set(listed):
        return f"expected the {len(listed)} files listed, differing: {present ^ set(listed)}"
    for name, entry in listed.items():
        size = (path / name).stat().st_size
        if size != entry["num_bytes"]:
            return f"{name}: expected {entry['num_bytes']} bytes, got {size}"
        digest = _digest(path / name)
        if digest != entry["xxh3_128"]:
            return f"{name}: expected digest {entry['xxh3_128']}, got {digest}"
    return None


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return str(hasher.hexdigest())


def _manifest_digest(manifest: dict[str, Any]) -> str:
    content = {key: manifest[key] for key in ("step", "files")}
    return str(xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode()))


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Flush a file or a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
