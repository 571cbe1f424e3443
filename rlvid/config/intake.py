"""The `intake` section: which real clips with captions are taken in, and which are dropped."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section


class IntakeConfig(Section):
    """Filters of real clips, the pairs P_r V_r of GigaVideo-1 (arXiv:2506.10639).

    Allegro's figures are second-hand, from a survey; where its unit is not known (motion) or its
    measure is a model (aesthetic 5.3, DOVER 0.07, CLIP 0.20) the default here is our choice.
    """

    sources: tuple[str, ...] = ()
    """Read in this order, each a folder with a captions.jsonl, a WebDataset shard (.tar, .tar.gz,
    .tgz), or a data set file (.jsonl, .parquet, .arrow)."""
    max_clips: int | None = Field(default=None, ge=1)
    """Stop after so many kept clips; what comes after them is not read and not counted. None takes
    all. Of an `Intake` by itself: in a recipe `data_engine.real.num_clips` is the bound."""
    min_seconds: float = Field(default=6.0, gt=0.0)
    """Shortest source video (Allegro: 6)."""
    max_seconds: float = Field(default=16.0, gt=0.0)
    """Longest source video (Allegro: 16). It bounds memory too: all frames of one video are held
    at the wanted size and rate until its shots are known."""
    cut_threshold: float = Field(default=0.3, gt=0.0, lt=1.0)
    """Distance of two frames, 0 for the same to 1, above which there is a cut between them; lower
    finds more cuts. Our choice: see `rlvid.data.intake.shots`."""
    motion_range: tuple[float, float] = (0.5, 100.0)
    """Mean optical flow that is kept, per cent of the frame's diagonal per second. Our choice: a
    still picture has 0. Allegro keeps 1 to 100 in a unit not stated."""
    min_aesthetic: float = Field(default=0.1, ge=0.0, le=1.0)
    """Least mean of contrast, colourfulness and sharpness, each in [0, 1]. Our choice, low enough
    that only blank and blurred clips go. It is not the scale of Allegro's 5.3."""
    max_text_area: float | None = Field(default=None, ge=0.0, le=1.0)
    """Largest share of the picture covered by text; Allegro: 0.0005. None does not measure it:
    there is no built-in measurer, so a number needs one given to `Intake`, which no recipe can."""
    duplicate_distance: float | None = Field(default=4.0, ge=0.0, le=64.0)
    """Bits of a 64-bit difference hash, averaged over the frames hashed, up to which a clip is a
    duplicate of a kept one. Our choice. None keeps duplicates."""
    min_height: int = Field(default=720, ge=1)
    """px of the source, before the crop. Allegro's 720p, read as the shorter side."""
    min_width: int = Field(default=720, ge=1)
    """px of the source, before the crop."""
    crop: Literal["centre", "none"] = "centre"
    """centre: cut the source to the wanted aspect; none: drop a source whose aspect differs by more
    than 1 per cent. A picture is never stretched. Our choice."""
    min_caption_chars: int = Field(default=1, ge=1)
    """Characters of the shortest caption, without white space around it. Our choice."""
    max_caption_chars: int = Field(default=2000, ge=1)
    """Characters of the longest caption. Our choice: about the 512 tokens that Wan's text encoder
    takes; more would be cut off unseen."""

    @model_validator(mode="after")
    def _check(self) -> IntakeConfig:
        low, high = self.motion_range
        if not 0.0 <= low < high:
            raise ValueError(
                f"motion_range must be two ascending numbers of at least 0, got {low:g}, {high:g}"
            )
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"min_seconds must be at most max_seconds, got {self.min_seconds:g} and "
                f"{self.max_seconds:g}"
            )
        if self.min_caption_chars > self.max_caption_chars:
            raise ValueError(
                f"min_caption_chars must be at most max_caption_chars, got "
                f"{self.min_caption_chars} and {self.max_caption_chars}"
            )
        return self
