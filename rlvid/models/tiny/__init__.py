"""The tiny model that ships with rlvid: a real Wan pipeline of about two million parameters.

`pipeline/` holds the trained weights in diffusers' layout. `build` makes the same folder from
nothing, `vae_training` trains its VAE; the transformer is trained by the SFT phase. `judge/` holds
the weights of the independent attribute judge.
"""

from __future__ import annotations

from pathlib import Path


def pipeline_folder() -> Path:
    """Return the folder of the shipped pipeline."""
    return Path(__file__).parent / "pipeline"


def judge_folder() -> Path:
    """Return the folder of the shipped attribute judge."""
    return Path(__file__).parent / "judge"
