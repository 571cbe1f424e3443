"""The block-causal forwards of the Wan transformer, on the tiny model that ships.

`TOLERANCE` is float32 rounding: velocities are of size 2.5 here and pass five layers of sums of up
to 384 terms; 3.4e-6 was the largest difference measured.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config import LoraConfig
from rlvid.models.causal_cache import BlockCache
from rlvid.models.causal_layout import BlockLayout
from rlvid.models.causal_wan import CausalWan
from rlvid.models.lora import add_lora
from rlvid.models.pipeline_model import set_attention_backend
from rlvid.models.tiny import pipeline_folder
from rlvid.models.wan import WanModel
from rlvid.weights.names import trainable_parameters

CPU = torch.device("cpu")
PROMPTS = ["a red ball falls to the left", "a blue box rolls to the right"]
SIGMAS = (1.0, 0.75, 0.3)
TOLERANCE = 1e-5
FRAMES = 6


@pytest.fixture(scope="module")
def shipped() -> WanModel:
    return WanModel.load(pipeline_folder(), device=CPU)


@pytest.fixture
def transformer(shipped: WanModel) -> Any:
    return copy.deepcopy(shipped.transformer)


@pytest.fixture(scope="module")
def condition(shipped: WanModel) -> Condition:
    return shipped.encode_prompts(PROMPTS)


def clips(seed: int = 0, frames: int = FRAMES) -> Tensor:
    """[2, 16, frames, 4, 6]: height and width differ, so that swapped positions would show."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 16, frames, 4, 6, generator=generator)


def stream(
    causal: CausalWan, noisy: Tensor, clean: Tensor, sigma: Tensor, condition: Condition
) -> tuple[Tensor, BlockCache]:
    """Return the velocity of each block given the clean ones before it, [B, C, F, H, W]."""
    size = causal.layout.frames_per_block
    cache = causal.open_cache(condition)
    velocities = []
    for block, finished in zip(noisy.split(size, dim=2), clean.split(size, dim=2), strict=True):
        velocities.append(causal.block_velocity(block, sigma, cache))
        causal.append_block(finished, cache)
    return torch.cat(velocities, dim=2), cache


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0.0, atol=TOLERANCE)


LAYOUTS = [
    BlockLayout(frames_per_block=1),
    BlockLayout(frames_per_block=2),
    BlockLayout(frames_per_block=3),
    BlockLayout(frames_per_block=1, window_blocks=3),
    BlockLayout(frames_per_block=1, window_blocks=3, sink_blocks=1),
    BlockLayout(frames_per_block=1, window_blocks=3, sink_blocks=1, positions="window"),
    BlockLayout(frames_per_block=2, window_blocks=2, positions="window"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@torch.no_grad()
def test_streaming_equals_one_forward_over_the_whole_clip(
    transformer: Any, condition: Condition, layout: BlockLayout
) -> None:
    """A student is trained by one of the two forwards and generates by the other."""
    causal = CausalWan(transformer, layout)
    noisy, clean = clips(0), clips(1)
    for value in SIGMAS:
        sigma = torch.tensor([value, value / 2])
        streamed, _ = stream(causal, noisy, clean, sigma, condition)
        assert_near(causal.velocity(noisy, sigma, condition, clean=clean), streamed)
        size = layout.frames_per_block
        for block in range(layout.num_blocks(FRAMES)):
            start, stop = block * size, (block + 1) * size
            mixed = torch.cat([clean[:, :, :start], noisy[:, :, start:]], dim=2)
            sigmas = sigma[:, None].repeat(1, layout.num_blocks(FRAMES))
            sigmas[:, :block] = 0.0
            whole = causal.velocity(mixed, sigmas, condition)
            assert_near(whole[:, :, start:stop], streamed[:, :, start:stop])


@pytest.mark.parametrize("layout", LAYOUTS[:5], ids=str)
@torch.no_grad()
def test_masked_forward_equals_diffusers_with_a_mask_and_a_timestep_per_token(
    transformer: Any, condition: Condition, layout: BlockLayout
) -> None:
    """An independent way to the same numbers: its own processor, its own rotary table."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    num_blocks = layout.num_blocks(FRAMES)
    tokens = 4 * 6 * layout.frames_per_block
    seen = torch.zeros(num_blocks, num_blocks, dtype=torch.bool)
    for block in range(num_blocks):
        seen[block, list(layout.visible(block))] = True
    mask = seen.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)

    class Masked:
        _attention_backend = None
        _parallel_config = None

        def __call__(self, attn: Any, states: Tensor, text: Any, _: Any, rotary: Any) -> Any:
            return WanAttnProcessor()(attn, states, text, mask, rotary)

    masked = copy.deepcopy(transformer)
    for block in masked.blocks:
        block.attn1.set_processor(Masked())
    latents = clips()
    sigma = torch.linspace(1.0, 0.0, 2 * num_blocks).reshape(2, num_blocks)
    expected = masked(
        latents,
        1000 * sigma.repeat_interleave(tokens, 1),
        condition["prompt_embeds"],
        return_dict=False,
    )[0]
    assert_near(CausalWan(transformer, layout).velocity(latents, sigma, condition), expected)


@pytest.mark.parametrize("positions", ["absolute", "window"])
@torch.no_grad()
def test_no_future_frame_leaks(transformer: Any, condition: Condition, positions: Any) -> None:
    """Exactly: what is streamed cannot know the future even by rounding."""
    causal = CausalWan(transformer, BlockLayout(frames_per_block=2, positions=positions))
    latents, other = clips(0), clips(9)
    sigma = torch.tensor([[0.9, 0.6, 0.2], [0.1, 0.5, 1.0]])
    before = causal.velocity(latents, sigma, condition)
    for first in (2, 4):
        changed = torch.cat([latents[:, :, :first], other[:, :, first:]], dim=2)
        sigmas = sigma.clone()
        sigmas[:, first // 2 :] = 0.33
        after = causal.velocity(changed, sigmas, condition)
        assert torch.equal(after[:, :, :first], before[:, :, :first])
        assert not torch.allclose(after[:, :, first:], before[:, :, first:], atol=1e-2)


@torch.no_grad()
def test_past_frames_matter(transformer: Any, condition: Condition) -> None:
    """Else the test above would pass on blocks that know nothing of each other."""
    causal = CausalWan(transformer, BlockLayout(frames_per_block=2))
    latents, sigma = clips(), torch.full((2,), 0.5)
    changed = latents.clone()
    changed[:, :, 0] += 1.0
    one, other = (causal.velocity(x, sigma, condition) for x in (latents, changed))
    assert (one - other)[:, :, 4:].abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["absolute", "window"])
@torch.no_grad()
def test_one_block_is_the_bidirectional_model(
    transformer: Any, shipped: WanModel, condition: Condition, positions: Any
) -> None:
    """Exactly, so a student that starts from its teacher's weights starts as its teacher."""
    causal = CausalWan(transformer, BlockLayout(frames_per_block=FRAMES, positions=positions))
    latents, sigma = clips(), torch.tensor([0.8, 0.4])
    expected = shipped.velocity(latents, sigma, condition)
    assert torch.equal(causal.velocity(latents, sigma, condition), expected)
    assert torch.equal(causal.velocity(latents, sigma[:, None], condition), expected)
    cache = causal.open_cache(condition)
    assert torch.equal(causal.block_velocity(latents, sigma, cache), expected)


@torch.no_grad()
def test_own_forward_of_the_transformer_stays_as_it_was(
    transformer: Any, shipped: WanModel, condition: Condition
) -> None:
    """Teacher, fake critic and student may share a module."""
    causal = CausalWan(transformer, BlockLayout(frames_per_block=2))
    latents, sigma = clips(), torch.tensor([0.8, 0.4])
    causal.velocity(latents, sigma, condition)
    after = transformer(latents, 1000 * sigma, condition["prompt_embeds"], return_dict=False)[0]
    assert torch.equal(after, shipped.velocity(latents, sigma, condition))
    assert list(transformer.state_dict()) == list(shipped.transformer.state_dict())


@pytest.mark.parametrize("positions", ["absolute", "window"])
@torch.no_grad()
def test_window_as_large_as_the_clip_is_the_full_cache(
    transformer: Any, condition: Condition, positions: Any
) -> None:
    noisy, clean, sigma = clips(0), clips(1), torch.tensor([0.7, 0.2])
    full, rolling = (
        stream(CausalWan(transformer, layout), noisy, clean, sigma, condition)[0]
        for layout in (
            BlockLayout(frames_per_block=2),
            BlockLayout(frames_per_block=2, window_blocks=3, sink_blocks=1, positions=positions),
        )
    )
    if positions == "absolute":
        assert torch.equal(full, rolling)
    assert_near(full, rolling)


@torch.no_grad()
def test_rolling_cache_holds_the_sink_and_the_last_blocks(
    transformer: Any, condition: Condition
) -> None:
    """Its memory must not grow with the clip."""
    layout = BlockLayout(frames_per_block=1, window_blocks=4, sink_blocks=1)
    noisy, clean = clips(0, 9), clips(1, 9)
    causal = CausalWan(transformer, layout)
    _, cache = stream(causal, noisy, clean, torch.full((2,), 0.5), condition)
    assert cache.num_blocks == 9
    assert cache.kept_blocks == (0, 7, 8)


@torch.no_grad()
def test_window_positions_have_no_end_and_absolute_ones_say_where(
    transformer: Any, condition: Condition
) -> None:
    """The tiny model's table has 64 frames; a sliced table would silently be too short."""
    block, sigma = clips(0, 1), torch.full((2,), 0.5)
    for positions in ("window", "absolute"):
        layout = BlockLayout(
            frames_per_block=1,
            window_blocks=2,
            positions=positions,
        )
        causal = CausalWan(transformer, layout)
        cache = causal.open_cache(condition)
        causal.append_block(block, cache)
        cache.num_blocks = 64
        if positions == "window":
            assert causal.block_velocity(block, sigma, cache).isfinite().all()
            continue
        with pytest.raises(ValueError, match=r"frame 64 lies beyond .* 64 frames .*'window'"):
            causal.block_velocity(block, sigma, cache)


@torch.no_grad()
def test_only_distances_in_time_matter(transformer: Any, condition: Condition) -> None:
    """So both kinds of positions agree on a window without sinks, wherever it stands."""
    noisy, clean, sigma = clips(0), clips(1), torch.tensor([0.7, 0.2])
    absolute, window = (
        stream(CausalWan(transformer, layout), noisy, clean, sigma, condition)[0]
        for layout in (
            BlockLayout(frames_per_block=1, window_blocks=2),
            BlockLayout(frames_per_block=1, window_blocks=2, positions="window"),
        )
    )
    torch.testing.assert_close(absolute, window, rtol=0.0, atol=1e-4)


def test_lora_streams_as_it_trains_and_gets_its_gradient(
    transformer: Any, condition: Condition
) -> None:
    """The adapter must act in both forwards, on cached keys as well."""
    noisy, clean, sigma = clips(0), clips(1), torch.tensor([0.7, 0.2])
    causal = CausalWan(transformer, BlockLayout(frames_per_block=2))
    with torch.no_grad():
        base, _ = stream(causal, noisy, clean, sigma, condition)
    add_lora(transformer, LoraConfig(rank=4))
    adapter = trainable_parameters(transformer, "lora")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapter.items():
            if ".lora_B." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        streamed, _ = stream(causal, noisy, clean, sigma, condition)
        assert_near(causal.velocity(noisy, sigma, condition, clean=clean), streamed)
        assert (streamed - base).abs().max() > 1e-2
    learned, _ = stream(causal, noisy, clean, sigma, condition)
    assert_near(learned.detach(), streamed)
    learned.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.values())


def test_gradient_checkpointing_sees_the_cache_of_its_forward(
    transformer: Any, condition: Condition
) -> None:
    """Self-forcing runs backward after the window has moved on."""
    layout = BlockLayout(frames_per_block=1, window_blocks=2)
    noisy, clean, sigma = clips(0), clips(1), torch.tensor([0.7, 0.2])
    causal = CausalWan(transformer, layout)
    gradients = []
    for checkpointing in (False, True):
        transformer.zero_grad()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        velocity, _ = stream(causal, noisy, clean, sigma, condition)
        velocity.square().mean().backward()
        gradients.append([p.grad.clone() for p in transformer.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_no_gradient_flows_through_the_cache(transformer: Any, condition: Condition) -> None:
    """Self-Forcing cuts it there; kept graphs would need the memory of a whole rollout."""
    causal = CausalWan(transformer, BlockLayout(frames_per_block=2))
    clean = clips(0, 2).requires_grad_()
    with torch.inference_mode():
        started = causal.open_cache(condition)
        causal.append_block(clips(5, 2), started)
    causal.append_block(clean, started)
    causal.block_velocity(clips(1, 2), torch.full((2,), 0.5), started).sum().backward()
    assert clean.grad is None
    assert transformer.blocks[0].attn1.to_k.weight.grad is not None


def test_prompt_is_projected_once_while_sampling_and_always_while_learning(
    transformer: Any, condition: Condition
) -> None:
    """Cross-attention must learn from every block, and need not be asked twice in between."""
    causal = CausalWan(transformer, BlockLayout(frames_per_block=2))
    calls: list[int] = []
    transformer.blocks[0].attn2.to_k.register_forward_hook(lambda *_: calls.append(1))
    noisy, clean, sigma = clips(0), clips(1), torch.full((2,), 0.5)
    with torch.no_grad():
        _, cache = stream(causal, noisy, clean, sigma, condition)
    assert len(calls) == 1
    causal.block_velocity(clips(2, 2), sigma, cache)
    assert len(calls) == 2


@torch.no_grad()
def test_context_sigma_is_the_noise_level_shown(transformer: Any, condition: Condition) -> None:
    causal = CausalWan(transformer, BlockLayout(frames_per_block=3))
    noisy, clean, sigma = clips(0), clips(1), torch.full((2,), 0.5)
    cache = causal.open_cache(condition)
    causal.append_block(clean[:, :, :3], cache, context_sigma=0.1)
    streamed = causal.block_velocity(noisy[:, :, 3:], sigma, cache)
    whole = causal.velocity(noisy, sigma, condition, clean=clean, context_sigma=0.1)
    assert_near(whole[:, :, 3:], streamed)
    plain = causal.velocity(noisy, sigma, condition, clean=clean)
    assert not torch.allclose(plain[:, :, 3:], streamed, atol=1e-3)


@torch.no_grad()
def test_wrapped_transformer_is_called_through_its_wrapper(
    transformer: Any, condition: Condition
) -> None:
    """DeepSpeed's engine must see every forward; binding twice must not nest processors."""

    class Wrapper(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *args: Any, **options: Any) -> Any:
            self.calls += 1
            return self.module(*args, **options)

    wrapper, layout = Wrapper(transformer), BlockLayout(frames_per_block=2)
    latents, sigma = clips(), torch.full((2,), 0.5)
    plain = CausalWan(transformer, layout).velocity(latents, sigma, condition)
    through = CausalWan(wrapper, layout).velocity(latents, sigma, condition)
    assert torch.equal(plain, through)
    assert wrapper.calls == 1
    assert type(transformer.blocks[0].attn1.processor.ordinary).__name__ == "WanAttnProcessor"


def test_attention_backend_is_kept_and_can_be_set(transformer: Any) -> None:
    CausalWan(transformer, BlockLayout(frames_per_block=2))
    set_attention_backend(transformer, "native")
    for attention in (transformer.blocks[0].attn1, transformer.blocks[4].attn2):
        assert attention.processor.ordinary._attention_backend == "native"


@torch.no_grad()
def test_failed_forward_leaves_the_transformer_as_it_was(
    transformer: Any, shipped: WanModel, condition: Condition
) -> None:
    causal = CausalWan(transformer, BlockLayout(frames_per_block=2))
    latents, sigma = clips(), torch.full((2,), 0.5)
    with pytest.raises(RuntimeError):
        causal.velocity(
            latents, sigma, Condition({"prompt_embeds": condition["prompt_embeds"][:, :, :7]})
        )
    after = transformer(latents, 1000 * sigma, condition["prompt_embeds"], return_dict=False)[0]
    assert torch.equal(after, shipped.velocity(latents, sigma, condition))


def test_clips_blocks_and_sigmas_of_wrong_shape_are_refused(
    transformer: Any, condition: Condition
) -> None:
    causal = CausalWan(transformer, BlockLayout(frames_per_block=2))
    half = torch.full((2,), 0.5)
    cache = causal.open_cache(condition)
    causal.append_block(clips(0, 2), cache)
    for call, message in (
        (lambda: causal.velocity(clips(0, 5), half, condition), "5 latent frames are no multi"),
        (lambda: causal.velocity(clips(), half[:, None].repeat(1, 2), condition), r"\(2, 3\)"),
        (lambda: causal.velocity(clips(), half, condition.rows(slice(0, 1))), "for 2 clips"),
        (lambda: causal.velocity(clips()[:, :4], half, condition), r"\[B, 16, F, H, W\]"),
        (
            lambda: causal.velocity(clips(), half, condition, clean=clips(0, 4)),
            "clean has shape",
        ),
        (lambda: causal.block_velocity(clips(0, 4), half, cache), "4 latent frames: expected 2"),
        (lambda: causal.block_velocity(clips(0, 2), half[:, None], cache), r"expected \(2,\)"),
        (
            lambda: causal.append_block(clips(0, 2)[..., :4], cache),
            r"expected \(2, 16, 2, 4, 6\)",
        ),
        (
            lambda: CausalWan(transformer, BlockLayout(frames_per_block=1)).append_block(
                clips(0, 1), cache
            ),
            "the cache has BlockLayout",
        ),
        (lambda: CausalWan(torch.nn.Linear(1, 1), causal.layout), "Linear holds no Wan"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_skipped_layer_is_named_before_it_spoils_the_cache(
    transformer: Any, condition: Condition
) -> None:
    causal = CausalWan(transformer, BlockLayout(frames_per_block=2))
    cache = causal.open_cache(condition)
    transformer.blocks[2].forward = lambda states, *_: states
    with pytest.raises(ValueError, match="4 of 5 layers ran: expected all. Switch"):
        causal.append_block(clips(0, 2), cache)
    assert cache.num_blocks == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames_per_block": 0}, "causal.frames_per_block: expected at least 1, got 0"),
        ({"sink_blocks": -1}, "causal.sink_blocks: expected at least 0, got -1"),
        ({"sink_blocks": 1}, "causal.sink_blocks: expected 0 without a window"),
        ({"window_blocks": 1, "sink_blocks": 1}, "causal.window_blocks: expected more than"),
        ({"positions": "local"}, "causal.positions: expected one of 'absolute', 'window'"),
    ],
)
def test_layout_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockLayout(**options)
