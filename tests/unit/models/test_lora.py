"""LoRA adapters: what they train, how they switch off, and that diffusers reads their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config import LoraConfig
from rlvid.models.lora import (
    LORA_FILE,
    adapter_disabled,
    add_lora,
    count_adapter_modules,
    fuse_lora,
    load_lora,
    read_lora,
    save_lora,
    trainable_parameters,
)
from rlvid.models.tiny_families.wan import tiny_experts
from rlvid.testing import tiny_model

CONFIG = LoraConfig(rank=2, alpha=8.0)


def tiny_transformer(seed: int = 0) -> Any:
    return tiny_model(seed).transformer


def _velocity(transformer: Any) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        velocity: Tensor = transformer(
            hidden_states=torch.randn(1, 4, 2, 4, 4, generator=generator),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 3, 16, generator=generator),
            return_dict=False,
        )[0]
    return velocity


def _trained(seed: int = 0) -> Any:
    """A transformer whose adapter does something."""
    transformer = tiny_transformer()
    add_lora(transformer, CONFIG, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(transformer, "lora").values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return transformer


def test_fresh_adapter_does_not_change_the_policy() -> None:
    """B starts at zero, so step 0 samples from the base."""
    transformer = tiny_transformer()
    before = _velocity(transformer)
    add_lora(transformer, CONFIG)
    assert torch.equal(_velocity(transformer), before)


def test_only_the_adapter_is_trainable() -> None:
    """A base that moves would not be published."""
    transformer = tiny_transformer()
    add_lora(transformer, CONFIG)
    trained = {id(p) for p in transformer.parameters() if p.requires_grad}
    assert trained == {id(p) for p in trainable_parameters(transformer, "lora").values()}
    assert count_adapter_modules(transformer) == 2 * 2 * 4


def test_adapter_start_depends_on_its_seed_only() -> None:
    """Every rank must start from the same adapter, whatever it drew before."""
    first, second, other = tiny_transformer(), tiny_transformer(), tiny_transformer()
    add_lora(first, CONFIG, seed=5)
    torch.rand(3)
    before = torch.get_rng_state()
    add_lora(second, CONFIG, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    add_lora(other, CONFIG, seed=6)
    name = "blocks.0.attn1.to_q.lora_A.weight"
    values = [trainable_parameters(t, "lora")[name] for t in (first, second, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_disabled_adapter_is_the_base_policy() -> None:
    """It is the reference of the KL, and must come back afterwards, trainable as before."""
    transformer = _trained()
    trained = _velocity(transformer)
    with adapter_disabled(transformer):
        reference = _velocity(transformer)
    assert torch.equal(reference, _velocity(tiny_transformer()))
    assert torch.equal(_velocity(transformer), trained)
    assert not torch.equal(reference, trained)
    assert all(p.requires_grad for p in trainable_parameters(transformer, "lora").values())


def test_saved_adapter_loads_again(tmp_path: Path) -> None:
    """Rank and alpha travel in the file; alpha is not the rank here."""
    transformer = _trained()
    save_lora(tmp_path, trainable_parameters(transformer, "lora"), CONFIG)
    again = tiny_transformer()
    assert load_lora(again, tmp_path) == LoraConfig(
        rank=2, alpha=8.0, target_modules=tuple(sorted(CONFIG.target_modules))
    )
    assert torch.equal(_velocity(again), _velocity(transformer))


def test_fused_adapter_is_the_same_policy_without_an_adapter(tmp_path: Path) -> None:
    """Evaluation and a second LoRA phase load it fused; float32 addition in another order."""
    transformer = _trained()
    save_lora(tmp_path, trainable_parameters(transformer, "lora"), CONFIG)
    fused = tiny_transformer()
    fuse_lora(fused, tmp_path)
    assert count_adapter_modules(fused) == 0
    assert set(dict(fused.named_parameters())) == set(dict(tiny_transformer().named_parameters()))
    torch.testing.assert_close(_velocity(fused), _velocity(transformer), rtol=1e-3, atol=1e-4)


def test_diffusers_pipeline_reads_the_file(tmp_path: Path) -> None:
    """`WanPipeline.load_lora_weights` is how a stranger uses the result."""
    from diffusers import WanPipeline

    transformer = _trained()
    save_lora(tmp_path, trainable_parameters(transformer, "lora"), CONFIG)
    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=None,
        transformer=tiny_transformer(),
    )
    pipeline.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(
        _velocity(pipeline.transformer), _velocity(transformer), rtol=0.0, atol=0.0
    )


def test_two_experts_have_a_file_each(tmp_path: Path) -> None:
    """A pipeline reads one file for each of its transformers; here they are one adapter."""
    experts = tiny_experts().transformer
    add_lora(experts, CONFIG)
    parameters = trainable_parameters(experts, "lora")
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.normal_(std=0.1)
    save_lora(tmp_path, parameters, CONFIG)
    tensors, _ = read_lora(tmp_path)
    assert all(torch.equal(tensors[name], value) for name, value in parameters.items())
    assert sorted(tensors) == sorted(parameters)
    fused = tiny_experts().transformer
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    fuse_lora(fused, tmp_path)
    moved = {name for name, value in fused.state_dict().items() if not value.equal(before[name])}
    assert {name.split(".")[0] for name in moved} == {"high", "low"}
    (tmp_path / LORA_FILE).unlink()
    with pytest.raises(ValueError, match=f"no file .*{LORA_FILE}"):
        read_lora(tmp_path)


def test_target_that_matches_nothing_is_refused() -> None:
    """An adapter bound to zero modules trains for days and changes nothing."""
    with pytest.raises(ValueError, match=r"target_modules.*to_queue"):
        add_lora(tiny_transformer(), LoraConfig(target_modules=("to_queue",)))


def test_second_adapter_is_refused() -> None:
    """Which of two would be published is not defined."""
    transformer = _trained()
    with pytest.raises(ValueError, match="bound already"):
        add_lora(transformer, CONFIG)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        load_lora(tiny_transformer(), tmp_path)
