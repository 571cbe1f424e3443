"""Pairs with weak labels: a clip of a stronger model is taken as better than a weaker one's.

Paper A trains its reward models on unlabelled videos of models of different strength; that the
strength is the label, and everything else here, is our reading (methods 1.3 [D]). Nothing in this
file asks a scorer. Clips are of the tiny world's training captions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rlvid.config.reward_model import RungConfig, WeakPairsConfig
from rlvid.data.clips import ClipShape, TinyWorldClips
from rlvid.data.tiny_world import caption, render_clip
from rlvid.reward_models import PARTS
from rlvid.reward_models.degradations import DEGRADATIONS, check_names, degrade
from rlvid.reward_models.losses import A_WINS, TIE
from rlvid.reward_models.pairs import ClipTensor, PairSet, PreferencePair, is_heldout
from rlvid.seeds import derive_seed

RungClips = Callable[[int, Sequence[str], Sequence[int], Tensor], Tensor]
"""(rung index, captions, seeds, true clips [N, T, 3, H, W] uint8) -> clips of that rung, same."""

MIN_MISMATCH = 2
"""Attributes in which a mismatched clip differs at least. The adherence breakages change one, so
none of them is ever shown with a label."""


def build_weak_pairs(
    config: WeakPairsConfig,
    shape: ClipShape,
    *,
    seed: int,
    heldout_frac: float,
    rung_clips: RungClips,
) -> PairSet:
    """Return the pairs of `config`; the same arguments give the same pairs.

    Args:
        heldout_frac: share of the prompts that `PairSet.split` will hold out; no pair mixes clips
            of both sides, so the held-out clips are in no training pair.

    Raises:
        ValueError: unknown degradation, or a ladder that cannot give the pairs asked for.
    """
    check_names(config.degradations, "reward_model.pairs.weak.degradations")
    if config.ladder_pairs and len(config.ladder) < 2:
        raise ValueError(
            "reward_model.pairs.weak.ladder: expected two rungs or more, since a pair is of two, "
            f"got {len(config.ladder)}; add one, or set ladder_pairs to 0"
        )
    if config.degradation_pairs > len(config.degradations):
        raise ValueError(
            f"reward_model.pairs.weak.degradation_pairs: expected at most "
            f"{len(config.degradations)}, one a degradation, got {config.degradation_pairs}"
        )
    return _Builder(config, shape, seed, heldout_frac, rung_clips).build()


class _Builder:
    """Collects clips and pairs."""

    def __init__(
        self,
        config: WeakPairsConfig,
        shape: ClipShape,
        seed: int,
        heldout_frac: float,
        rung_clips: RungClips,
    ) -> None:
        self._config, self._shape, self._seed = config, shape, seed
        self._heldout_frac, self._rung_clips = heldout_frac, rung_clips
        self._source = TinyWorldClips(shape, num_clips=config.num_prompts, clip_seed=seed)
        self._clips: list[Tensor] = []
        self._pairs: list[PreferencePair] = []

    def build(self) -> PairSet:
        count = self._config.num_prompts
        facts = [self._source.facts(index) for index in range(count)]
        texts = [caption(fact) for fact in facts]
        true = torch.stack([_bytes(self._source.clip(index)[0]) for index in range(count)])
        others = torch.stack(
            [_bytes(self._render(fact, index)) for index, fact in enumerate(facts)]
        )
        heldout = [is_heldout(text, self._heldout_frac) for text in texts]
        first_true, first_other = self._add(true), self._add(others)
        rungs = [
            first_true if rung.source == "true" else self._add(self._rung(index, texts, true))
            for index, rung in enumerate(self._config.ladder)
        ]
        for item, text in enumerate(texts):
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "weak", item))
            places = (first_true + item, first_other + item)
            for _ in range(self._config.tie_pairs):
                self._pair(*places, text, (), "tie")
            self._spoil(item, places, text, true[item], others[item], generator)
            self._mismatch(item, first_true, text, facts, heldout, generator)
            for _ in range(self._config.ladder_pairs):
                above, below = sorted(torch.randperm(len(rungs), generator=generator)[:2].tolist())
                worse = _worse_in(self._config.ladder, above, below)
                self._pair(rungs[above] + item, rungs[below] + item, text, worse, "ladder")
        return PairSet(clips=ClipTensor(torch.stack(self._clips)), pairs=tuple(self._pairs))

    def _render(self, facts: Mapping[str, str], index: int) -> Tensor:
        """Return another take of the same caption."""
        shape = self._shape
        return render_clip(
            facts,
            derive_seed(self._seed, "other take", index),
            num_frames=shape.num_frames,
            height=shape.height,
            width=shape.width,
            fps=shape.fps,
        )

    def _rung(self, index: int, texts: Sequence[str], true: Tensor) -> Tensor:
        seeds = [derive_seed(self._seed, "rung", index, item) for item in range(len(texts))]
        clips = self._rung_clips(index, texts, seeds, true)
        if clips.shape != true.shape or clips.dtype != torch.uint8:
            raise ValueError(
                f"reward_model.pairs.weak.ladder.{index}: made {clips.dtype} clips "
                f"{tuple(clips.shape)}, expected torch.uint8 {tuple(true.shape)} as the true ones"
            )
        return clips

    def _spoil(
        self,
        item: int,
        places: tuple[int, int],
        text: str,
        clip: Tensor,
        other: Tensor,
        generator: torch.Generator,
    ) -> None:
        names = self._config.degradations
        for pick in torch.randperm(len(names), generator=generator)[
            : self._config.degradation_pairs
        ]:
            name = names[int(pick)]
            seed = derive_seed(self._seed, "degrade", item, name)
            spoilt = degrade(name, clip.float() / 255.0, other.float() / 255.0, seed)
            place = self._add(_bytes(spoilt)[None])
            # Half of the pairs are of two takes, lest the model learn to compare pixel by pixel.
            better = places[int(torch.randint(2, (1,), generator=generator))]
            self._pair(better, place, text, (DEGRADATIONS[name].spoils,), name)

    def _mismatch(
        self,
        item: int,
        first_true: int,
        text: str,
        facts: Sequence[Mapping[str, str]],
        heldout: Sequence[bool],
        generator: torch.Generator,
    ) -> None:
        # Of the same side only: a split by prompt would otherwise train on held-out clips.
        wrong = [
            other
            for other, fact in enumerate(facts)
            if heldout[other] == heldout[item]
            and sum(fact[key] != facts[item][key] for key in fact) >= MIN_MISMATCH
        ]
        for pick in torch.randperm(len(wrong), generator=generator)[: self._config.mismatch_pairs]:
            place = first_true + wrong[int(pick)]
            self._pair(first_true + item, place, text, ("TA",), "mismatch")

    def _add(self, clips: Tensor) -> int:
        """Keep clips and return the index of the first."""
        first = len(self._clips)
        self._clips += list(clips)
        return first

    def _pair(self, better: int, worse: int, text: str, worse_in: Sequence[str], kind: str) -> None:
        labels = tuple(A_WINS if part in worse_in else TIE for part in PARTS)
        self._pairs.append(
            PreferencePair(first=better, second=worse, prompt=text, labels=labels, kind=kind)
        )


def _worse_in(ladder: Sequence[RungConfig], above: int, below: int) -> tuple[str, ...]:
    """Return the parts in which a rung is worse than one above it."""
    return tuple({part for rung in ladder[above + 1 : below + 1] for part in rung.worse_in})


def _bytes(clip: Tensor) -> Tensor:
    return clip.mul(255.0).round().clamp(0, 255).to(torch.uint8)
