"""Teaches the tiny vision-language model to answer questions about tiny-world clips.

One core, from nothing: all questions of a clip share one pass over it
(`rlvid.models.tiny.vlm_packed`), in bfloat16 arithmetic on float32 weights.

Asked everything at once from the start it learnt nothing: yes and no stayed at chance. In order it
takes minutes. First the vision tower alone learns to see: a linear head reads the state of the
world (which colours are where, of what shape, how fast) off its tokens, and is thrown away at the
end. Then come plain questions and open ones, the words of true statements learnt as text. Last the
negations, which turn every answer round and would hide all there is to learn. From some step on the
vision tower stays as it is and the language model alone learns, at a third of the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from rlvid.data.tiny_world.questions import (
    NO,
    YES,
    Question,
    ask,
    compare,
    grade,
    kinds_of,
    open_questions,
)
from rlvid.data.tiny_world.situations import FAMILIES, Family, Situation
from rlvid.models.tiny.judge_training import augment
from rlvid.models.tiny.vlm_layout import JudgeLayout, timeline
from rlvid.models.tiny.vlm_packed import (
    IGNORED,
    Asked,
    Packed,
    Packer,
    packed_hidden,
    vision_tokens,
)
from rlvid.reward_models.tiny_judge.clips import NUM_KNOWN, ClipPool, known_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class VlmTraining:
    """How the model is taught: what the legs of the shipped judge's teaching came to."""

    vision_steps: int = 2300
    """On the state of the world alone, before the questions."""
    vision_learning_rate: float = 2e-3
    """Peak; warmed up over 50 steps, cosine down to a twentieth."""
    num_steps: int = 5000
    """With questions."""
    batch_size: int = 16
    learning_rate: float = 1e-3
    """Peak; warmed up over 200 steps, cosine down to 0."""
    vision_rate_frac: float = 0.3
    """Of that rate for the vision tower: at the full rate the questions undo what it has learnt to
    see faster than they teach it anything."""
    frozen_from: float = 0.35
    """Share of the steps with questions after which the vision tower is left as it is."""
    family_shares: Mapping[Family, float] = field(
        default_factory=lambda: {"single": 0.5, "count": 0.125, "order": 0.375}
    )
    """Of the clips of a batch with questions: drawn alike they hold too few events in order, and
    a later leg on those alone undoes what was learnt of physics."""
    weight_decay: float = 0.05
    questions_per_clip: int = 8
    """Yes/no questions, at most two of a kind, beside up to three open ones."""
    bare_frac: float = 0.7
    """Of the yes/no questions, without a suffix."""
    pair_every: int = 12
    """Each so many steps ask about two clips at once; 0 never does."""
    known_weight: float = 1.0
    """Of the state of the world while questions are asked."""
    end_weight: float = 0.1
    """Of the end mark after an answer, against 1 for each word of it."""
    augmented_frac: float = 0.5
    echo_weight: float = 0.3
    """Of the words of plain questions that are true: saying "Is the object red" of a red object
    word by word, the model learns to expect the true word before it hears the one that is asked.
    Without it, yes and no stayed at chance for as long as we looked."""
    negated_from: float = 0.25
    negated_full: float = 0.5
    """Shares of all steps between which negations rise from none to half. A negation turns the
    answer round, so that before the plain questions are understood it hides all there is to learn.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class VlmStep:
    """What one training step reports."""

    step: int
    loss: float
    known_loss: float


def sheets(frames: Tensor, columns: int) -> Tensor:
    """Return contact sheets [B, C, rows * H, columns * W] of frames [B, T, C, H, W]."""
    batch, count, channels, height, width = frames.shape
    grid = frames.reshape(batch, count // columns, columns, channels, height, width)
    ordered = grid.permute(0, 3, 1, 4, 2, 5)
    return ordered.reshape(batch, channels, count // columns * height, columns * width)


def to_images(frames: Tensor, layout: JudgeLayout) -> Tensor:
    """Return [B, I, C, H, W] in [-1, 1] of shown frames [B, T, C, H, W] in [0, 1], as laid out."""
    if layout.timeline:
        bars = torch.from_numpy(timeline(frames.shape[1], *frames.shape[-2:])).float() / 255.0
        kept = frames[..., : frames.shape[-2] - bars.shape[1], :]
        drawn = bars[None, :, None].expand(len(frames), -1, 3, -1, -1)
        frames = torch.cat([kept, drawn], dim=-2)
    laid = frames if layout.layout == "images" else sheets(frames, layout.columns)[:, None]
    return laid * 2.0 - 1.0


def questions_of(
    situation: Situation, training: VlmTraining, negated_frac: float, rng: np.random.Generator
) -> list[Question]:
    """Return yes/no questions, plain or negated, then open ones and sometimes a grade.

    Where a kind lets it, a true and a false statement are both asked: nothing but the one word
    tells them apart.
    """
    asked: list[Question] = []
    for kind in kinds_of(situation):
        found: dict[str, list[tuple[Question, Question]]] = {YES: [], NO: []}
        for _ in range(8):
            suffix = "" if rng.random() < training.bare_frac else None
            twins = ask(situation, kind, rng, suffix=suffix)
            if twins not in found[twins[0].answer]:
                found[twins[0].answer].append(twins)
        chosen = [*found[YES][:2], *found[NO][:2]] if kind == "physics" else []
        chosen = chosen or [*found[YES][:1], *found[NO][:1]]
        asked += [twins[int(rng.random() < negated_frac)] for twins in chosen]
    order = rng.permutation(len(asked))[: training.questions_per_clip]
    asked = [asked[i] for i in order]
    free = open_questions(situation)
    asked += [free[i] for i in rng.permutation(len(free))[:3]]
    if "caption" in kinds_of(situation) and rng.random() < 0.25:
        asked.append(grade(situation, rng))
    return asked


def _asked(question: Question) -> Asked:
    """Echoed are true statements: those with an answer of yes that is not due to a "not"."""
    true = question.answer == YES and not question.negated
    return Asked(question.text, question.answer, echoed=true)


class VlmTeacher:
    """Holds the model, the head that is thrown away and the optimizer."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        pool: ClipPool,
        layout: JudgeLayout,
        *,
        training: VlmTraining,
        seed: int = 0,
    ) -> None:
        self._model, self._pool, self._layout, self._training = model, pool, layout, training
        shown, rows = len(layout.frames), len(layout.frames) // layout.columns
        height, width = layout.size
        sheet = layout.layout == "sheet"
        count = 1 if sheet else shown
        size = (rows * height, layout.columns * width) if sheet else (height, width)
        self._packers = {
            clips: Packer(tokenizer, model, num_images=clips * count, image_size=size)
            for clips in (1, 2)
        }
        side = 2 * model.config.vision_config.patch_size
        self._tokens = (height // side, width // side)
        """Rows and columns of image tokens that one frame has."""
        width_in = self._tokens[0] * self._tokens[1] * model.config.text_config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._head = nn.Linear(width_in, NUM_KNOWN)
        self._eos = int(tokenizer.eos_token_id)
        seeing = [*model.model.visual.parameters(), *self._head.parameters()]
        seen = {id(parameter) for parameter in seeing}
        speaking = [p for p in model.parameters() if id(p) not in seen]
        self._parameters = [*seeing, *speaking]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": chosen, "weight_decay": decay, "sees": part is seeing}
                for part in (seeing, speaking)
                for chosen, decay in (
                    ([p for p in part if p.dim() > 1], training.weight_decay),
                    ([p for p in part if p.dim() <= 1], 0.0),
                )
            ],
            lr=training.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self._rng = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._families = {
            family: [i for i, s in enumerate(pool.situations) if s.family == family]
            for family in FAMILIES
        }
        self._singles = self._families["single"]
        self._sound = [i for i, s in enumerate(pool.situations) if not s.breakage]

    def look(self, step: int) -> VlmStep:
        """Do one step of the vision tower alone, on clips that are not broken."""
        training = self._training
        factor = 0.05 + 0.475 * (1.0 + math.cos(math.pi * step / training.vision_steps))
        self._set_rate(training.vision_learning_rate * min(factor, (step + 1) / 50))
        picked = self._rng.integers(len(self._sound), size=training.batch_size)
        rows = [self._sound[i] for i in picked]
        with torch.autocast("cpu", torch.bfloat16):
            images = to_images(self._frames(rows), self._layout)
            tokens = vision_tokens(self._model, images.flatten(0, 1))
            state = self._head(self._frame_tokens(tokens.unflatten(0, images.shape[:2])))
        loss = known_loss(state, self._pool.known[rows])
        self._update(loss)
        return VlmStep(step=step, loss=loss.item(), known_loss=loss.item())

    def _set_rate(self, rate: float, vision_frac: float = 1.0) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate * (vision_frac if group["sees"] else 1.0)

    def _update(self, loss: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with_gradient = [p for p in self._parameters if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(with_gradient, 1.0)
        self._optimizer.step()

    def step(self, step: int) -> VlmStep:
        """Do one step with questions and return its losses."""
        factor = 0.5 + 0.5 * math.cos(math.pi * step / self._training.num_steps)
        rate = self._training.learning_rate * min(factor, (step + 1) / 200)
        self._set_rate(rate, self._training.vision_rate_frac)
        frozen = step >= self._training.frozen_from * self._training.num_steps
        self._model.model.visual.requires_grad_(not frozen)
        every = self._training.pair_every
        pairs = every > 0 and step % every == every - 1
        clips = 2 if pairs else 1
        packed, frames, known = self._pair_batch() if pairs else self._batch(step)
        packer = self._packers[clips]
        with torch.autocast("cpu", torch.bfloat16):
            images = to_images(frames, self._layout).unflatten(0, (-1, clips)).flatten(1, 2)
            hidden, tokens = packed_hidden(self._model, packed, images, packer.image_token)
            spoken = packed.labels != IGNORED
            logits = self._model.lm_head(hidden[spoken])
            state = self._head(self._frame_tokens(tokens))
        labels = packed.labels[spoken]
        weight = torch.where(labels == self._eos, self._training.end_weight, 1.0)
        losses = functional.cross_entropy(logits.float(), labels, reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        echo = self._echo_loss(hidden, packed)
        known_part = known_loss(state, known)
        total = loss + self._training.known_weight * known_part
        total = total + self._training.echo_weight * echo
        self._update(total)
        return VlmStep(step=step, loss=loss.item(), known_loss=known_part.item())

    def _echo_loss(self, hidden: Tensor, packed: Packed) -> Tensor:
        """Return the mean loss of the words of the echoed questions; 0 where there are none."""
        heard = packed.echoes != IGNORED
        if not heard.any():
            return hidden.new_zeros(())
        with torch.autocast("cpu", torch.bfloat16):
            logits = self._model.lm_head(hidden[heard])
        return functional.cross_entropy(logits.float(), packed.echoes[heard])

    def _negated_frac(self, step: int) -> float:
        """Return the share of negations among the yes/no questions of a step."""
        training = self._training
        start, full = training.negated_from, training.negated_full
        risen = (step / training.num_steps - start) / max(full - start, 1e-9)
        return 0.5 * min(max(risen, 0.0), 1.0)

    def _frame_tokens(self, tokens: Tensor) -> Tensor:
        """[B, I, M, D] -> [clips, T, M' * D], M' the image tokens of one frame."""
        high, wide = self._tokens
        width = tokens.shape[-1]
        if self._layout.layout == "images":
            return tokens.reshape(-1, len(self._layout.frames), high * wide * width)
        columns = self._layout.columns
        rows = len(self._layout.frames) // columns
        grid = tokens.reshape(-1, rows, high, columns, wide, width)
        return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, high * wide * width)

    def _frames(self, rows: list[int]) -> Tensor:
        """Return frames [B, T, 3, H, W] in [0, 1], some as a generator might blur them."""
        frames = self._pool.frames[rows].float() / 255.0
        chosen = torch.rand(len(frames), generator=self._generator) < self._training.augmented_frac
        if chosen.any():
            frames[chosen] = augment(frames[chosen], self._generator)
        return frames

    def _batch(self, step: int) -> tuple[Packed, Tensor, Tensor]:
        negated = self._negated_frac(step)
        rows = self._drawn_rows()
        questions = [
            questions_of(self._pool.situations[i], self._training, negated, self._rng) for i in rows
        ]
        packed = self._packers[1].pack([[_asked(q) for q in asked] for asked in questions])
        return packed, self._frames(rows), self._pool.known[rows]

    def _drawn_rows(self) -> list[int]:
        """Return the clips of a batch: a family by its share, then one of its clips."""
        present = {f: s for f, s in self._training.family_shares.items() if self._families[f]}
        shares = np.array(list(present.values()))
        families = self._rng.choice(
            list(present), size=self._training.batch_size, p=shares / shares.sum()
        )
        return [int(self._rng.choice(self._families[family])) for family in families.tolist()]

    def _pair_batch(self) -> tuple[Packed, Tensor, Tensor]:
        rows: list[int] = []
        questions: list[list[Question]] = []
        while len(questions) < max(self._training.batch_size // 2, 1):
            one, two = (self._singles[i] for i in self._rng.integers(len(self._singles), size=2))
            asked = compare(self._pool.situations[one], self._pool.situations[two], self._rng)
            if asked:
                rows += [one, two]
                questions.append(asked)
        packed = self._packers[2].pack([[_asked(q) for q in asked] for asked in questions])
        return packed, self._frames(rows), self._pool.known[rows]


def teach(
    teacher: VlmTeacher, training: VlmTraining, on_step: Callable[[VlmStep], None] | None = None
) -> None:
    """Do all steps, telling `on_step` of each: first those that look, then those that ask."""
    for step in range(training.vision_steps + training.num_steps):
        first = step < training.vision_steps
        report = teacher.look(step) if first else teacher.step(step - training.vision_steps)
        if on_step is not None:
            on_step(report)
