"""The FLOPs of the VAE are those torch counts on diffusers' own class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rlvid.models.published import PUBLISHED
from rlvid.observability.vae_flops import VaeSize, decode_flops, encode_flops

TWO_LEVELS = {
    "base_dim": 8,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "z_dim": 4,
    "in_channels": 3,
    "out_channels": 3,
}
WAN = {k: v for k, v in PUBLISHED["Wan2.1-T2V-1.3B-Diffusers"].vae.items() if k[0] != "_"}


@pytest.mark.parametrize(
    ("config", "latent"), [(TWO_LEVELS, (3, 4, 6)), (WAN, (3, 4, 4)), (WAN, (1, 2, 6))]
)
def test_both_ways_are_what_torch_counts(
    config: dict[str, Any], latent: tuple[int, int, int]
) -> None:
    """On meta tensors, so that Wan's own VAE is counted without its memory and time."""
    from diffusers import AutoencoderKLWan

    size = VaeSize.of_config({"_class_name": "AutoencoderKLWan", **config})
    assert size is not None
    frames, height, width = latent
    factor = 2 ** len(size.halves_time)
    num_frames = 1 + (frames - 1) * 2 ** sum(size.halves_time)
    with torch.device("meta"):
        vae = AutoencoderKLWan(**config)
        latents = torch.empty(1, size.z_dim, *latent)
        video = torch.empty(1, 3, num_frames, height * factor, width * factor)
    runs: tuple[tuple[Callable[[Tensor], Any], Tensor, int], ...] = (
        (vae.decode, latents, decode_flops(size, latent)),
        (vae.encode, video, encode_flops(size, latent)),
    )
    for run, given, expected in runs:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            run(given)
        assert expected == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_another_vae_has_no_figure() -> None:
    assert VaeSize.of_config({"_class_name": "AutoencoderKL"}) is None
    assert (
        VaeSize.of_config({**WAN, "_class_name": "AutoencoderKLWan", "is_residual": True}) is None
    )
