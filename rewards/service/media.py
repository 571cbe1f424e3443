"""The pictures and clips of a prompt on their way to a reward service, which is another machine.

The client sends what the files hold, the service writes it into a folder of the request and gives
its scorers paths, as everywhere else. Nothing of a client's becomes part of a path.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import xxhash
from pydantic import Field

from rlvid.media import check_media, digest_media
from rlvid.records import Prompt
from rlvid.rewards import wire
from rlvid.rewards.base import RewardError
from rlvid.seeds import prompt_id

MAX_MEDIUM_BYTES = 64 * 2**20
"""Of one file: minutes of a control clip at 480x832."""


MediaName = Literal["first_frame", "last_frame", "control"]
"""Those of `rlvid.media.SUFFIXES`."""


class SentMedium(wire.Message):
    """One file."""

    suffix: Literal[".png", ".jpg", ".jpeg", ".mp4"]
    data: Annotated[bytes, Field(min_length=1, max_length=MAX_MEDIUM_BYTES)]


class SentPrompt(wire.WirePrompt):
    """A prompt with what its media hold."""

    media: dict[MediaName, SentMedium] = {}

    @property
    def identity(self) -> str:
        """All of it in a line, files by their digests."""
        files = [
            (name, one.suffix, xxhash.xxh3_128_hexdigest(one.data))
            for name, one in sorted(self.media.items())
        ]
        return repr((wire.prompt(self.prompt()), files))

    def received(self, folder: Path) -> Prompt:
        """Write the media into `folder` and return the prompt that names them there.

        Its id is made anew of text and media: what a cache keeps scores by must not be a client's
        word.

        Raises:
            ValueError: a medium is none of its kind or does not decode.
        """
        paths: dict[str, Path] = {}
        for name, medium in self.media.items():
            paths[name] = folder / f"{name}{medium.suffix}"
            paths[name].write_bytes(medium.data)
            check_media(name, paths[name])
        return replace(
            self.prompt(),
            prompt_id=prompt_id(self.text, _digests(paths)),
            media={name: str(path) for name, path in paths.items()},
        )


class MediaFolder:
    """The files of one request: there from the first until it is closed, nothing if it has none."""

    def __init__(self, parent: Path | None) -> None:
        """`parent` is where its folder goes; None is the system's for temporary files."""
        self._parent = parent
        self._folder: Path | None = None

    def prompts(self, sent: Sequence[SentPrompt]) -> list[Prompt]:
        """Return the prompts, their media written.

        Raises:
            ValueError: a medium is none of its kind or does not decode.
        """
        return [
            one.received(self._of(place)) if one.media else one.prompt()
            for place, one in enumerate(sent)
        ]

    def close(self) -> None:
        """Delete what was written; a second time does nothing."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _of(self, place: int) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rlvid-media-", dir=self._parent))
        folder = self._folder / str(place)
        folder.mkdir()
        return folder


def sent_prompt(prompt: Prompt) -> SentPrompt:
    """Return a prompt with what its files hold.

    Raises:
        RewardError: a file is missing, too large, or another than when the prompt set was read.
    """
    try:
        media: Any = {name: _medium(name, Path(path)) for name, path in prompt.media.items()}
        changed = media and prompt.prompt_id != prompt_id(prompt.text, _digests(prompt.media))
    except ValueError as error:
        raise RewardError(f"prompt {prompt.text!r}: media.{error}") from error
    if changed:
        raise RewardError(
            f"prompt {prompt.text!r}: media: {sorted(prompt.media.values())} are other files than "
            "those that the prompt set was read with. Put them back, or start a new run."
        )
    return SentPrompt(**wire.prompt(prompt), media=media)


def _medium(name: str, path: Path) -> SentMedium:
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_MEDIUM_BYTES:
            raise ValueError(
                f"{name}: {path} has {size} bytes: expected 1 to {MAX_MEDIUM_BYTES}, which is "
                "what a reward service takes. Encode it anew."
            )
        # pydantic checks the suffix, which the prompt set has checked before.
        return SentMedium.model_validate(
            {"suffix": path.suffix.lower(), "data": path.read_bytes()}, strict=True
        )
    except OSError as error:
        raise ValueError(f"{name}: {path} cannot be read on this machine: {error}") from error


def _digests(paths: Mapping[str, str] | Mapping[str, Path]) -> dict[str, str]:
    return {name: digest_media(name, path) for name, path in paths.items()}
