"""The FLOPs of learning are those torch counts, and no figure is made up for unknown devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rlvid.config import LoraConfig, ModelConfig, Recipe, RolloutConfig
from rlvid.launch.model_size import latent_shape, read_row_flops
from rlvid.launch.utilisation import open_utilisation
from rlvid.models.lora import add_lora
from rlvid.observability.flops import WanSize, count_tokens, row_flops
from rlvid.observability.metrics import check_names
from rlvid.observability.mfu import PEAK_BF16, device_name, mfu, mfu_metrics, peak_flops, total_peak
from rlvid.rewards.decoding import open_decode_worker
from tests.unit.rewards.scorers import group

WIDE = WanSize(
    name="wide", num_heads=2, head_dim=128, num_layers=8, ffn_dim=512, text_dim=64, text_tokens=8,
    freq_dim=32,
)  # fmt: skip
"""Wide and deep enough that neither a LoRA of rank 1 nor the first layer makes two percent."""


def counted(*, base_is_frozen: bool) -> tuple[float, float]:
    """Return FLOPs of one forward and backward pass as torch counts them, and as we do."""
    from tests.bench.wan_model import build_transformer

    transformer: Any = build_transformer(WIDE, torch.device("cpu"), torch.float32)
    if base_is_frozen:
        transformer.requires_grad_(False)
        add_lora(transformer, LoraConfig(rank=1), seed=0)
    else:
        transformer.requires_grad_(True)
    shape = (16, 2, 8, 8)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        transformer(
            hidden_states=torch.randn(1, *shape),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, WIDE.text_tokens, WIDE.text_dim),
        ).sample.sum().backward()
    flops = row_flops(WIDE, count_tokens(WIDE, shape))
    return float(counter.get_total_flops()), float(flops.learned(base_is_frozen=base_is_frozen))


def test_full_learning_is_what_torch_counts() -> None:
    """The formula has the gradients of the entry's inputs too, which nobody asks for."""
    torch_counts, formula = counted(base_is_frozen=False)
    assert torch_counts == pytest.approx(formula, rel=0.02)


def test_learning_with_a_frozen_base_is_what_torch_counts() -> None:
    """torch also counts the LoRA, and leaves out the gradient of the first layer's input."""
    torch_counts, formula = counted(base_is_frozen=True)
    assert torch_counts == pytest.approx(formula, rel=0.03)


def test_tiny_model_has_flops_and_another_kind_has_none(tmp_path: Any) -> None:
    flops = read_row_flops(ModelConfig())
    assert flops is not None
    assert flops.learned(base_is_frozen=False) == 3 * flops.forward > 0
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "Other"}')
    (tmp_path / "model_index.json").write_text("{}")
    assert read_row_flops(ModelConfig(path=str(tmp_path))) is None


def test_utilisation_of_two_devices_is_over_both_peaks() -> None:
    """400 TFLOP in 1 s on two that could do 312 each."""
    names = ["NVIDIA A100-SXM4-80GB"] * 2
    assert mfu(400e12, 1.0, total_peak(names)) == pytest.approx(400 / 624)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA H100", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", ""],
)
def test_device_that_is_not_known_has_no_figure(name: str) -> None:
    """A slice or another board of the same chip has another peak."""
    assert peak_flops(name) is None
    assert total_peak(["NVIDIA H200", name]) is None
    assert mfu_metrics(1.0, rollout=(1e12, total_peak([name])), learner=(1e12, 0.0)) == {}


def test_peaks_are_dense() -> None:
    """The large figures of the data sheets are for sparse matrices; no device here has one."""
    assert max(PEAK_BF16.values()) <= 2250
    assert peak_flops("NVIDIA H100 80GB HBM3") == pytest.approx(989.5e12)


def test_metrics_have_the_tables_names() -> None:
    metrics = mfu_metrics(2.0, rollout=(1e15, 362e12), learner=(1e15, 989e12))
    check_names(metrics)
    assert set(metrics) == {"mfu/rollout/frac", "mfu/learner/frac"}


def test_step_of_a_recipe_has_the_flops_of_its_rows() -> None:
    """Guidance shows the transformer each latent twice; a frozen base learns for less."""
    recipe = Recipe(name="r", rollout=RolloutConfig(guidance_scale=2.0))
    utilisation = open_utilisation(recipe)
    flops = utilisation.flops
    assert flops is not None
    device = "NVIDIA H200"
    found = utilisation.metrics(
        {
            "rollout/forwards/count": 100.0,
            "learner/forward_rows/count": 10.0,
            "learner/devices/peak_tflops": 989.5,
        },
        wall_s=2.0,
        rollout_devices=[device, device],
    )
    peak = peak_flops(device)
    assert peak is not None
    assert recipe.learner.mode == "lora"
    assert found == pytest.approx(
        {
            "mfu/rollout/frac": 200 * flops.forward / (2.0 * 2 * peak),
            "mfu/learner/frac": 20 * flops.learned(base_is_frozen=True) / (2.0 * peak),
        }
    )


SCORED = {
    "rollout/clips/count": 8.0,
    "reward_pool/devices/peak_tflops": 2 * 989.5,
    "rewards/net/tflop": 40.0,
    "rewards/net/peak_tflops": 989.5,
}
"""Of a step with two decoders and a scorer, each on an H200."""


def test_decoder_and_scorers_have_their_flops_over_the_peaks_of_their_devices() -> None:
    """Eight clips in 0.5 s; a scorer's FLOPs come with the row."""
    utilisation = open_utilisation(Recipe(name="r"))
    assert utilisation.decode_flops is not None
    found = utilisation.metrics(SCORED, wall_s=0.5, rollout_devices=[""])
    check_names(found)
    assert found == pytest.approx(
        {
            "mfu/decoder/frac": 8 * utilisation.decode_flops / (0.5 * 2 * 989.5e12),
            "rewards/net/mfu_frac": 40.0 / (0.5 * 989.5),
        }
    )
    assert all(0.0 < value < 1.0 for value in found.values())


@pytest.mark.parametrize(
    ("lacks", "left"),
    [
        ("reward_pool/devices/peak_tflops", {"rewards/net/mfu_frac"}),
        ("rewards/net/peak_tflops", {"mfu/decoder/frac"}),
        ("rewards/net/tflop", {"mfu/decoder/frac"}),
    ],
)
def test_without_a_peak_or_flops_there_is_no_figure_and_no_zero(lacks: str, left: set[str]) -> None:
    row = {name: value for name, value in SCORED.items() if name != lacks}
    found = open_utilisation(Recipe(name="r")).metrics(row, wall_s=0.5, rollout_devices=[])
    assert set(found) == left


def test_decoding_takes_what_torch_counts_of_the_tiny_vae() -> None:
    """Of a group of two, as the reward pool decodes it."""
    recipe = Recipe(name="r")
    sampled = group(group_size=2, latent_shape=latent_shape(recipe.model))
    worker = open_decode_worker(recipe.model)
    counter = FlopCounterMode(display=False)
    with counter:
        frames, _ = worker.decode(sampled)
    assert len(frames) == 2
    assert open_utilisation(recipe).decode_flops == pytest.approx(
        counter.get_total_flops() / 2, rel=0.02
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cpu_has_no_name_and_no_peak() -> None:
    assert device_name() == ""
    assert peak_flops(device_name()) is None
