"""From several LoRA adapters of one base to one set of weights.

Not by peft's `add_weighted_adapter`: its linear and ties work on A and on B, which is not what they
would do to B A, and its ties_svd cuts the result to a rank. Its `cat` is exact for a sum, and is
what `mean` and `sum` are here; its ties is taken as it is, on the deltas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rlvid.config import ModelConfig
from rlvid.config.sft import MergeConfig
from rlvid.models.lora import read_lora
from rlvid.models.policy import Policy, open_policy
from rlvid.weights.names import frozen_parameters

Factors = tuple[Tensor, Tensor]
"""One layer of one adapter, A [r, in] and B [out, r] with alpha / r multiplied in, both float32."""

_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeJob:
    """A policy to be made of adapters and their base."""

    base: Policy
    """What all of them were trained from; its own LoRA, if any, is part of the base's weights."""
    model: ModelConfig
    adapters: Mapping[str, float]
    """As of `merge_lora`."""
    config: MergeConfig
    folder: Path
    """Where the whole pipeline is written to."""
    device: torch.device
    num_threads: int


def merge_policy(job: MergeJob) -> None:
    """Write the base with the adapters merged into it, in diffusers' layout.

    Raises:
        ValueError: as `open_policy` and `merge_lora`.
    """
    torch.set_num_threads(job.num_threads)
    model = open_policy(job.base, job.model, "cpu")
    merge_lora(model.transformer, job.adapters, job.config, device=job.device)
    model.save(str(job.folder))


def merge_lora(
    transformer: nn.Module,
    adapters: Mapping[str, float],
    config: MergeConfig,
    *,
    device: torch.device | None = None,
) -> None:
    """Add the merged delta of adapters to the weights of a bare transformer.

    Each matrix is added in float32 and rounded once, to the dtype it has.

    Args:
        adapters: folder that `save_lora` wrote to weight, 0 or more; one of 0 is not read. All were
            trained from the weights that the transformer has now.
        device: where a matrix is worked out; by default where it is. ties sorts every delta, which
            takes a CPU long for a large model.

    Raises:
        ValueError: no weight above 0, or an adapter that is missing, of another model, or of other
            layers than the first.
    """
    counted = {folder: weight for folder, weight in adapters.items() if weight > 0.0}
    if not counted:
        raise ValueError(
            f"sft.merge.weights: expected one above 0, got {list(adapters.values())}; without it "
            "the policy would be the base"
        )
    read = {folder: _factors(Path(folder)) for folder in counted}
    first, layers = next(iter(read.items()))
    for folder, found in read.items():
        if set(found) != set(layers):
            odd = sorted(set(found) ^ set(layers))[0]
            raise ValueError(
                f"lora {folder}: expected the {len(layers)} layers of {first}, got {len(found)}; "
                f"first that differs: {odd!r}. Merge adapters of the same target_modules"
            )
    live = frozen_parameters(transformer)
    for layer in sorted(layers):
        factors = [_fitting(live, layer, found[layer], folder) for folder, found in read.items()]
        parameter = live[f"{layer}.weight"]
        where = device or parameter.device
        delta = merged_delta(
            [(a.to(where), b.to(where)) for a, b in factors], list(counted.values()), config
        )
        with torch.no_grad():
            parameter.copy_(parameter.to(where, torch.float32) + delta)


def merged_delta(
    factors: Sequence[Factors], weights: Sequence[float], config: MergeConfig
) -> Tensor:
    """Return what the adapters of one layer come to together, [out, in] float32.

    Args:
        factors: of each adapter.
        weights: of each adapter, above 0.
    """
    from peft.utils.merge_utils import ties

    given = torch.tensor(weights, dtype=torch.float32, device=factors[0][0].device)
    if config.rule == "ties":
        # Equal weights of any size are the paper's, which has none.
        deltas = [b @ a for a, b in factors]
        delta: Tensor = ties(deltas, given / given.mean(), config.density)
        return config.scale * delta
    if config.rule == "mean":
        given = given / given.sum()
    scaled = [b * weight for (_, b), weight in zip(factors, given, strict=True)]
    return config.scale * (torch.cat(scaled, dim=1) @ torch.cat([a for a, _ in factors]))


def _factors(folder: Path) -> dict[str, Factors]:
    """Return the factors of an adapter by layer."""
    tensors, config = read_lora(folder)
    scaling = config.alpha / config.rank
    return {
        name.removesuffix(_A): (
            a.float(),
            tensors[name.removesuffix(_A) + _B].float() * scaling,
        )
        for name, a in tensors.items()
        if name.endswith(_A)
    }


def _fitting(
    live: Mapping[str, nn.Parameter], layer: str, factors: Factors, folder: str
) -> Factors:
    """Return the factors; ValueError where the layer is missing or of another shape."""
    a, b = factors
    weight = live.get(f"{layer}.weight")
    shape = None if weight is None else tuple(weight.shape)
    if a.dim() != 2 or shape != (b.shape[0], a.shape[1]):
        raise ValueError(
            f"lora {folder}: layer {layer!r}: expected a matrix of the base, got an adapter of "
            f"A {tuple(a.shape)} and B {tuple(b.shape)} for {shape}. Was it trained on another "
            "model? Only linear layers can be merged"
        )
    return factors
