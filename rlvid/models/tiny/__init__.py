"""The tiny model that ships with rlvid: a real Wan pipeline of about two million parameters.

`pipeline/` holds the trained weights in diffusers' layout. `build` makes the same folder from
nothing, `vae_training` trains its VAE; the transformer is trained by the SFT phase. `judge/` holds
the weights of the independent attribute judge, `vlm_judge/` a small vision-language model,
`video_text/` a contrastive video-text network, `reward_model/` one trained on preference pairs.
"""

from __future__ import annotations

from pathlib import Path


def pipeline_folder() -> Path:
    """Return the folder of the shipped pipeline."""
    return Path(__file__).parent / "pipeline"


def judge_folder() -> Path:
    """Return the folder of the shipped attribute judge."""
    return Path(__file__).parent / "judge"


def vlm_judge_folder() -> Path:
    """Return the folder of the shipped vision-language judge, which vLLM serves."""
    return Path(__file__).parent / "vlm_judge"


def video_text_folder() -> Path:
    """Return the folder of the shipped video-text network."""
    return Path(__file__).parent / "video_text"


def reward_model_folder() -> Path:
    """Return the folder of the shipped reward model."""
    return Path(__file__).parent / "reward_model"
