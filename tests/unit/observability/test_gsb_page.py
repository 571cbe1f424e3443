"""The voting page is one file that needs nothing else and knows nothing of policies."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import av
import pytest
import torch

from rlvid.data.tiny_world import all_facts, caption, render_clip
from rlvid.evaluation.gsb_votes import AXES
from rlvid.observability.gsb_page import GsbPage, SidePair, build_gsb_page

FACTS = all_facts()[0]
HOSTILE = 'a </script><b>"red"</b> & ball'


def pair(name: str = "p000", prompt: str = "", *, swapped: bool = False) -> SidePair:
    clips = [render_clip(FACTS, 0), render_clip(FACTS, 0, breakage="flicker")]
    left, right = clips[::-1] if swapped else clips
    return SidePair(pair_id=name, prompt=prompt or caption(FACTS), left=left, right=right, fps=8)


@pytest.fixture(scope="module")
def page() -> GsbPage:
    return build_gsb_page("Which <one>?", AXES, iter([pair(), pair("p001", HOSTILE)]))


def sheet_of(page: GsbPage) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="sheet">(.*?)</script>', page.html, re.S)
    assert found is not None
    sheet: dict[str, Any] = json.loads(found[1])
    return sheet


def test_page_loads_nothing_from_elsewhere(page: GsbPage) -> None:
    """It is mailed around and opened behind firewalls; the two paths are of its own server."""
    shell = re.sub(r'id="sheet">.*?</script>', "", page.html, flags=re.S)
    assert re.findall(r"https?:|//[a-z]|url\(|@import", shell) == []
    assert re.findall(r"<(?:link|img|iframe|script src)", shell) == []
    assert re.findall(r"\.src = (\w+)", shell) == ["URL"]  # of a blob
    assert re.findall(r'fetch\("([^"]*)"', page.html) == ["v1/sheet", "v1/votes"]


def test_text_of_others_cannot_end_the_script(page: GsbPage) -> None:
    assert page.html.count("</script>") == 2
    assert "Which &lt;one&gt;?" in page.html
    assert sheet_of(page)["pairs"][1]["prompt"] == HOSTILE


def test_clips_are_h264_of_both_sides(page: GsbPage) -> None:
    first = sheet_of(page)["pairs"][0]
    for side in ("left", "right"):
        with av.open(io.BytesIO(base64.b64decode(first[side]))) as container:
            stream = container.streams.video[0]
            frames = sum(1 for _ in container.decode(video=0))
        assert (stream.codec_context.name, stream.width, frames) == ("h264", 320, 17)
    assert first["left"] != first["right"]


def test_the_page_knows_sides_and_nothing_else(page: GsbPage) -> None:
    sheet = sheet_of(page)
    assert set(sheet) == {"id", "title", "axes", "pairs"}
    assert all(set(one) == {"id", "prompt", "left", "right"} for one in sheet["pairs"])
    assert [axis["name"] for axis in sheet["axes"]] == list(AXES)


def test_pages_are_told_apart_by_what_they_show(page: GsbPage) -> None:
    """A page must not send its votes to a server that holds the same pairs with other sides."""
    swapped = build_gsb_page("Which <one>?", AXES, [pair(swapped=True), pair("p001", HOSTILE)])
    assert swapped.sheet_id != page.sheet_id
    assert sheet_of(page)["id"] == page.sheet_id


def test_a_page_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one pair and one axis, got 0 and 4"):
        build_gsb_page("x", AXES, [])
    with pytest.raises(ValueError, match=r"expected shape \[T, 3, H, W\]"):
        build_gsb_page("x", AXES, [SidePair(
            pair_id="p", prompt="x", left=torch.zeros(3, 4), right=torch.zeros(3, 4), fps=8
        )])  # fmt: skip
