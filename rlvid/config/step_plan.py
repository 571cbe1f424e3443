"""The `rollout.step_plan` section: which denoising steps are stochastic and trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section, refuse_of_other_kinds, refuse_unread

WINDOW = ("window_stride", "window_every")
READERS = {
    "fraction": ("fraction",),
    "num_steps": ("window", "random", "tree"),
    **dict.fromkeys(WINDOW, ("window", "tree")),
    "num_branches": ("branch", "tree"),
    "branch_at": ("branch",),
    **dict.fromkeys(("split_steps", "between", "branch_scale", "pruned_steps"), ("tree",)),
}
"""Setting to the kinds that read it, in `rlvid.flow.step_plans`. `range_frac` is not among them: a
recipe names its part of the schedule, and keeps it when an override sets another kind."""


class StepPlanConfig(Section):
    """Which denoising steps are stochastic and trained."""

    kind: Literal["all", "fraction", "window", "random", "isotemporal", "branch", "tree", "ode"] = (
        "isotemporal"
    )
    """all: every step; fraction: a random part of the steps; window: MixGRPO's sliding window;
    random: `num_steps` drawn anew for each prompt; isotemporal: one step per prompt (Flash-GRPO);
    branch: `num_branches` rollouts part at a step, without noise elsewhere (TempFlow-GRPO);
    tree: every state branches at each of `split_steps` (BranchGRPO);
    ode: none, for algorithms that look at final videos alone (nft, awm, dpo)."""
    range_frac: tuple[float, float] = (0.0, 0.5)
    """Part of the schedule from which steps are drawn; Flash-GRPO uses the first half."""
    fraction: float = Field(default=0.6, gt=0.0, le=1.0)
    """For `fraction`; 0.6 is DanceGRPO's timestep_fraction."""
    num_steps: int = Field(default=1, ge=1)
    """For `random`: how many. For `window`, and the one of a tree: its width (MixGRPO uses 4 of 25,
    BranchGRPO 4 of 20)."""
    window_stride: int = Field(default=1, ge=1)
    window_every: int = Field(default=25, ge=1)
    """Optimiser steps between moves of the window (MixGRPO: 25)."""
    num_branches: int = Field(default=2, ge=2)
    """For `branch`: rollouts of an initial noise that part at one step; TempFlow-GRPO's code has 6.
    For `tree`: children of a state at a split."""
    branch_at: Literal["drawn", "each"] = "drawn"
    """For `branch`: where. drawn: all of a group at one step, drawn for each prompt. each: at every
    step of `range_frac` in turn, along the same trajectory of each initial noise, as published
    (arXiv:2508.04324; there with all steps but the last). A rollout then has noise at one step and
    is compared with those that have it there too. Rollouts of an initial noise are num_branches
    times these steps."""
    split_steps: tuple[int, ...] = (0, 3, 6, 9)
    """For `tree`: where it branches, BranchGRPO's of 20 steps (arXiv:2509.06040). A group holds
    num_branches to the power of their number rollouts for each initial noise."""
    between: Literal["sde", "window", "ode"] = "sde"
    """For `tree`: the steps that do not branch. sde: with noise and trained, as published. ode:
    neither, so that only splits are. window: sde in a window of `num_steps`, ode outside of it
    (BranchGRPO-Mix). The window goes over all steps but the last, moved as that of `window`; in the
    released code its place goes by the denoising step, so at its interval of 30 it never moves."""
    branch_scale: float | None = Field(default=4.0, gt=0.0)
    """For `tree`: s of the noise (x_0 + s x_i) / sqrt(1 + s^2) of children, x_0 being theirs
    together; BranchGRPO's 4. None draws each by itself."""
    pruned_steps: int = Field(default=0, ge=0)
    """For `tree`: so many steps behind the last split are sampled, but not trained: the last ones
    at first, then `window_stride` earlier every `window_every` optimiser steps (BranchGRPO's depth
    pruning, every 30), as far as the last split."""

    @model_validator(mode="after")
    def _check(self) -> StepPlanConfig:
        refuse_of_other_kinds(self, self.kind, READERS)
        if self.kind == "tree" and self.between != "window":
            why = f"by a tree with between {self.between}, but by one with window"
            refuse_unread(self, ("num_steps",), why)
            if not self.pruned_steps:
                refuse_unread(self, WINDOW, f"{why} or with pruned_steps")
        return self
