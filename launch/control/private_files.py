"""Small files that other processes of the same user read: whole or not there, mode 0600."""

from __future__ import annotations

import os
from pathlib import Path

MAX_BYTES = 2**20
"""Of a file that is read; a larger one is not ours."""


def write_private(path: Path, text: str) -> None:
    """Write the file in one rename: a reader sees the old text or the new, never a part.

    It is not synced to disk: after a power cut there is no driver to talk to either.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(part, flags, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)


def read_private(path: Path) -> str:
    """Return the text of a file of this user.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: a link, another user's file, or one too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); remove it") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise ValueError(
                f"{path}: expected a file of user {os.geteuid()}, got one of {found.st_uid}; "
                "the run folder must not be writable by others"
            )
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: expected at most {MAX_BYTES} bytes, got more; remove it")
    return content.decode("utf-8")
