"""The tiny vision-language model: its packed forward, layout and teaching; the shipped judge."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
)

from rlvid.data.tiny_world.questions import KINDS, TEMPLATES_VERSION, vocabulary_texts
from rlvid.models.tiny import vlm_judge_folder
from rlvid.models.tiny.vlm_build import VlmSize, build_vlm, build_vlm_tokenizer, save_vlm
from rlvid.models.tiny.vlm_layout import TINY_LAYOUT, JudgeLayout, contact_sheet
from rlvid.models.tiny.vlm_packed import Asked, Packer, packed_hidden, patchify
from rlvid.reward_models.tiny_judge.clips import draw_pool, known_loss
from rlvid.reward_models.tiny_judge.evaluation import caption_accuracy, heldout_pools, measure
from rlvid.reward_models.tiny_judge.training import VlmStep, VlmTeacher, VlmTraining, sheets, teach

SIZE = VlmSize(
    vision_dim=32, vision_depth=2, vision_ffn=32, text_dim=64, text_layers=2, text_ffn=64
)
QUESTIONS = ("Is the object red?", "Does the camera not pan left? Please answer yes or no.")
Vlm: TypeAlias = Qwen2_5_VLForConditionalGeneration


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_vlm_tokenizer(vocabulary_texts())


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Vlm:
    """Random weights, drawn wide: at the initial scale any two logits are nearly the same."""
    built = build_vlm(tokenizer, size=SIZE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.08, generator=generator)
    return built.eval()


def random_images(count: int, side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("num_images", "side"), [(1, 64), (3, 32)])
def test_packed_questions_get_the_logits_of_one_at_a_time(
    num_images: int, side: int, model: Vlm, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A server asks one question at a time with the real processor; training packs them. Were one
    position or one mask entry off, the judge would be taught something else than it is asked."""
    save_vlm(tmp_path, model, tokenizer)
    processor = AutoProcessor.from_pretrained(tmp_path)
    images = random_images(num_images, side)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    packer = Packer(tokenizer, model, num_images=num_images, image_size=(side, side))
    # The second row is shorter and padded; the first asks both questions.
    packed = packer.pack([[Asked(q, "No", True) for q in QUESTIONS], [Asked(QUESTIONS[1])]])
    with torch.no_grad():
        both = torch.stack([tensor, tensor])
        logits = model.lm_head(packed_hidden(model, packed, both, packer.image_token)[0])
        expected = [plain_logits(model, processor, images, q) for q in QUESTIONS]
    for number, wanted in enumerate(expected):
        place = packed.first[0, number]
        assert torch.allclose(logits[0, place], wanted, atol=1e-5, rtol=0.0)
    assert torch.allclose(logits[1, packed.first[1, 0]], expected[1], atol=1e-5, rtol=0.0)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def plain_logits(
    model: Vlm, processor: AutoProcessor, images: np.ndarray, question: str
) -> torch.Tensor:
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    message = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    inputs = processor(
        text=[text], images=[Image.fromarray(image) for image in images], return_tensors="pt"
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    ours = patchify(pixels, SIZE.patch).flatten(0, 1)
    assert torch.allclose(inputs["pixel_values"], ours, atol=1e-6)
    logits: torch.Tensor = model(**inputs).logits[0, -1]
    return logits


def test_labels_are_the_answer_and_the_end_mark(
    model: Vlm, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The token before the answer is the one whose logits say yes or no."""
    packer = Packer(tokenizer, model, num_images=1, image_size=(32, 32))
    packed = packer.pack([[Asked(QUESTIONS[0], "Yes")]])
    place = int(packed.first[0, 0])
    assert tokenizer.decode(packed.labels[0, place : place + 2]) == "Yes<|im_end|>"
    assert int((packed.labels != -100).sum()) == 2


def test_yes_and_no_and_every_word_of_a_question_are_one_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """P(yes) is read off the first token, so the answers may not be split."""
    for word in ("Yes", "No", "First", "Second", "5", " ball", " pans", " real"):
        assert len(tokenizer(word)["input_ids"]) == 1
    assert tokenizer.decode(tokenizer("Xyz, 7!")["input_ids"]) == "Xyz, 7!"


def test_same_seed_builds_the_same_model(tokenizer: PreTrainedTokenizerFast) -> None:
    """Weights and vocabulary may not depend on the order of the texts or on what ran before."""
    again = build_vlm_tokenizer(reversed(vocabulary_texts()))
    assert again.get_vocab() == tokenizer.get_vocab()
    one, two = (build_vlm(tokenizer, size=SIZE, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_sheet_has_its_frames_row_by_row_and_both_makers_agree() -> None:
    """The scorer lays out with numpy, training with torch."""
    frames = random_images(6, 8)
    sheet = contact_sheet(frames, 3)
    assert sheet.shape == (16, 24, 3)
    assert np.array_equal(sheet[8:16, 0:8], frames[3])
    ours = sheets(torch.from_numpy(frames).permute(0, 3, 1, 2)[None], 3)[0]
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), sheet)
    with pytest.raises(ValueError, match="do not fill"):
        contact_sheet(frames, 4)


def test_the_layout_survives_its_file_and_fits_other_lengths(tmp_path: Path) -> None:
    """A clip of another number of frames shows the same moments."""
    layout = JudgeLayout(frames=(0, 4, 8, 16), columns=2)
    layout.save(tmp_path)
    assert JudgeLayout.load(tmp_path) == layout
    assert layout.indices(33) == [0, 8, 16, 32]
    assert layout.images(random_images(17, 32))[0].shape == (64, 64, 3)
    with pytest.raises(ValueError, match="wrong size"):
        layout.images(random_images(17, 16))
    with pytest.raises(ValueError, match=r"no file"):
        JudgeLayout.load(tmp_path / "nowhere")


def test_teaching_lowers_the_loss_and_a_seed_repeats_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Eight steps on four clips: far from knowing, but the answers' words are learnt."""
    pool = draw_pool(range(4), "train", TINY_LAYOUT)
    assert torch.isfinite(known_loss(torch.zeros_like(pool.known), pool.known))
    losses = []
    for _ in range(2):
        training = VlmTraining(
            vision_steps=3,
            num_steps=9,
            batch_size=2,
            questions_per_clip=2,
            pair_every=4,
            learning_rate=0.1,
        )
        model = build_vlm(tokenizer, size=SIZE)
        teacher = VlmTeacher(model, tokenizer, pool, TINY_LAYOUT, training=training)
        seen: list[VlmStep] = []
        teach(teacher, training, seen.append)
        losses.append([report.loss for report in seen])
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.9 * losses[0][3]


def test_the_shipped_layout_is_what_the_questions_are_now() -> None:
    """Changed wordings need a judge taught anew."""
    layout = JudgeLayout.load(vlm_judge_folder())
    assert layout.templates_version == TEMPLATES_VERSION
    assert set(layout.measured["kinds"]) == set(KINDS)


@pytest.mark.slow
def test_the_shipped_judge_tells_yes_from_no_for_every_kind_of_question() -> None:
    """AUC of P(yes) on held-out clips of other seeds than the recorded figures, plain and negated
    together, in float32 as it is served. 0.90 is what a judge must have to be of use."""
    folder = vlm_judge_folder()
    model = Vlm.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    layout = JudgeLayout.load(folder)
    pools = heldout_pools(64, layout, seed=3 * 10**9)
    found = measure(model, tokenizer, layout, pools, suffix="")
    assert set(found) == set(KINDS)
    for kind, figures in found.items():
        assert figures["num"] >= 64, kind
        assert figures["auc"] >= 0.90, (kind, figures)
        assert abs(figures["yes_bias"]) < 0.1, (kind, figures)
    assert measure(model, tokenizer, layout, pools[1:2], suffix="") == measure(
        model, tokenizer, layout, pools[1:2], suffix=""
    )
    assert caption_accuracy(model, tokenizer, layout, pools[0]) > 0.5
