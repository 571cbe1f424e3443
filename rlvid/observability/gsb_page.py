"""The page on which people vote which of two clips is better: one HTML file, nothing beside it.

It is given left and right, and knows of no policy. `launch/` decides the sides and keeps the key.
Clips are encoded anew, both by the same encoder, so that no header of a file tells them apart.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rlvid.observability.clips import encode_mp4

TEMPLATE = "gsb.html.jinja2"
MIN_SIDE = 320
"""Pixels; smaller clips are enlarged, or a phone shows a stamp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidePair:
    """One prompt with the two clips as they are shown."""

    pair_id: str
    prompt: str
    left: Tensor
    """[T, 3, H, W] in [0, 1]."""
    right: Tensor
    """[T, 3, H, W] in [0, 1]; T, H and W may be others than those of `left`."""
    fps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GsbPage:
    """The page and its name."""

    html: str
    sheet_id: str
    """Digest of everything shown; a page sends its votes only to a server of its own sheet."""


def build_gsb_page(
    title: str, axes: Mapping[str, tuple[str, str]], pairs: Iterable[SidePair]
) -> GsbPage:
    """Return the page.

    Args:
        axes: name, which is in the votes, to (title, question).
        pairs: taken one at a time, so that one pair is decoded at once.

    Raises:
        ValueError: no pairs or no axes, or a clip that is none.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown = [_shown(pair) for pair in pairs]
    if not shown or not axes:
        raise ValueError(
            f"gsb page: expected at least one pair and one axis, got {len(shown)} and {len(axes)}."
        )
    rows = [
        {"name": name, "title": heading, "question": question}
        for name, (heading, question) in axes.items()
    ]
    content = {"title": title, "axes": rows, "pairs": shown}
    sheet_id = hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(TEMPLATE).render(
        title=title, sheet=script_json({"id": sheet_id, **content})
    )
    return GsbPage(html=html, sheet_id=sheet_id)


def script_json(value: object) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(pair: SidePair) -> dict[str, str]:
    """Return what the script reads of a pair; clips are base64 of H.264 in MP4."""
    clips = {
        side: base64.b64encode(encode_mp4(clip, pair.fps, min_side=MIN_SIDE)).decode("ascii")
        for side, clip in (("left", pair.left), ("right", pair.right))
    }
    return {"id": pair.pair_id, "prompt": pair.prompt, **clips}
