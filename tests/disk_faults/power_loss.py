"""What a disk may hold after a power loss: only what was synced is sure, the rest may be there.

python -m tests.disk_faults.power_loss SCENARIOS FOLDER prints JSON, see `shim`.

Before each change of a file or folder, images of the disk are made as in ALICE (Pillai et al.,
OSDI 2014): a file has the bytes of its last fsync, or half or all of its newer ones; a folder has
the names of its last fsync, or those after any change since, alone or with all other folders.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.disk_faults.scenarios import Scenario

Names = dict[str, int]
"""Name in a folder to the number of the file or folder."""
Image = tuple[tuple[str, bytes | None], ...]
"""(relative path, content), None for a folder; sorted."""
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "open"}


class Recorder:
    """Follows what a process does to a folder, by its audit events and its calls of fsync."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.is_on = True
        self.said: list[str] = []
        self.images: dict[tuple[Image, tuple[str, ...]], None] = {}
        self.num_points = 0
        self._numbers: dict[int, int] = {}
        self._fresh = itertools.count()
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, Names] = {}
        self._scan()
        self._synced_files = dict(self._files)
        self._synced_folders = {number: dict(names) for number, names in self._folders.items()}
        self._since: dict[int, list[Names]] = {}
        self._fsync = os.fsync
        vars(os)["fsync"] = self._on_fsync
        sys.addaudithook(self._on_event)

    def point(self) -> None:
        """Note what the disk may hold if the power goes now."""
        self.num_points += 1
        self._scan()
        for number, names in self._folders.items():
            seen = self._since.setdefault(number, [])
            if names != self._synced_folders.get(number, {}) and names not in seen:
                seen.append(dict(names))
        for view in self._views():
            for share in (0.0, 0.5, 1.0):
                image = tuple(sorted(self._image(view, share)))
                self.images[image, tuple(self.said)] = None

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or event not in CHANGES:
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_CREAT | os.O_TRUNC | os.O_WRONLY):
            return
        self.is_on = False
        try:
            self.point()
            self._forget(event, arguments)
        finally:
            self.is_on = True

    def _on_fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not self.is_on or not path.is_relative_to(self.root):
            self._fsync(descriptor)
            return
        self.is_on = False
        self.point()
        self._fsync(descriptor)
        number = self._number(path)
        if path.is_dir():
            self._synced_folders[number] = dict(self._folders[number])
            self._since[number] = []
        else:
            self._synced_files[number] = path.read_bytes()
        self.is_on = True

    def _forget(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The system gives the inode number of a removed file to the next one."""
        if event in ("os.remove", "os.rmdir"):
            path, folder = arguments[0], arguments[1]
        elif event == "os.rename":
            path, folder = arguments[1], arguments[3]
        else:
            return
        try:
            found = os.lstat(path, dir_fd=None if folder in (None, -1) else folder)
        except FileNotFoundError:
            return
        if found.st_nlink == 1 or event == "os.rmdir":
            self._numbers.pop(found.st_ino, None)

    def _number(self, path: Path) -> int:
        inode = path.stat().st_ino
        if inode not in self._numbers:
            self._numbers[inode] = next(self._fresh)
        return self._numbers[inode]

    def _scan(self) -> None:
        """Read what is there now; what is gone stays known, since its removal may be lost."""
        for folder in [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]:
            self._folders[self._number(folder)] = {
                path.name: self._number(path) for path in folder.iterdir()
            }
        for path in self.root.rglob("*"):
            if path.is_file():
                self._files[self._number(path)] = path.read_bytes()

    def _views(self) -> Iterator[dict[int, Names]]:
        """Yield which names each folder may have."""
        synced = {number: self._synced_folders.get(number, {}) for number in self._folders}
        yield synced
        yield self._folders
        for number, versions in self._since.items():
            yield {**self._folders, number: synced[number]}
            for names in versions:
                yield {**synced, number: names}
                yield {**self._folders, number: names}

    def _image(self, view: dict[int, Names], share: float) -> Iterator[tuple[str, bytes | None]]:
        waiting = [("", self._numbers[self.root.stat().st_ino])]
        while waiting:
            place, number = waiting.pop()
            for name, child in view[number].items():
                path = f"{place}{name}"
                if child in view:
                    yield path, None
                    waiting.append((f"{path}/", child))
                else:
                    yield path, self._content(child, share)

    def _content(self, number: int, share: float) -> bytes:
        newest, synced = self._files[number], self._synced_files.get(number, b"")
        if newest == synced or share == 0.0:
            return synced
        # What was synced and not changed since stays: an append cannot take it back.
        kept = len(os.path.commonprefix([newest, synced]))
        return newest[: kept + int((len(newest) - kept) * share)]


def lose_power_everywhere(scenario: Scenario, place: Path) -> dict[str, Any]:
    """Return the points, the different images, and a line for each that could not be used."""
    folder = place / "acted"
    folder.mkdir(parents=True)
    scenario.prepare(folder)
    recorder = Recorder(folder)
    scenario.act(folder, recorder.said.append)
    recorder.is_on = False
    recorder.point()
    failures = []
    copy = place / "image"
    for image, said in recorder.images:
        for path, content in image:
            if content is None:
                (copy / path).mkdir(parents=True, exist_ok=True)
            else:
                (copy / path).parent.mkdir(parents=True, exist_ok=True)
                (copy / path).write_bytes(content)
        copy.mkdir(exist_ok=True)
        try:
            scenario.check(copy, list(said))
        except Exception as error:  # the harness reports whatever is wrong, image by image
            names = [path for path, _ in image]
            failures.append(f"{type(error).__name__}: {error}; said {said}, on disk: {names}")
        shutil.rmtree(copy)
    return {"points": recorder.num_points, "images": len(recorder.images), "failures": failures}


def run_power_losses(scenarios: str, folder: Path) -> dict[str, Any]:
    """Lose the power at every change of every scenario that the function `scenarios` names."""
    answer = subprocess.run(
        [sys.executable, "-m", "tests.disk_faults.power_loss", scenarios, str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def main(name: str, folder: str) -> None:
    module, _, function = name.partition(":")
    scenarios: dict[str, Scenario] = getattr(importlib.import_module(module), function)()
    results = {}
    for label, scenario in scenarios.items():
        reading, writing = os.pipe()
        child = os.fork()  # an audit hook stays for the life of its process
        if child == 0:
            place = Path(folder) / label.replace(" ", "_")
            found = lose_power_everywhere(scenario, place)
            os.write(writing, json.dumps(found).encode()[:60_000])
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            results[label] = json.loads(pipe.read())
        os.waitpid(child, 0)
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
