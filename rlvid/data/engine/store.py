"""Rendered clips on disk, a file a prompt: the latents, and in its header the rows about them.

    <folder>/clips/000/000012.safetensors

A file is named by its place in the plan and holds the plan's own digest of what was to be rendered.
A resumed run keeps every file whose digest is the one it would render now, so no clip is rendered
twice and another policy, seed or prompt never passes for the one that was asked for. Latents are
kept as the policy made them: training on them needs no VAE and loses nothing to a codec.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rlvid import durable
from rlvid.data.engine.records import ClipRecord

logger = logging.getLogger(__name__)

FOLDER = "clips"
FILES_PER_FOLDER = 1000


class ClipStore:
    """The files of one data set; holds nothing but the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, place: int) -> str:
        """Return the file of a place of the plan, relative to the data set's folder."""
        return numbered(FOLDER, place, ".safetensors")

    def has(self, place: int, plan_digest: str) -> bool:
        """Return whether what the plan asks for lies there whole."""
        header = self._header(place)
        return header is not None and header["plan"] == plan_digest

    def write(
        self, place: int, plan_digest: str, latents: Tensor, records: Sequence[ClipRecord]
    ) -> None:
        """Write the clips of a prompt; on return they survive a power loss.

        Args:
            latents: [G, C, F, H, W] float32, row g of record g.

        Raises:
            DiskFullError: there was no room; nothing of the file is left.
        """
        path = self.folder / self.file(place)
        durable.make_folder(path.parent)
        metadata = {"plan": plan_digest, "records": json.dumps([r.to_json() for r in records])}
        data = save({"latents": latents.contiguous()}, metadata)
        durable.write_file(path, [data], num_bytes=len(data))

    def records(self, places: Sequence[int]) -> Iterator[ClipRecord]:
        """Yield the rows of the files of these places, one file open at a time.

        Raises:
            ValueError: a file is missing or damaged.
        """
        for place in places:
            header = self._header(place)
            if header is None:
                raise ValueError(
                    f"data set {str(self.folder)!r}: {self.file(place)} is missing or damaged. "
                    "Resume the run, which renders it again."
                )
            for tree in json.loads(header["records"]):
                yield ClipRecord.from_json(tree)

    def _header(self, place: int) -> dict[str, Any] | None:
        path = self.folder / self.file(place)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                file.get_slice("latents").get_shape()
                return dict(file.metadata())
        except (SafetensorError, OSError) as error:
            logger.warning("%s: damaged, rendered again: %s", path, error)
            return None


def numbered(folder: str, number: int, ending: str) -> str:
    """Return the name of a file, "clips/012/012345.mp4": no folder grows beyond a thousand."""
    return f"{folder}/{number // FILES_PER_FOLDER:03d}/{number:06d}{ending}"


def open_rows(folder: Path, file: str) -> Any:
    """Return the latents of a file as a slice; row n of it is read when it is indexed."""
    return safe_open(str(folder / file), framework="pt").get_slice("latents")
