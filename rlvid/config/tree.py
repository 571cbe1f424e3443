"""The `algorithm.tree` section: credit of step plans that branch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section, is_set
from rlvid.config.rollout import RolloutConfig


class TreeConfig(Section):
    """Credit of plans that branch, `rollout.step_plan.kind` tree and branch.

    A node is worth what the videos below it are, and is compared with other nodes of its depth
    (BranchGRPO, arXiv:2509.06040; `rlvid.algorithms.tree_credit`). The advantages of a depth have a
    spread of 1 over the group, whatever `advantage.std`.
    """

    fusion: Literal["mean", "path"] = "mean"
    """mean: of all videos below a node, the default of the released code. path: of a node's
    children, weighted by the softmax of the mean log-probability of the steps to them."""
    baseline: Literal["depth", "siblings"] = "depth"
    """depth: a node is compared with all nodes of its depth in the group, as published; for branch
    plans with all rollouts that part at its step. siblings: with the children of its own parent
    alone, so that neither the initial noise nor an earlier split counts for a later one."""
    width: Literal["all", "best_child", "extremes"] = "all"
    """Which videos of a tree train the steps behind its last split; the credit is of all of them
    (BranchGRPO's width pruning). best_child: of each parent at the last split the best one.
    extremes: the best and the worst of the group. The others are left out of the learner's forwards
    where `learner.replay` is batched; as_sampled forwards them for its ratio of exactly 1."""
    extremes_frac: float = Field(default=0.5, gt=0.0, le=1.0)
    """Of width extremes: share of a group's videos that is kept, two at least, half of them the
    best; 0.5 is the released code's."""

    @model_validator(mode="after")
    def _check(self) -> TreeConfig:
        if self.width != "extremes" and is_set(self, "extremes_frac"):
            raise ValueError(
                f"extremes_frac is read by width extremes alone, got width {self.width} and "
                f"{self.extremes_frac:g}; leave it out, or set the width"
            )
        return self


def check_branching(tree: TreeConfig, best_of_n: int | None, rollout: RolloutConfig) -> None:
    """Raise ValueError where grpo cannot credit the plans of `rollout` so.

    Args:
        best_of_n: `algorithm.advantage.best_of_n`.
    """
    plan = rollout.step_plan
    if plan.kind == "tree" and best_of_n is not None:
        raise ValueError(
            "algorithm.advantage.best_of_n: a node of a tree is worth what all videos below it "
            f"are: expected it left out with rollout.step_plan.kind tree, got {best_of_n}"
        )
    if plan.branch_at == "each" and best_of_n is not None:
        raise ValueError(
            "algorithm.advantage.best_of_n: rollouts are compared with those that part at the same "
            f"step: expected it left out with rollout.step_plan.branch_at each, got {best_of_n}"
        )
    behind = rollout.num_denoising_steps - 2 - plan.split_steps[-1]
    if tree.width != "all" and (plan.kind != "tree" or plan.between == "ode" or behind < 1):
        raise ValueError(
            f"algorithm.tree.width: {tree.width} prunes trained steps behind the last split of a "
            "tree, and there are none: expected all, or rollout.step_plan.kind tree with between "
            f"sde or window, got kind {plan.kind}, between {plan.between} and split_steps "
            f"{list(plan.split_steps)} of {rollout.num_denoising_steps} denoising steps"
        )
