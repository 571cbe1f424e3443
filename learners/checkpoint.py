"""Checkpoints that a crash at any moment cannot spoil.

    <folder>/step-00000010/     a checkpoint: its files, and manifest.json that lists them
             latest             names the newest, for people; `find_latest` looks for itself
             .writing-* .replaced-* .deleting-*     what a crash leaves; `begin` clears it

Written under a temporary name, synced, listed with sizes and digests, read back, renamed; then
`latest` moves, then old ones go. A folder without a manifest that verifies is no checkpoint. One
process at a time writes: `begin` takes what it finds half-done for the work of a dead one.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlvid import durable
from rlvid.durable import DiskFullError
from rlvid.learners.checkpoint_manifest import (
    FORMAT,
    MANIFEST,
    Progress,
    files_of,
    own_bytes,
    problem_of,
    read_manifest,
    write_manifest,
)

logger = logging.getLogger(__name__)

LATEST = "latest"
_PREFIX = "step-"
_TEMPORARY = ".writing-"
_REPLACED = ".replaced-"
_DELETING = ".deleting-"
_NAME = re.compile(rf"({re.escape(_REPLACED)})?{_PREFIX}(\d{{8}})")
_TORCH_FULL = ("PytorchStreamWriter failed", "inline_container")
"""What torch.save says when a write fails; it keeps no reason."""
_ALMOST_FULL_BYTES = 64 * 2**20


class CheckpointError(ValueError):
    """No checkpoint can be used or written; the message names each one and what is wrong."""


class CheckpointSlowError(CheckpointError):
    """Writing took longer than it may; a thread may still hang in the kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint."""

    step: int
    """Steps done when it was written; the next one to take."""
    path: Path


def begin(folder: Path, step: int) -> Path:
    """Return an empty temporary folder for the checkpoint of `step`; leftovers of crashes go.

    Raises:
        CheckpointError: the folder is another program's, or cannot be written.
        DiskFullError: there is less room than the last checkpoint took.
    """
    _refuse_foreign(folder)
    try:
        durable.make_folder(folder)
        _clear(folder)
        existing = _existing(folder)
        needed = own_bytes(existing[0].path) if existing else 0
        if durable.free_bytes(folder) < needed:
            raise durable.disk_full(folder, f"checkpoint {step}", needed)
        # A name of its own: a stopped process that wakes up must not commit another's files.
        path = folder / f"{_TEMPORARY}{_name(step)}-{uuid.uuid4().hex[:8]}"
        path.mkdir()
    except OSError as error:
        raise _failure(folder, step, error) from error
    return path


def commit(
    temporary: Path,
    *,
    step: int,
    keep: int,
    recipe: str = "",
    expected: Collection[str] = (),
    deadline_s: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Make what `begin` gave, now filled, the newest checkpoint, and drop all but `keep`.

    The new one is read back from the disk before an old one goes. On an error the temporary
    folder is gone and every earlier checkpoint is as it was.

    Args:
        recipe: digest of what a checkpoint must agree with to be resumed; "" is not checked.
        expected: files that other machines wrote, relative to `temporary`: on a shared file system
            this one may not see them yet, and must not commit without them.
        deadline_s: of all of it; None waits for ever.
        on_progress: gets bytes done and bytes in all, each file counted twice, in any thread.

    Raises:
        CheckpointError: files are missing, the disk gave back other bytes, or it is too slow.
        DiskFullError: there was no room.
    """
    if keep < 1:
        raise ValueError(f"checkpoint {step}: keep must be at least 1, got {keep}")
    progress = Progress(on_change=on_progress)
    try:
        missing = sorted(name for name in expected if not (temporary / name).is_file())
        if missing:
            raise CheckpointError(
                f"checkpoint {step}: expected the files that the ranks wrote, {missing} are not "
                f"to be seen in {str(temporary.parent)!r}; all ranks must see one folder there"
            )

        def work() -> Path:
            return _commit(temporary, step, keep, recipe, progress)

        return work() if deadline_s is None else _in_time(work, step, deadline_s, progress)
    except CheckpointSlowError:
        raise  # removing files would hang too; the next `begin` does it
    except (OSError, DiskFullError, CheckpointError) as error:
        found = failed(temporary, step, error)
        if found is error:
            raise
        raise found from error


@contextmanager
def writing(folder: Path, *, step: int, keep: int, recipe: str = "") -> Iterator[Path]:
    """`begin`, and `commit` at the end of the block; an error in it leaves the earlier ones."""
    temporary = begin(folder, step)
    try:
        yield temporary
    except Exception as error:
        found = failed(temporary, step, error)
        if found is error:
            raise
        raise found from error
    commit(temporary, step=step, keep=keep, recipe=recipe)


def failed(temporary: Path, step: int, error: Exception) -> Exception:
    """Remove a checkpoint whose writing failed and return what to raise.

    Args:
        error: of whoever wrote: of this process, or of a rank.

    Returns:
        DiskFullError or CheckpointError where the disk is the reason, else `error` itself.
    """
    folder = temporary.parent
    num_bytes = sum(file.stat().st_size for file in files_of(temporary))
    found = _failure(folder, step, error, num_bytes)
    shutil.rmtree(temporary, ignore_errors=True)
    return found


def find_latest(folder: str | Path, *, recipe: str = "") -> Checkpoint | None:
    """Return the newest checkpoint whose every byte verifies; None where none was ever written.

    Damaged ones are skipped with a warning that names them. Changes nothing.

    Raises:
        CheckpointError: there are checkpoints, and none of them verifies; or they are of another
            recipe or program.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    problems = []
    for candidate in _existing(folder):
        path = candidate.path
        problem = problem_of(path, candidate.step)
        if problem is None:
            _check_recipe(path, recipe)
            return candidate
        logger.warning("skipped damaged checkpoint path=%s problem=%s", path, problem)
        problems.append(f"{path.name}: {problem}")
    if problems:
        raise CheckpointError(
            f"checkpoints {str(folder)!r}: none of {len(problems)} can be used: "
            f"{'; '.join(problems)}. Start a new run folder, or restore one from a backup"
        )
    return None


def oldest_step(folder: str | Path) -> int:
    """Return the step of the oldest checkpoint, whole or not; 0 where there is none."""
    existing = _existing(Path(folder))
    return existing[-1].step if existing else 0


def verify(path: str | Path) -> None:
    """Raise CheckpointError unless every file of the checkpoint is what was written."""
    path = Path(path)
    match = _NAME.fullmatch(path.name)
    problem = "expected a folder named step-00000000" if match is None else None
    problem = problem or problem_of(path, int(path.name[-8:]))
    if problem is not None:
        raise CheckpointError(f"checkpoint {str(path)!r}: {problem}; resume from an older one")


def _commit(temporary: Path, step: int, keep: int, recipe: str, progress: Progress) -> Path:
    folder = temporary.parent
    write_manifest(temporary, step, recipe, progress)
    problem = problem_of(temporary, step, progress=progress)
    if problem is not None:
        raise CheckpointError(
            f"checkpoint {step}: {str(folder)!r} gave back other bytes than were written: {problem}"
            ". Look at the disk; the earlier checkpoints are untouched"
        )
    progress.begin("renaming")
    final, replaced = folder / _name(step), folder / f"{_REPLACED}{_name(step)}"
    if final.exists():
        # Between these renames the step is there under the other name, where it is found too.
        final.rename(replaced)
        durable.sync(folder)
    temporary.rename(final)
    durable.sync(folder)
    durable.write_file(folder / LATEST, (final.name.encode(),))
    _drop_old(folder, step, keep)
    return final


def _drop_old(folder: Path, step: int, keep: int) -> None:
    """Remove all but the new checkpoint and the `keep` - 1 before it that look whole.

    Later steps are of a future that was given up: the run went back before them, since they were
    damaged or because somebody asked for it, and comes to them again.
    """
    kept = 1
    doomed = []
    for checkpoint in _existing(folder):
        if checkpoint.path.name == _name(step):
            continue
        problem = problem_of(checkpoint.path, checkpoint.step, reads_bytes=False)
        is_past = checkpoint.step < step
        if is_past and problem is None and kept < keep:
            kept += 1
            continue
        if problem is not None or checkpoint.step > step:
            reason = problem or f"the run went back to before it and is at step {step}"
            logger.warning("removing checkpoint path=%s reason=%s", checkpoint.path, reason)
        doomed.append(checkpoint.path)
    _remove(folder, doomed)


def _remove(folder: Path, doomed: Collection[Path]) -> None:
    """Take the names away first: half a checkpoint must not look like a damaged one."""
    dying = []
    for path in doomed:
        target = folder / f"{_DELETING}{uuid.uuid4().hex[:8]}-{path.name.lstrip('.')}"
        path.rename(target)
        dying.append(target)
    if dying:
        durable.sync(folder)
    for path in dying:
        shutil.rmtree(path)


def _clear(folder: Path) -> None:
    """Remove what a crash left half-done, and undo a replacement that it cut in two."""
    for path in list(folder.iterdir()):
        if path.name.startswith((_TEMPORARY, _DELETING)):
            shutil.rmtree(path)
        elif durable.is_temporary(path):
            path.unlink()
    for checkpoint in _existing(folder):
        path, step = checkpoint.path, checkpoint.step
        if not path.name.startswith(_REPLACED):
            continue
        final = folder / _name(step)
        if final.exists() and problem_of(final, step) is None:
            _remove(folder, [path])
            continue
        if final.exists():
            _remove(folder, [final])
        path.rename(final)
        durable.sync(folder)


def _existing(folder: Path) -> list[Checkpoint]:
    """Return what has a checkpoint's name, newest first, the replaced one after the new."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is not None and path.is_dir():
            found.append(Checkpoint(step=int(match[2]), path=path))
    return sorted(found, key=lambda item: (-item.step, item.path.name.startswith(_REPLACED)))


def _refuse_foreign(folder: Path) -> None:
    """Other programs also keep folders of steps and a file `latest`; those are not ours to clear.

    Raises:
        CheckpointError: nothing in the folder is of this program, and something is not.
    """
    existing = _existing(folder)
    if any(_is_ours(checkpoint.path) for checkpoint in existing):
        return
    latest = folder / LATEST
    named = latest.read_text(errors="replace").strip() if latest.is_file() else None
    is_foreign = bool(existing) if named is None else _NAME.fullmatch(named) is None
    if is_foreign:
        odd = existing[0].path.name if named is None else f"`{LATEST}` with {named[:40]!r}"
        raise CheckpointError(
            f"checkpoints {str(folder)!r}: expected checkpoints of this version of rlvid, got "
            f"{odd}: it is another program's folder. Name another run folder"
        )


def _is_ours(path: Path) -> bool:
    """True for a manifest of this format, and for one too damaged to tell."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except ValueError:
        return True
    except OSError:
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _check_recipe(path: Path, recipe: str) -> None:
    got = read_manifest(path)["recipe"]
    if recipe and got and got != recipe:
        raise CheckpointError(
            f"checkpoint {str(path)!r}: it is of another recipe: expected {recipe}, got {got}; "
            "resume with the recipe of that run, or name another run folder"
        )


def _failure(folder: Path, step: int, error: Exception, num_bytes: int = 0) -> Exception:
    """Say what an error means for a checkpoint of which `num_bytes` were written."""
    if isinstance(error, CheckpointError | DiskFullError):
        return error
    text = str(error)
    is_low = durable.free_bytes(folder) < _ALMOST_FULL_BYTES
    by_torch = is_low and any(part in text for part in _TORCH_FULL)
    if by_torch or durable.is_disk_full(error):
        needed = max([num_bytes, *(own_bytes(item.path) for item in _existing(folder)[:1])])
        return durable.disk_full(folder, f"checkpoint {step}", needed)
    if isinstance(error, OSError):
        return CheckpointError(
            f"checkpoint {step}: {str(folder)!r} cannot be written ({error}). The earlier "
            "checkpoints are untouched; look at the disk and resume the run"
        )
    return error


def _in_time(work: Callable[[], Path], step: int, deadline_s: float, progress: Progress) -> Path:
    """Do the work in a thread: a sync that hangs in the kernel cannot be called off."""
    outcome: list[Path | Exception] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:  # carried to whoever waits
            outcome.append(error)

    thread = threading.Thread(target=run, name=f"checkpoint-{step}", daemon=True)
    thread.start()
    thread.join(deadline_s)
    if not outcome:
        progress.is_cancelled = True
        raise CheckpointSlowError(
            f"checkpoint {step}: the disk is too slow: {progress.done:,} of {progress.total:,} "
            f"bytes were done after {deadline_s:g} s, at {progress.now}. The earlier checkpoints "
            "are untouched; look at the disk, or raise learner.deadline_s, and resume the run"
        )
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"
