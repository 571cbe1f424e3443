"""Loaders of the field's reward models, on random models of the real classes in a local folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.optical_flow import raft_small

from rlvid.config.rewards import ScorerConfig
from rlvid.records import Prompt
from rlvid.rewards.registry import open_scorer
from rlvid.rewards.specialists.clip_score import ClipScore
from rlvid.rewards.specialists.cotracker import CoTracker, grid_queries
from rlvid.rewards.specialists.hpsv3 import HpsV3
from rlvid.rewards.specialists.needs import MissingPartError
from rlvid.rewards.specialists.object_presence import ObjectPresence, suppress, yolo_boxes
from rlvid.rewards.specialists.qwen_reward import merge_lora
from rlvid.rewards.specialists.raft_flow import RaftFlow
from rlvid.rewards.specialists.video_align import VideoAlign, sampled_frames
from rlvid.testing import check_reward
from tests.unit.rewards.specialists.tiny_models import (
    save_clip,
    save_hpsv3,
    save_owlv2,
    save_video_align,
)

RED = Prompt(prompt_id="0", text="a red ball falls to the left", facts={"object": "ball"})
BLUE = Prompt(prompt_id="1", text="a blue box rolls to the right", facts={"object": "box"})


def moving_square(num_frames: int = 9, side: int = 32) -> Tensor:
    """[T, 3, S, S]: a bright square on noise, both moving right by a 32nd of the width a frame."""
    noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    noise[:, side // 4 : side // 2, side // 4 : side // 2] = 1.0
    step = side // 32
    return torch.stack([noise.roll(step * n, dims=2) for n in range(num_frames)])


FOLDERS: dict[str, tuple[str, str]] = {
    "clip_score": ("model.safetensors", "a CLIP or SigLIP model"),
    "hpsv3": ("HPSv3.safetensors", "the weights of HPSv3"),
    "video_align": ("model_config.json", "its settings"),
    "raft_flow": ("raft.pth", "RAFT's weights"),
    "cotracker": ("cotracker.ts", "CoTracker exported by torch.jit"),
    "object_presence": ("config.json", "an OWLv2 model"),
    "vmaf": ("", "reference clips"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_missing_folder_is_named_with_what_belongs_there(name: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(MissingPartError, match=f"^{name}: no folder {gone}: expected "):
        open_scorer(ScorerConfig(use=name, config={"folder": str(gone)}), name)
    with pytest.raises(MissingPartError, match=f"^{name}: no folder given: set config.folder to "):
        open_scorer(ScorerConfig(use=name), name)


@pytest.mark.parametrize("name", [name for name, (file, _) in FOLDERS.items() if file])
def test_a_missing_file_is_named_with_what_it_is(name: str, tmp_path: Path) -> None:
    file, what = FOLDERS[name]
    (tmp_path / "other.txt").write_text("")
    if name == "clip_score":
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingPartError, match=f"{tmp_path} has no .*{file}: expected {what}"):
        open_scorer(ScorerConfig(use=name, config={"folder": str(tmp_path)}), name)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_clip_score_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    reward = ClipScore(ClipScore.Config(folder=str(save_clip(tmp_path, kind)), num_frames=2))
    check_reward(reward)


def test_clip_score_is_blind_to_the_order_of_frames(tmp_path: Path) -> None:
    """What its docstring says; all frames are looked at, so that nothing else differs."""
    reward = ClipScore(ClipScore.Config(folder=str(save_clip(tmp_path, "clip")), num_frames=9))
    clip = moving_square()
    forward, backward = reward.score(torch.stack([clip, clip.flip(0)]), [RED, RED])
    assert float(forward) == pytest.approx(float(backward), abs=1e-6)
    assert float(reward.score(clip[None], [BLUE])) != pytest.approx(float(forward), abs=1e-4)


def test_clip_score_refuses_another_model(tmp_path: Path) -> None:
    save_owlv2(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(MissingPartError, match="holds a model of type 'owlv2'"):
        ClipScore(ClipScore.Config(folder=str(tmp_path)))


@pytest.fixture(scope="module")
def hpsv3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hpsv3(tmp_path_factory.mktemp("hpsv3"))


def test_hpsv3_takes_the_best_third_of_the_frames(hpsv3_folder: Path) -> None:
    """One good frame in three decides; a mean over all would let it be drowned."""
    reward = HpsV3(HpsV3.Config(folder=str(hpsv3_folder), num_frames=3))
    clip = moving_square(3)
    clip[1] = 0.0
    alone = [reward.parts(clip[[n]], RED)["mu"] for n in range(3)]
    assert len({round(value, 4) for value in alone}) > 1, "frames must differ for the test to tell"
    assert reward.parts(clip, RED)["mu"] == pytest.approx(max(alone), abs=1e-5)


def test_hpsv3_reads_picture_and_prompt(hpsv3_folder: Path) -> None:
    reward = HpsV3(HpsV3.Config(folder=str(hpsv3_folder), num_frames=1))
    clip = moving_square(1)
    here = float(reward.score(clip[None], [RED]))
    assert float(reward.score(clip[None], [BLUE])) != pytest.approx(here, abs=1e-5)
    assert float(reward.score(1.0 - clip[None], [RED])) != pytest.approx(here, abs=1e-5)


def test_hpsv3_wants_the_words_it_was_trained_with(hpsv3_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(hpsv3_folder, tmp_path / "copy")
    (folder / "prompt.txt").write_text("how good is {prompt}?")
    with pytest.raises(MissingPartError, match=r"expected <\|Reward\|> exactly once, got 0"):
        HpsV3(HpsV3.Config(folder=str(folder)))


def test_weights_of_another_model_are_refused(hpsv3_folder: Path, tmp_path: Path) -> None:
    """Silently keeping random layers would give a plausible, worthless score."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(hpsv3_folder, tmp_path / "copy")
    state = load_file(folder / "HPSv3.safetensors")
    del state["model.language_model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "HPSv3.safetensors")
    with pytest.raises(MissingPartError, match=r"missing language_model\.layers\.1\.mlp\.up_proj"):
        HpsV3(HpsV3.Config(folder=str(folder)))


@pytest.fixture(scope="module")
def align_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    return save_video_align(tmp_path_factory.mktemp("align"), adapter=False)


def test_video_align_keeps_the_contract(align_folder: Path) -> None:
    reward = VideoAlign(VideoAlign.Config(folder=str(align_folder), clip_fps=8))
    check_reward(reward, num_frames=9)


def test_visual_and_motion_quality_do_not_see_the_prompt(align_folder: Path) -> None:
    """Their tokens stand before the prompt and the decoder is causal (methods 4.1)."""
    reward = VideoAlign(VideoAlign.Config(folder=str(align_folder), clip_fps=8))
    clip = moving_square()
    red, blue = reward.parts(clip, RED), reward.parts(clip, BLUE)
    assert red["VQ"] == pytest.approx(blue["VQ"], abs=1e-5)
    assert red["MQ"] == pytest.approx(blue["MQ"], abs=1e-5)
    assert red["TA"] != pytest.approx(blue["TA"], abs=1e-5)


def test_video_align_scores_are_z_scored_by_the_folder(align_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(align_folder, tmp_path / "copy")
    (folder / "model_config.json").write_text(
        '{"peft_lora_config": {"lora_enable": true, "lora_r": 2, "lora_alpha": 4},'
        ' "data_config": {"max_frame_pixels": 4096}}'
    )
    scored, raw = (
        VideoAlign(VideoAlign.Config(folder=str(one), clip_fps=8)).parts(moving_square(), RED)
        for one in (align_folder, folder)
    )
    for name in ("VQ", "MQ", "TA"):
        assert scored[name] == pytest.approx((raw[name] - 0.5) / 0.5, abs=1e-5)


def test_an_adapter_over_the_base_opens_too(tmp_path: Path) -> None:
    reward = VideoAlign(
        VideoAlign.Config(folder=str(save_video_align(tmp_path, adapter=True)), clip_fps=8)
    )
    assert torch.isfinite(reward.score(moving_square()[None], [RED])).all()


def test_a_lora_is_added_at_its_scale() -> None:
    state = {
        "a.weight": torch.zeros(2, 2),
        "a.lora_A.weight": torch.tensor([[1.0, 2.0]]),
        "a.lora_B.weight": torch.tensor([[1.0], [0.5]]),
    }
    merged = merge_lora(state, 2.0, "test")
    assert list(merged) == ["a.weight"]
    assert torch.equal(merged["a.weight"], torch.tensor([[2.0, 4.0], [1.0, 2.0]]))


def test_video_align_sees_two_frames_a_second() -> None:
    """81 frames at 16 fps are five seconds; Qwen2-VL joins frames in pairs."""
    assert sampled_frames(81, clip_fps=16, fps=2.0) == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]
    assert sampled_frames(3, clip_fps=16, fps=2.0) == [0, 2]


@pytest.fixture(scope="module")
def raft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("raft")
    torch.save(raft_small(weights=None).state_dict(), folder / "raft.pth")
    return folder


def test_raft_flow_keeps_the_contract(raft_folder: Path) -> None:
    reward = RaftFlow(RaftFlow.Config(folder=str(raft_folder), clip_fps=8, num_updates=1))
    scores = reward.score(moving_square(4)[None].repeat(2, 1, 1, 1, 1), [RED, RED])
    assert scores.shape == (2,)
    assert torch.isfinite(scores).all()
    assert float(scores[0]) == float(scores[1])


def test_raft_rewards_smooth_motion_and_not_stillness(
    raft_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On exact flow fields, since random weights know no motion."""
    reward = RaftFlow(RaftFlow.Config(folder=str(raft_folder), clip_fps=8))
    fields = {
        "steady": torch.full((8, 2, 4, 4), 0.02),
        "jerky": torch.full((8, 2, 4, 4), 0.02)
        * torch.tensor([1.0, -1.0] * 4)[:, None, None, None],
        "still": torch.zeros(8, 2, 4, 4),
    }
    values = {}
    for name, field in fields.items():
        monkeypatch.setattr(reward, "flow", lambda video, field=field: field)
        values[name] = reward.parts(torch.zeros(9, 3, 32, 32))["both"]
    assert values["steady"] > 0.95
    assert values["jerky"] < 0.3
    assert values["still"] == 0.0


def test_strange_raft_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "raft.pth")
    with pytest.raises(MissingPartError, match="fits neither raft_large nor raft_small"):
        RaftFlow(RaftFlow.Config(folder=str(tmp_path)))


class SteadyTracks(nn.Module):
    """In CoTracker's place: every point moves right by `step` px, back and forth when `jerky`."""

    def __init__(self, jerky: bool) -> None:
        super().__init__()
        self.jerky = jerky

    def forward(self, video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        time = torch.arange(video.shape[1]).float()
        if self.jerky:
            time = time % 2
        shift = torch.stack([time, torch.zeros_like(time)], dim=1)
        tracks = queries[:, None, :, 1:] + shift[None, :, None]
        return tracks, torch.ones(1, video.shape[1], queries.shape[1])


@pytest.mark.parametrize(("jerky", "low", "high"), [(False, 0.99, 1.0), (True, 0.0, 0.3)])
def test_cotracker_reads_a_torchscript_file(
    jerky: bool, low: float, high: float, tmp_path: Path
) -> None:
    torch.jit.script(SteadyTracks(jerky)).save(str(tmp_path / "cotracker.ts"))
    reward = CoTracker(CoTracker.Config(folder=str(tmp_path), grid=3))
    assert low <= float(reward.score(moving_square()[None], [RED])) <= high


def test_a_file_that_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cotracker.ts").write_text("weights")
    with pytest.raises(MissingPartError, match="is no TorchScript file"):
        CoTracker(CoTracker.Config(folder=str(tmp_path)))


def test_queries_are_frame_x_y() -> None:
    assert grid_queries(2, 8, 4)[0].tolist() == [[0, 1, 2], [0, 3, 2], [0, 1, 6], [0, 3, 6]]


def test_owlv2_looks_for_the_objects_of_the_prompt(tmp_path: Path) -> None:
    config = ObjectPresence.Config(folder=str(save_owlv2(tmp_path)), num_frames=1)
    check_reward(ObjectPresence(config))


def test_without_an_object_a_clip_is_not_judged(tmp_path: Path) -> None:
    """Missing, not 0: the prompt asked for nothing that could be absent."""
    reward = ObjectPresence(ObjectPresence.Config(folder=str(save_owlv2(tmp_path))))
    nothing = Prompt(prompt_id="2", text="fog")
    assert torch.isnan(reward.score(moving_square()[None], [nothing])).all()


def test_a_wrong_number_of_objects_costs(tmp_path: Path) -> None:
    reward = ObjectPresence(ObjectPresence.Config(folder=str(save_owlv2(tmp_path))))

    class Finds:
        def find(self, frame: Tensor, names: Sequence[str]) -> list[Tensor]:
            boxes = [[0, 0, 4, 4, 0.9], [0, 0, 4, 3.5, 0.8], [10, 10, 14, 14, 0.9]]
            return [torch.tensor(boxes)]

    reward._detector = Finds()
    two, one = (
        Prompt(prompt_id="3", text="", facts={"object": "ball", "count": count})
        for count in ("two", "1")
    )
    assert float(reward.score(moving_square()[None], [two])) == pytest.approx(0.9)
    assert float(reward.score(moving_square()[None], [one])) == pytest.approx(0.331, abs=1e-3)


def test_the_better_of_two_overlapping_boxes_stays() -> None:
    boxes = torch.tensor([[0, 0, 4, 4, 0.5], [0, 0, 4, 4.1, 0.7], [8, 8, 9, 9, 0.1]])
    assert suppress(boxes)[:, 4].tolist() == pytest.approx([0.7, 0.1])


def test_yolo_output_becomes_boxes_of_the_frame() -> None:
    """Two classes, one box at the middle of a 64 px input; the frame is half as high."""
    output = torch.tensor([[[32.0], [32.0], [8.0], [8.0], [0.1], [0.9]]])
    (boxes,) = yolo_boxes(output, [1], 64, torch.zeros(3, 32, 64))
    assert boxes[0].tolist() == pytest.approx([28, 14, 36, 18, 0.9])
