"""What became of a plan of clips."""

from __future__ import annotations

from rlvid.launch.data_engine.plan import PlannedClips
from rlvid.launch.data_engine.render import RenderCounts
from rlvid.records import Prompt


def test_quarantined_prompt_has_no_file_to_be_read() -> None:
    """Reading it would end the phase, though all other clips are there."""
    prompt = Prompt(prompt_id="p", text="a ball")
    plan = [
        PlannedClips(place=place, kind="synthetic", prompt=prompt, dimension="", num_clips=2)
        for place in range(3)
    ]
    counts = RenderCounts(num_planned=6, num_rendered=4, num_quarantined=2, lost_places=[1])
    assert [one.place for one in counts.on_disk(plan)] == [0, 2]
    assert counts.metrics()["data_engine/clips/quarantined"] == 2.0
