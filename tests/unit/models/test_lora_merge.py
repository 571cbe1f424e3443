"""Several adapters of one base become one set of weights: by hand, and against peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlvid.config import LoraConfig, ModelConfig
from rlvid.config.sft import MergeConfig
from rlvid.models.lora import add_lora, fuse_lora, read_lora, save_lora, trainable_parameters
from rlvid.models.lora_merge import MergeJob, merge_lora, merge_policy, merged_delta
from rlvid.models.policy import Policy, open_policy
from rlvid.testing import tiny_model

CONFIG = LoraConfig(rank=2, alpha=8.0)
LAYER = "blocks.0.attn1.to_q"


def _adapter(folder: Path, seed: int, config: LoraConfig = CONFIG) -> str:
    """Write an adapter that does something."""
    transformer = tiny_model(0).transformer
    add_lora(transformer, config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in trainable_parameters(transformer, "lora").items()
    }
    save_lora(folder, tensors, config)
    return str(folder)


def _adapters(folder: Path) -> list[str]:
    """Three adapters, one of another rank and alpha than the others."""
    odd = LoraConfig(rank=3, alpha=1.5)
    configs = (CONFIG, CONFIG, odd)
    return [_adapter(folder / str(n), n, config) for n, config in enumerate(configs)]


def _delta(folder: str, layer: str = LAYER) -> Tensor:
    """alpha / r B A, from the file."""
    tensors, config = read_lora(folder)
    delta: Tensor = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
    return delta * (config.alpha / config.rank)


def _merged(adapters: dict[str, float], config: MergeConfig) -> nn.Module:
    transformer = tiny_model(0).transformer
    merge_lora(transformer, adapters, config)
    return transformer


def _change(transformer: nn.Module, layer: str = LAYER) -> Tensor:
    name = f"{layer}.weight"
    after: Tensor = transformer.state_dict()[name]
    before: Tensor = tiny_model(0).transformer.state_dict()[name]
    return after - before


@pytest.mark.parametrize(("rule", "divisor"), [("sum", 1.0), ("mean", 3.5)])
def test_sum_and_mean_are_those_of_the_deltas(tmp_path: Path, rule: str, divisor: float) -> None:
    """By hand: sum_i w_i alpha_i / r_i B_i A_i, over sum_i w_i; to rounding."""
    folders = _adapters(tmp_path)
    weights = [1.0, 0.5, 2.0]
    merged = _merged(
        dict(zip(folders, weights, strict=True)), MergeConfig.model_validate({"rule": rule})
    )
    for layer in (LAYER, "blocks.1.attn2.to_out.0"):
        expected = sum(w * _delta(f, layer) for w, f in zip(weights, folders, strict=True))
        torch.testing.assert_close(_change(merged, layer), expected / divisor, rtol=1e-5, atol=1e-6)


def test_only_the_adapted_weights_change(tmp_path: Path) -> None:
    merged = _merged(dict.fromkeys(_adapters(tmp_path), 1.0), MergeConfig()).state_dict()
    base = tiny_model(0).transformer.state_dict()
    changed = {name for name in base if not base[name].equal(merged[name])}
    tensors, _ = read_lora(tmp_path / "0")
    assert merged.keys() == base.keys()
    assert changed == {n.replace(".lora_A.", ".") for n in tensors if ".lora_A." in n}


@pytest.mark.parametrize("rule", ["mean", "sum", "ties"])
def test_adapter_of_weight_zero_changes_nothing(tmp_path: Path, rule: str) -> None:
    """Bit for bit as without it: it does not vote on signs and is not counted in a mean."""
    first, second, third = _adapters(tmp_path)
    config = MergeConfig.model_validate({"rule": rule})
    without = _merged({first: 1.0, third: 1.0}, config).state_dict()
    with_zero = _merged({first: 1.0, second: 0.0, third: 1.0}, config).state_dict()
    counted = _merged({first: 1.0, second: 0.5, third: 1.0}, config).state_dict()
    assert all(without[name].equal(with_zero[name]) for name in without)
    assert not without[f"{LAYER}.weight"].equal(counted[f"{LAYER}.weight"])


def test_mean_of_one_adapter_is_the_adapter_fused(tmp_path: Path) -> None:
    """What peft's own merge of a single adapter gives."""
    folder = _adapter(tmp_path, 0)
    fused = tiny_model(0).transformer
    fuse_lora(fused, folder)
    for name, weight in _merged({folder: 0.3}, MergeConfig()).state_dict().items():
        torch.testing.assert_close(weight, fused.state_dict()[name], rtol=1e-6, atol=1e-6)


def test_ties_by_hand() -> None:
    """Two adapters of rank 2, half of the values kept.

    d_1 = [4 -3; 1 0] keeps 4, -3; d_2 = [-5 -1; 2 0] keeps -5, 2. At the first place the signs
    differ and -5 is larger; elsewhere one value is left.
    """
    eye = torch.eye(2)
    first, second = (
        torch.tensor([[4.0, -3.0], [1.0, 0.0]]),
        torch.tensor([[-5.0, -1.0], [2.0, 0.0]]),
    )
    config = MergeConfig(rule="ties", density=0.5)
    merged = merged_delta([(first, eye), (second, eye)], [1.0, 1.0], config)
    assert merged.tolist() == [[-5.0, -3.0], [2.0, 0.0]]
    halved = MergeConfig(rule="ties", density=0.5, scale=0.5)
    assert merged_delta([(first, eye), (second, eye)], [3.0, 3.0], halved).equal(merged / 2)


def test_sum_is_the_cat_of_peft(tmp_path: Path) -> None:
    """`add_weighted_adapter(combination_type="cat")`, the exact one, on the same layer."""
    import peft

    folders = _adapters(tmp_path)[:2]
    net: peft.PeftModel | None = None
    for number, folder in enumerate(folders):
        tensors, config = read_lora(folder)
        b, a = tensors[f"{LAYER}.lora_B.weight"], tensors[f"{LAYER}.lora_A.weight"]
        settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=["0"])
        if net is None:
            layer = nn.Linear(a.shape[1], b.shape[0])
            net = peft.get_peft_model(nn.Sequential(layer), settings, adapter_name="0")
        else:
            net.add_adapter(str(number), settings)
        module = net.base_model.model[0]
        module.lora_A[str(number)].weight.data.copy_(a)
        module.lora_B[str(number)].weight.data.copy_(b)
    assert net is not None
    net.base_model.add_weighted_adapter(["0", "1"], [1.0, 0.5], "both", combination_type="cat")
    expected = net.base_model.model[0].get_delta_weight("both")
    merged = _merged(dict(zip(folders, [1.0, 0.5], strict=True)), MergeConfig(rule="sum"))
    torch.testing.assert_close(_change(merged), expected, rtol=1e-5, atol=1e-6)


def test_low_precision_weights_are_rounded_once(tmp_path: Path) -> None:
    """bfloat16 base, three adapters: the float32 sum, rounded."""
    folders = _adapters(tmp_path)
    transformer = tiny_model(0).transformer.to(torch.bfloat16)
    name = f"{LAYER}.weight"
    base = transformer.state_dict()[name].clone()
    merge_lora(transformer, dict.fromkeys(folders, 1.0), MergeConfig(rule="sum"))
    expected = (base.float() + sum(_delta(folder) for folder in folders)).bfloat16()
    differs = (transformer.state_dict()[name] != expected).float().mean()
    assert float(differs) < 0.02, "but for float32's own rounding at a tie"


@pytest.mark.parametrize(
    ("weights", "targets", "message"),
    [
        ((0.0, 0.0), ("to_q",), r"sft.merge.weights: expected one above 0, got \[0.0, 0.0\]"),
        ((1.0, 1.0), ("to_k",), "expected the 4 layers of .*, got 4; first that differs"),
    ],
)
def test_refusals(
    tmp_path: Path, weights: tuple[float, float], targets: tuple[str, ...], message: str
) -> None:
    first = _adapter(tmp_path / "0", 0, LoraConfig(rank=2, target_modules=("to_q",)))
    second = _adapter(tmp_path / "1", 1, LoraConfig(rank=2, target_modules=targets))
    with pytest.raises(ValueError, match=message):
        _merged(dict(zip((first, second), weights, strict=True)), MergeConfig())


def test_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = _adapter(tmp_path, 0)
    other: Any = tiny_model(0).transformer
    other.blocks[1].attn1.to_q = nn.Linear(7, 5)
    with pytest.raises(ValueError, match=r"'blocks.1.attn1.to_q': expected a matrix of the base"):
        merge_lora(other, {folder: 1.0}, MergeConfig())


def test_merged_policy_opens_with_the_velocity_of_base_and_deltas(tmp_path: Path) -> None:
    """What the next phase opens, against the base with the deltas added by hand."""
    first, second, _ = _adapters(tmp_path)
    tiny_model(0).save(str(tmp_path / "base"))
    base = Policy(model_path=str(tmp_path / "base"))
    config = ModelConfig(num_frames=9, height=16, width=16)
    merge_policy(
        MergeJob(
            base=base,
            model=config,
            adapters={first: 1.0, second: 0.5},
            config=MergeConfig(rule="sum"),
            folder=tmp_path / "merged",
            device=torch.device("cpu"),
            num_threads=1,
        )
    )
    by_hand = open_policy(base, config, "cpu")
    weights = by_hand.transformer.state_dict()
    for name in [n for n in read_lora(first)[0] if ".lora_A." in n]:
        layer = name.removesuffix(".lora_A.weight")
        weights[f"{layer}.weight"] += _delta(first, layer) + 0.5 * _delta(second, layer)
    opened = open_policy(Policy(model_path=str(tmp_path / "merged")), config, "cpu")
    velocities = []
    for model in (opened, by_hand, open_policy(base, config, "cpu")):
        latents = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            condition = model.encode_prompts(["a red ball falls"])
            velocities.append(model.velocity(latents, torch.tensor([0.7]), condition))
    torch.testing.assert_close(velocities[0], velocities[1], rtol=1e-4, atol=1e-5)
    assert float((velocities[0] - velocities[2]).abs().max()) > 1e-3
