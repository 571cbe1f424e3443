r"""Credit of a tree: a value for every node, and an advantage against its rivals.

BranchGRPO (arXiv:2509.06040) fuses the rewards of the leaves upwards and normalises the nodes of
each depth among themselves; a step is credited with the node it leads to. With V the value of a
node and c its children,

    mean   V = mean of the advantages of the leaves below
    path   V = sum over c of softmax(log p_c) V_c,  log p_c a mean over elements of the step to c
    A      = (V - baseline) / sqrt(mean (V - baseline)^2), the mean over the nodes of one depth

both as in its released code (github.com/Fredreic1849/BranchGRPO, `compute_node_rewards_from_leaves`
and `compute_hierarchical_advantages_by_depth`; the paper's own equations were read in notes). There
are three differences: its standard deviation is that of a sample; it fuses rewards where this fuses
the group's advantages, which comes to the same, as both are linear and a depth is normalised anew;
and a group of several initial noises is compared as one tree.

The baseline is the mean of the depth, or of a node's siblings: TempFlow-GRPO (arXiv:2508.04324)
branches at one step, and with siblings only what that step's noise changed is credited to it.

Letters: G rollouts of a group, the leaves; S trained steps; K nodes of a depth. Everything float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlvid.algorithms.base import GroupCredit
from rlvid.config.algorithm import AdvantageConfig, TreeConfig
from rlvid.records import StepPlan


def has_tree_credit(plan: StepPlan, config: TreeConfig) -> bool:
    """Return whether steps of the plan need other advantages than the group's own."""
    return bool(plan.num_nodes) or config.baseline == "siblings"


def tree_credit(
    credit: GroupCredit,
    plan: StepPlan,
    log_prob: Tensor,
    *,
    tree: TreeConfig,
    advantage: AdvantageConfig,
) -> tuple[Tensor, Tensor]:
    """Return the advantage [S, G] float32 of every trained step, and which rows to train [S, G].

    Of the rollouts that are one node after a step, the first is trained for all, so every edge of
    the tree counts once. A leaf that is not trained takes no part; a node without leaves, or of a
    depth without spread, is not trained.

    Args:
        log_prob: [S, G] of the trained steps at sampling, a mean over elements; of `fusion` path.
    """
    size = credit.advantage.numel()
    known = credit.trained.cpu()
    leaves = torch.where(known, credit.advantage.double().cpu(), torch.nan)
    rows = [
        _step_credit(_node_values(leaves, plan, j, log_prob, tree), plan, j, size, tree, advantage)
        for j in plan.trained_steps
    ]
    return torch.stack([row for row, _ in rows]).float(), torch.stack([mask for _, mask in rows])


def _step_credit(
    values: Tensor,
    plan: StepPlan,
    step: int,
    size: int,
    tree: TreeConfig,
    config: AdvantageConfig,
) -> tuple[Tensor, Tensor]:
    """Return advantage [G] and mask [G] of a step from the values [K] of the nodes after it."""
    nodes = values.numel()
    families = 1 if tree.baseline == "depth" else plan.nodes_before(_split(plan, step, size), size)
    centred = values.view(families, -1) - values.view(families, -1).nanmean(dim=1, keepdim=True)
    centred = centred.flatten()
    known = ~centred.isnan()
    spread = centred[known].square().mean().sqrt() if known.any() else torch.zeros(())
    if spread < config.min_std:
        return torch.zeros(size), torch.zeros(size, dtype=torch.bool)
    clipped = (centred / spread).clamp(-config.clip, config.clip)
    node = torch.arange(size) * nodes // size
    is_first = torch.diff(node, prepend=torch.tensor([-1])) > 0
    mask = known[node] & is_first
    return torch.where(mask, clipped[node], 0.0), mask


def _split(plan: StepPlan, step: int, size: int) -> int:
    """Return the last step up to `step` at which the nodes after it parted."""
    parted = [
        j
        for j in plan.stochastic_steps
        if j <= step and plan.nodes_after(j, size) > plan.nodes_before(j, size)
    ]
    return parted[-1] if parted else step


def _node_values(
    leaves: Tensor, plan: StepPlan, step: int, log_prob: Tensor, tree: TreeConfig
) -> Tensor:
    """Return the value [K] of the nodes after a step; NaN where no leaf below is known."""
    size = leaves.numel()
    nodes = plan.nodes_after(step, size)
    if tree.fusion == "mean":
        return leaves.view(nodes, -1).nanmean(dim=1)
    values = leaves
    for position, j in reversed(list(enumerate(plan.trained_steps))):
        before, after = plan.nodes_before(j, size), plan.nodes_after(j, size)
        if j > step and after > before:
            edges = log_prob[position].double().cpu().view(after, -1)[:, 0].view(before, -1)
            values = _fused(values.view(before, -1), edges)
    return values


def _fused(values: Tensor, log_prob: Tensor) -> Tensor:
    """[K, children] -> [K], weighted by the softmax of log_prob; NaN where no child is known."""
    known = ~values.isnan()
    weights = torch.where(known, log_prob, -torch.inf).softmax(dim=1)
    fused = torch.where(known, weights * values, 0.0).sum(dim=1)
    return torch.where(known.any(dim=1), fused, torch.nan)
