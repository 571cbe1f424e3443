"""Trains a reward model on preference pairs: one process, one rank. A plain class.

Not under ZeRO: a projected gradient needs two whole gradients of every parameter, and ZeRO shards
and reduces each as it comes. Letters: B pairs of a step, P parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlvid.config.reward_model import RewardModelConfig
from rlvid.data.prompts import seeded_order
from rlvid.learners.schedule import learning_rate
from rlvid.records import StepReport
from rlvid.reward_models.network import RewardModel, pair_loss
from rlvid.reward_models.pairs import PairSet, PreferencePair
from rlvid.reward_models.projection import project_gradient, sum_of_products
from rlvid.seeds import derive_seed

STATE_FILE = "reward_model.safetensors"


class RewardModelLearner:
    """Takes optimiser steps; step n is a function of (seed, n) and what was there before it."""

    def __init__(
        self,
        model: RewardModel,
        config: RewardModelConfig,
        pairs: PairSet,
        *,
        seed: int,
        old_pairs: PairSet | None = None,
    ) -> None:
        """`old_pairs`: gradients that would raise the loss on these are projected."""
        self._config, self._seed = config, seed
        self._pairs, self._old_pairs = pairs, old_pairs
        self._device = torch.device(config.device)
        self.model = model.to(self._device).train()
        self._parameters = self.model.trained_parameters()
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=config.optimizer.learning_rate,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
        )

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        """Take optimiser steps `first` to `last` - 1.

        Raises:
            FloatingPointError: a gradient is not finite; the weights are those before that step.
        """
        self.model.train()
        return [self._train_step(step) for step in range(first, last)]

    def batch(self, step: int, pairs: PairSet, purpose: str) -> tuple[PreferencePair, ...]:
        """Return the pairs of a step, each turned round or not, the same after every resume."""
        size, count = self._config.batch_size, len(pairs.pairs)
        chosen = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, count)
            order = seeded_order(self._seed, purpose, epoch, count)
            pair = pairs.pairs[order[place]]
            turns = derive_seed(self._seed, purpose, "turn", position) & 1
            chosen.append(pair.swapped() if turns else pair)
        return tuple(chosen)

    def save(self, folder: Path) -> None:
        """Write parameters and moments; there is no other state."""
        tensors = {f"parameter/{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"{key}/{name}": value for key, value in state.items()}
        save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; right after opening.

        Raises:
            ValueError: it is of another model.
        """
        tensors = load_file(folder / STATE_FILE)
        saved = {n.partition("/")[2] for n in tensors if n.startswith("parameter/")}
        if saved != set(self._parameters):
            raise ValueError(
                f"checkpoint {folder}: reward_model: expected the parameters of this model, "
                f"differing: {sorted(saved ^ set(self._parameters))[:4]}; resume with the recipe "
                "it was written with"
            )
        for name, parameter in self._parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors.pop(f"parameter/{name}"))
        moments: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            key, _, owner = name.partition("/")
            device = torch.device("cpu") if key == "step" else self._device
            moments.setdefault(owner, {})[key] = tensor.to(device)
        for owner, state in moments.items():
            self._optimizer.state[self._parameters[owner]] = state

    def _train_step(self, step: int) -> StepReport:
        config = self._config
        batch = self.batch(step, self._pairs, "pairs")
        loss, hits, gradient = self.gradient(self._pairs, batch)
        _check_finite(gradient, f"step {step}: the gradient of the new pairs")
        old = self._old_gradient(step)
        for parameter, value in zip(self._parameters.values(), gradient, strict=True):
            parameter.grad = value
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                self._parameters.values(), config.max_grad_norm, error_if_nonfinite=True
            )
        )
        rate = learning_rate(config.optimizer, step, config.num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        before = [p.detach().clone() for p in self._parameters.values()]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        is_projected = old is not None and self._project_step(before, old)
        metrics = {
            "reward_model/loss/mean": loss,
            "reward_model/accuracy/mean": hits,
            "reward_model/grad_norm/total": norm,
            "reward_model/learning_rate/value": rate,
        }
        if self._old_pairs is not None:
            metrics["reward_model/projected/frac"] = float(is_projected)
        return StepReport(step=step, metrics=metrics)

    def _old_gradient(self, step: int) -> list[Tensor] | None:
        """Return the gradient of the old pairs' loss at the present weights; checked to be finite.

        Before the optimiser's step: a projection on NaN would overwrite every weight with it.
        """
        if self._old_pairs is None:
            return None
        _, _, old = self.gradient(self._old_pairs, self.batch(step, self._old_pairs, "old pairs"))
        _check_finite(old, f"step {step}: the gradient of the old pairs")
        return old

    @torch.no_grad()
    def _project_step(self, before: Sequence[Tensor], old: Sequence[Tensor]) -> bool:
        """Take out of the step just taken what raises the old loss; return whether it did.

        The step, not the gradient: AdamW's moments and scaling would turn a projected gradient
        back against the old loss. Minus the step is the gradient that plain descent would follow.
        """
        parameters = list(self._parameters.values())
        descent = [b - p for b, p in zip(before, parameters, strict=True)]
        projected, is_projected = project_gradient(descent, old)
        if is_projected:
            for parameter, start, change in zip(parameters, before, projected, strict=True):
                parameter.copy_(start - change)
        return is_projected

    def gradient(
        self, source: PairSet, batch: Sequence[PreferencePair]
    ) -> tuple[float, float, list[Tensor]]:
        """Return loss, share of winners found, and the gradient, in the parameters' order."""
        videos = source.videos([p.first for p in batch] + [p.second for p in batch])
        texts = [pair.prompt for pair in batch]
        judged = self.model(videos.to(self._device), texts + texts)
        rows = torch.arange(2 * len(batch), device=self._device)
        first, second = judged.rows(rows[: len(batch)]), judged.rows(rows[len(batch) :])
        label = torch.tensor([pair.labels for pair in batch], device=self._device)
        loss = pair_loss(first, second, label, tie_k=self._config.tie_k)
        gradient = torch.autograd.grad(
            loss, list(self._parameters.values()), materialize_grads=True, allow_unused=True
        )
        decided = label.abs() == 1
        found = ((first.mean - second.mean).sign() == label) & decided
        hits = float(found.sum() / decided.sum().clamp(min=1))
        return float(loss.detach()), hits, list(gradient)


def _check_finite(gradient: Sequence[Tensor], what: str) -> None:
    square = float(sum_of_products(gradient, gradient))
    if not math.isfinite(square):
        raise FloatingPointError(
            f"reward_model: {what} has norm {math.sqrt(square)}: expected a finite one. Lower "
            "reward_model.optimizer.learning_rate, or look at its clips. The weights are unchanged "
            "since the last step."
        )
