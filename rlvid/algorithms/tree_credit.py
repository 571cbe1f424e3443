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
branches at one step, and with siblings only what that step's noise changed is credited to it. Where
a trajectory branches at each of its steps, a step is a depth, and its branches are compared with
each other alone. The released code has advantages by step too (`train_sd3_pr.py`); over which
branches it normalises them was not seen.

BranchGRPO's width pruning comes after all that: it chooses leaves, and behind the last split only
their steps are trained. With half of 16 leaves that is 138 of 218 steps, the 8.625 forwards a leaf
of the table in its README. What its released code calls the best of a branch are steps of one leaf,
which have one advantage, so it keeps the earlier half of them; its help text and notes on the paper
have the best child of each parent, as here.

Letters: G rollouts of a group, the leaves; S trained steps; K nodes of a depth. Everything float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlvid.algorithms.base import GroupCredit
from rlvid.config.algorithm import AdvantageConfig
from rlvid.config.tree import TreeConfig
from rlvid.records import StepPlan


def has_tree_credit(plan: StepPlan, config: TreeConfig) -> bool:
    """Return whether steps of the plan need other advantages than the group's own."""
    return bool(plan.num_nodes or plan.own_steps) or config.baseline == "siblings"


def num_trained(plan: StepPlan, step: int, size: int, config: TreeConfig) -> int:
    """Return the rollouts of `size`, or nodes of a tree, that train a step if no score lacks."""
    if plan.own_steps:
        return plan.own_steps.count(step)
    nodes = plan.nodes_after(step, size)
    if config.width == "all":
        return nodes
    last = _split(plan, plan.num_steps, size)
    if step <= last:
        return nodes
    if config.width == "best_child":
        return plan.nodes_before(last, size)
    return min(_num_extremes(size, config), nodes)


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
    known = credit.trained.cpu()
    leaves = torch.where(known, credit.advantage.double().cpu(), torch.nan)
    if plan.own_steps:
        rows = [_branch_credit(leaves, plan, j, tree, advantage) for j in plan.trained_steps]
    else:
        rows = _pruned(
            [_node_credit(leaves, plan, j, log_prob, tree, advantage) for j in plan.trained_steps],
            leaves,
            plan,
            tree,
        )
    return torch.stack([row for row, _ in rows]).float(), torch.stack([mask for _, mask in rows])


def _branch_credit(
    leaves: Tensor, plan: StepPlan, step: int, tree: TreeConfig, config: AdvantageConfig
) -> tuple[Tensor, Tensor]:
    """Return advantage [G] and mask [G] of a step that some of the rollouts have for their own."""
    members = torch.tensor(plan.own_steps) == step
    families = 1 if tree.baseline == "depth" else plan.num_noises
    clipped, known = _normalised(leaves[members], families, config)
    advantage, mask = torch.zeros_like(leaves), torch.zeros_like(members)
    advantage[members] = torch.where(known, clipped, 0.0)
    mask[members] = known
    return advantage, mask


def _node_credit(
    leaves: Tensor,
    plan: StepPlan,
    step: int,
    log_prob: Tensor,
    tree: TreeConfig,
    config: AdvantageConfig,
) -> tuple[Tensor, Tensor]:
    """Return advantage [G] and mask [G] of a step by the nodes after it."""
    size = leaves.numel()
    values = _node_values(leaves, plan, step, log_prob, tree)
    families = 1 if tree.baseline == "depth" else plan.nodes_before(_split(plan, step, size), size)
    clipped, known = _normalised(values, families, config)
    node = torch.arange(size) * values.numel() // size
    is_first = torch.diff(node, prepend=torch.tensor([-1])) > 0
    mask = known[node] & is_first
    return torch.where(mask, clipped[node], 0.0), mask


def _normalised(values: Tensor, families: int, config: AdvantageConfig) -> tuple[Tensor, Tensor]:
    """Return values [K] against the mean of their family, and which of them are worth a step [K].

    None where they have no spread.
    """
    centred = values.view(families, -1) - values.view(families, -1).nanmean(dim=1, keepdim=True)
    centred = centred.flatten()
    known = ~centred.isnan()
    spread = centred[known].square().mean().sqrt() if known.any() else torch.zeros(())
    if spread < config.min_std:
        return torch.zeros_like(values), torch.zeros_like(known)
    return (centred / spread).clamp(-config.clip, config.clip), known


def _pruned(
    rows: Sequence[tuple[Tensor, Tensor]], leaves: Tensor, plan: StepPlan, tree: TreeConfig
) -> list[tuple[Tensor, Tensor]]:
    """Return advantage and mask of the steps, those behind the last split only of kept leaves."""
    if tree.width == "all":
        return list(rows)
    last = _split(plan, plan.num_steps, leaves.numel())
    kept = _kept_leaves(leaves, plan.nodes_before(last, leaves.numel()), tree)
    everything = torch.ones_like(kept)
    chosen = [kept if j > last else everything for j in plan.trained_steps]
    return [
        (torch.where(some, advantage, 0.0), mask & some)
        for (advantage, mask), some in zip(rows, chosen, strict=True)
    ]


def _kept_leaves(leaves: Tensor, num_parents: int, tree: TreeConfig) -> Tensor:
    """Return which of the leaves [G] are kept; ties go to the first, unknown ones never stay."""
    kept = torch.zeros_like(leaves, dtype=torch.bool)
    if tree.width == "best_child":
        children = leaves.nan_to_num(nan=-torch.inf).view(num_parents, -1)
        kept.view(num_parents, -1).scatter_(1, children.argmax(dim=1, keepdim=True), True)
        return kept & ~leaves.isnan()
    known = (~leaves.isnan()).nonzero().flatten()
    order = known[leaves[known].argsort(descending=True, stable=True)]
    num_kept = min(_num_extremes(leaves.numel(), tree), order.numel())
    num_best = num_kept // 2
    kept[order[:num_best]] = True
    kept[order[order.numel() - (num_kept - num_best) :]] = True
    return kept


def _num_extremes(size: int, tree: TreeConfig) -> int:
    # The 1e-9 keeps 0.3 * 10 from counting as 2.9999.
    return max(2, int(tree.extremes_frac * size + 1e-9))


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
