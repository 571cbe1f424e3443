"""The tiny pipeline and the training of its VAE."""

from __future__ import annotations

import torch

from rlvid.models.tiny.build import TinySize, build_pipeline, build_tokenizer
from rlvid.models.tiny.vae_training import VaeTraining, measure_vae, to_pixels, train_vae

CAPTIONS = ["a red ball falls to the left", "a blue box rolls to the right"]
SIZE = TinySize(latent_channels=4, vae_dim=4, num_layers=1, num_heads=1, head_dim=12)


def moving_squares(count: int) -> torch.Tensor:
    """[N, 9, 3, 16, 16] uint8: a red square that moves over a grey ground."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.full((count, 9, 3, 16, 16), 180, dtype=torch.uint8)
    for clip in clips:
        x, y = torch.randint(0, 8, (2,), generator=generator).tolist()
        for frame in range(9):
            left = x + frame // 3
            clip[frame, 0, y : y + 6, left : left + 6] = 220
            clip[frame, 1:, y : y + 6, left : left + 6] = 20
    return clips


def test_same_seed_builds_the_same_weights_and_leaves_the_global_rng_alone() -> None:
    """Weights that depend on what ran before could not be rebuilt."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = build_pipeline(CAPTIONS, size=SIZE, seed=3)
    assert torch.equal(torch.rand(1), expected)
    other = build_pipeline(CAPTIONS[::-1], size=SIZE, seed=3)
    for name in ("text_encoder", "vae", "transformer"):
        pairs = zip(
            getattr(one, name).state_dict().items(),
            getattr(other, name).state_dict().items(),
            strict=True,
        )
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_tokenizer_gives_every_word_its_own_token_and_ends_the_text() -> None:
    tokenizer = build_tokenizer(CAPTIONS, 12)
    ids = tokenizer("A red  box.")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "red", "box", "<unk>", "</s>"]
    assert tokenizer("")["input_ids"] == [1]


def test_vae_training_learns_and_normalises_the_latents() -> None:
    """A few steps must beat the untrained VAE, and the statistics must be those of its latents."""
    clips = moving_squares(32)
    vae = build_pipeline(CAPTIONS, size=SIZE).vae
    before = measure_vae(vae, clips)
    losses: list[float] = []
    train_vae(
        vae,
        clips,
        training=VaeTraining(num_steps=30, batch_size=4),
        on_step=lambda _, loss: losses.append(loss),
    )
    after = measure_vae(vae, clips)
    assert len(losses) == 30
    assert after.psnr_db > before.psnr_db + 2.0
    with torch.no_grad():
        mode = vae.encode(to_pixels(clips)).latent_dist.mode()
    mean = torch.tensor(vae.config.latents_mean)
    torch.testing.assert_close(mode.mean(dim=(0, 2, 3, 4)), mean, atol=1e-4, rtol=1e-4)


def test_vae_training_is_reproducible() -> None:
    """The shipped weights name the seed they were made with."""
    clips = moving_squares(8)
    digests = []
    for _ in range(2):
        vae = build_pipeline(CAPTIONS, size=SIZE).vae
        train_vae(vae, clips, training=VaeTraining(num_steps=2, batch_size=2), seed=7)
        digests.append(torch.cat([p.flatten() for p in vae.parameters()]))
    assert torch.equal(*digests)
