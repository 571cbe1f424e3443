"""Calibration tasks of the laws of motion: two objects that meet, and gravity of a known factor."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world import all_facts, caption, split_of
from rlvid.data.tiny_world.breakages_objects import with_gravity
from rlvid.data.tiny_world.collisions import render_pair
from rlvid.data.tiny_world.draw import draw
from rlvid.data.tiny_world.scene import sample_scene
from rlvid.data.tiny_world.simulate import simulate
from rlvid.records import Prompt
from rlvid.rewards.calibration.clip_sets import HELDOUT_SEEDS, NUM_SEEDS, ClipSet
from rlvid.seeds import derive_seed, prompt_id


def pair_clips(breakage: str | None, num_clips: int, *, seed: int, split: str) -> ClipSet:
    """Draw clips of two objects; the prompts say what they show and have no facts."""
    rng = np.random.default_rng(derive_seed(seed, "pairs", split, str(breakage)))
    first = HELDOUT_SEEDS if split == "heldout" else 0
    seeds = [first + int(n) for n in rng.integers(NUM_SEEDS, size=num_clips)]
    drawn = [render_pair(s, breakage=breakage) for s in seeds]
    texts = [pair.text for _, pair in drawn]
    return ClipSet(
        videos=torch.stack([clip for clip, _ in drawn]),
        prompts=tuple(Prompt(prompt_id=prompt_id(text), text=text) for text in texts),
    )


def pair_task(breakage: str, num_clips: int, *, seed: int, split: str) -> tuple[ClipSet, ClipSet]:
    """Return true and broken clips of two objects."""
    true = pair_clips(None, num_clips, seed=seed, split=split)
    return true, pair_clips(breakage, num_clips, seed=seed, split=split)


pass_through = partial(pair_task, "pass_through")
momentum_gain = partial(pair_task, "momentum_gain")
energy_gain = partial(pair_task, "energy_gain")
vanish_one = partial(pair_task, "vanish_one")
appear_one = partial(pair_task, "appear_one")
merge_two = partial(pair_task, "merge_two")
swap_colours = partial(pair_task, "swap_colours")
float_one = partial(pair_task, "float_one")


def gravity_factor(num_clips: int, *, seed: int, split: str) -> tuple[ClipSet, Tensor]:
    """Clips of falling, bouncing and flying under 0.4 to 2.5 times g; strength |log factor|."""
    motions = ("falls", "bounces", "flies")
    known = [f for f in all_facts() if split_of(f) == split and f["motion"] in motions]
    rng = np.random.default_rng(derive_seed(seed, "gravity factor", split))
    first = HELDOUT_SEEDS if split == "heldout" else 0
    clips, prompts, strengths = [], [], []
    for _ in range(num_clips):
        facts = known[int(rng.integers(len(known)))]
        scene = sample_scene(facts, first + int(rng.integers(NUM_SEEDS)))
        strength = float(rng.uniform(-np.log(2.5), np.log(2.5)))
        track = with_gravity(scene, simulate(scene, 17, 8), 8, float(np.exp(strength)))
        frames = torch.from_numpy(draw(track, scene, 32, 32))
        clips.append(frames.permute(0, 3, 1, 2).float() / 255.0)
        text = caption(facts)
        prompts.append(Prompt(prompt_id=prompt_id(text), text=text, facts=facts))
        strengths.append(abs(strength))
    return ClipSet(videos=torch.stack(clips), prompts=tuple(prompts)), torch.tensor(strengths)
