"""Tensors on disk in pieces, each written by the rank that holds it, read by any other layout.

Safetensors files, one or more a rank; a piece is named `<kind>/<start>/<tensor>`, where `start` is
its first element in the flattened tensor. Nobody gathers anything: a rank writes what it holds, and
a reader takes from the pieces what it will hold.

This is what DeepSpeed's universal checkpoint is for, which we do not use: it converts ZeRO files of
stages 1 to 3 offline, through pickles, and knows nothing of stage 0 or of one run's averages.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE_BYTES = 2 * 2**30
"""A file is closed beyond this size; a rank holds one file's pieces in host memory at a time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of elements of one tensor."""

    kind: str
    """What it is of the tensor: "master", "exp_avg", ..."""
    name: str
    start: int
    values: Tensor
    """[num_elements]."""

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.start}/{self.name}"


def write_pieces(folder: Path, stem: str, rank: int, pieces: Iterable[Piece]) -> None:
    """Write a rank's pieces; one file at least, be it empty."""
    from safetensors.torch import save_file

    held: dict[str, Tensor] = {}
    size = num_files = 0

    def flush() -> None:
        nonlocal size, num_files
        save_file(held, folder / f"{stem}-{rank:04d}-{num_files:03d}.safetensors")
        held.clear()
        size, num_files = 0, num_files + 1

    for piece in pieces:
        held[piece.key] = piece.values.detach().cpu().contiguous().clone()
        size += piece.values.numel() * piece.values.element_size()
        if size >= FILE_BYTES:
            flush()
    if held or not num_files:
        flush()


@dataclass(frozen=True, slots=True)
class _Place:
    file: Any
    key: str
    start: int
    end: int


class PieceReader:
    """All pieces of a folder, whoever wrote them; open until closed."""

    def __init__(self, folder: Path, stem: str) -> None:
        from safetensors import safe_open

        self._where = f"checkpoint {folder}: {stem}"
        self._files = ExitStack()
        self._places: dict[tuple[str, str], list[_Place]] = {}
        paths = sorted(folder.glob(f"{stem}-*.safetensors"))
        if not paths:
            raise ValueError(
                f"{self._where}: expected {stem}-*.safetensors, got none; it was written by "
                "another version of rlvid: resume with that one, or start from an exported policy"
            )
        for path in paths:
            file = self._files.enter_context(safe_open(path, framework="pt"))
            for key in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                kind, start, name = key.split("/", 2)
                (length,) = file.get_slice(key).get_shape()
                place = _Place(file, key, int(start), int(start) + length)
                self._places.setdefault((kind, name), []).append(place)

    def __enter__(self) -> PieceReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def names(self, kind: str) -> set[str]:
        return {name for found, name in self._places if found == kind}

    def fill(self, kind: str, name: str, start: int, target: Tensor) -> None:
        """Copy elements `start`, `start` + 1, ... of a tensor into `target` [num_elements].

        Raises:
            ValueError: some of them are in no piece.
        """
        end = start + target.numel()
        missing = target.numel()
        for place in self._places.get((kind, name), ()):
            low, high = max(start, place.start), min(end, place.end)
            if low >= high:
                continue
            values = place.file.get_slice(place.key)[low - place.start : high - place.start]
            with torch.no_grad():
                target[low - start : high - start].copy_(values)
            missing -= high - low
        if missing:
            raise ValueError(
                f"{self._where}: {kind} of {name!r}: expected elements {start} to {end}, "
                f"{missing} of them are in no file; is this the checkpoint of another model?"
            )

    def whole(self, kind: str, name: str) -> Tensor:
        """Return a tensor put together, flat."""
        places = self._places[kind, name]
        dtype = places[0].file.get_slice(places[0].key)[:0].dtype
        flat = torch.empty(max(place.end for place in places), dtype=dtype)
        self.fill(kind, name, 0, flat)
        return flat


def check_names(reader: PieceReader, kind: str, expected: Iterable[str], where: str) -> None:
    """Raise ValueError unless the pieces are of exactly these tensors."""
    found, wanted = reader.names(kind), set(expected)
    if found != wanted:
        odd = sorted(found ^ wanted)
        raise ValueError(
            f"{where}: expected {len(wanted)} trained tensors, got {len(found)}; not in both: "
            f"{', '.join(odd[: min(3, len(odd))])}. Resume with the model, mode and adapter that "
            "wrote it"
        )
