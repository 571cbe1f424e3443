"""Builds the tiny model of the tiny world from nothing and trains its VAE.

What follows is the sft phase with `sft.initialise: true`, which trains the transformer. Together
they are the recipe behind the weights that ship with rlvid.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from rlvid.launch.phases.base import Artifacts, PhaseContext
from rlvid.models.policy import Policy
from rlvid.observability.progress import open_progress

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

NUM_TEST_CLIPS = 64
"""Clips past the training ones, on which the VAE is measured."""


class TinyBase:
    """Writes a pipeline folder whose transformer is still untrained."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        from rlvid.data.tiny_world import grammar
        from rlvid.models.tiny.build import build_pipeline
        from rlvid.models.tiny.vae_training import VaeTraining, measure_vae, train_vae

        recipe = context.recipe
        config = recipe.tiny_base
        context.recorder.resume_after(None)  # it has no checkpoints, so it starts anew
        captions = [grammar.caption(facts) for facts in grammar.all_facts()]
        pipeline = build_pipeline(captions, seed=recipe.seed)
        clips = self._clips(context)
        with open_progress("tiny_base", config.vae_steps) as progress:

            def show(step: int, loss: float) -> None:
                if (step + 1) % 100 == 0:
                    context.recorder.write(step + 1, {"tiny_base/vae_loss/mean": loss})
                    progress.step_done(step, {"tiny_base/vae_loss/mean": loss})

            train_vae(
                pipeline.vae,
                clips[:-NUM_TEST_CLIPS],
                training=VaeTraining(num_steps=config.vae_steps, batch_size=config.vae_batch_size),
                seed=recipe.seed,
                on_step=show,
            )
        measured = measure_vae(pipeline.vae, clips[-NUM_TEST_CLIPS:])
        (context.folder / "vae.json").write_text(json.dumps(asdict(measured), indent=1) + "\n")
        folder = context.folder / "pipeline"
        pipeline.save_pretrained(folder)
        policy = Policy(model_path=str(folder))
        return replace(artifacts, base_policy=policy, policy=policy)

    def _clips(self, context: PhaseContext) -> Tensor:
        """Return [N, T, 3, H, W] uint8 clips of train captions; the last ones are for the test."""
        import torch

        from rlvid.data.clips import clip_shape, open_clips

        shape = clip_shape(context.recipe.model)
        count = context.recipe.tiny_base.num_clips + NUM_TEST_CLIPS
        clips = open_clips("tiny_world", shape, num_clips=count, clip_seed=context.recipe.seed)
        return torch.stack(
            [(clips.clip(i)[0] * 255.0).round().to(torch.uint8) for i in range(count)]
        )
