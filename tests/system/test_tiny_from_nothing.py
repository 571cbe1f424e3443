"""The recipe behind the shipped weights runs from nothing, at a size that proves only that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlvid.config.loader import load_recipe
from rlvid.launch.run import artifacts_of, run_recipe
from rlvid.observability.recorder import read_rows


@pytest.mark.slow
def test_recipe_of_the_tiny_model_ends_in_a_pipeline_diffusers_loads(tmp_path: Path) -> None:
    """Tokenizer, text encoder, VAE and transformer from nothing; diffusers must read the result."""
    recipe = load_recipe(
        "tiny_world_from_nothing_cpu",
        [
            "tiny_base.num_clips=64",
            "tiny_base.vae_steps=100",
            "tiny_base.vae_batch_size=2",
            "sft.num_steps=3",
            "sft.num_clips=32",
            "sft.batch_size=4",
        ],
    )
    run = tmp_path / "run"
    run_recipe(recipe, run)

    vae = json.loads((run / "phases" / "00_tiny_base" / "vae.json").read_text())
    assert vae["psnr_db"] > 10.0
    losses = [row["metrics"]["sft/loss/mean"] for row in read_rows(run / "metrics.jsonl")
              if row["phase"] == "01_sft"]  # fmt: skip
    assert len(losses) == 3

    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(artifacts_of(run).policy.model_path)
    clip = pipeline(
        "a red ball falls to the left while the camera stays still",
        height=32, width=32, num_frames=17, num_inference_steps=2, max_sequence_length=24,
        output_type="pt", generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    assert clip.shape == (1, 17, 3, 32, 32)
    assert torch.isfinite(clip).all()
