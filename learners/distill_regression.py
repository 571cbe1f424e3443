"""Stages that regress the student on a target: the step that they share. A plain class."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlvid.learners.distill import StageLearner


class RegressionLearner(StageLearner):
    """Takes steps on a loss of each row; a stage says what it is."""

    def losses(self, step: int, rows: Sequence[int]) -> Tensor:
        """Return the loss [len(rows)] of rows of a step, with gradient."""
        raise NotImplementedError

    def step(self, step: int) -> dict[str, float]:
        engine, size = self.trainee.engine, self.settings.stage_config.batch_size
        parts, loss_sum = self.parts(size), 0.0
        for number, (rows, counted) in enumerate(parts):
            loss = (self.losses(step, rows) * counted.to(engine.device)).sum() / size
            engine.backward(loss, is_last=number == len(parts) - 1)
            loss_sum += float(loss.detach())
            self.num_micro_batches += 1
        rate = self.trainee.next_learning_rate()
        norm = self.trainee.step()
        return {
            "distillation/loss/mean": engine.ranks.sum([loss_sum])[0],
            "distillation/grad_norm/total": norm,
            "distillation/learning_rate/value": rate,
        }
