"""The HTTP service over a real socket: who may ask, how much, and that nothing is mixed up."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from torch import Tensor

from rlvid.data.prompts import with_media
from rlvid.media import read_media
from rlvid.records import Prompt
from rlvid.rewards import wire
from rlvid.rewards.base import ClipSpec, RewardError
from rlvid.rewards.service.app import ServiceSettings
from rlvid.rewards.service.protocol import ScoreAnswer
from rlvid.rewards.service.remote import RemoteConfig, RemoteGroupReward, RemoteReward
from rlvid.testing import check_reward
from tests.system.served import (
    TOKEN,
    ReadsId,
    ThreadPool,
    numbered_clips,
    numbered_videos,
    score_of,
    served,
)

PROMPT = Prompt(prompt_id="p", text="a red ball", facts={"colour": "red"})
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/msgpack"}


class Mean:
    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return videos.mean(dim=(1, 2, 3, 4))


class Ranks:
    """Group-wise."""

    clip_spec = ClipSpec()

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        return videos[:, 0, 0, 0, 0].argsort().argsort().float()


class NotFirst:
    """Cannot judge clip 0; cannot judge anything slowly."""

    clip_spec = ClipSpec()

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.entered = threading.Event()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.entered.set()
        self.go_on.wait(20.0)
        scores = torch.full((len(videos),), 0.25)
        scores[videos[:, 0, 0, 0, 0] == 0.0] = torch.nan
        return scores


class SeesMedia:
    """Scores by the red of the prompt's first frame; 0 where it has none."""

    clip_spec = ClipSpec()

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.prompts += prompts
        size = {"num_frames": 1, "height": 8, "width": 8}
        shown = [
            read_media("first_frame", prompt.media["first_frame"], **size)[0].mean()
            if prompt.media
            else torch.tensor(0.0)
            for prompt in prompts
        ]
        return torch.stack(shown)


READS, NOT_FIRST, SEES = ReadsId(), NotFirst(), SeesMedia()
SETTINGS = ServiceSettings(max_body_bytes=200_000, max_clips=20, deadline_s=2.0, kept_answers=50)


@pytest.fixture(scope="module")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    scorers: dict[str, Any] = {
        "mean": Mean(), "reads": READS, "not_first": NOT_FIRST, "ranks": Ranks()
    }  # fmt: skip
    with served(scorers, settings=SETTINGS) as base:
        yield base


@pytest.fixture(scope="module")
def seeing_url(media_folder: Path) -> Iterator[str]:
    with served({"sees": SEES}, settings=replace(SETTINGS, media_folder=media_folder)) as base:
        yield base


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return str(path)


def request(
    numbers: Sequence[int], *, request_id: str = "request-0001", **changes: Any
) -> dict[str, Any]:
    frames = wire.array(torch.from_numpy(numbered_clips(numbers)))
    group = {
        "group_id": "g",
        "prompt": wire.prompt(PROMPT),
        "clip_ids": [f"clip{n}" for n in numbers],
        "fps": 8.0,
        "frames": frames,
    }
    return {"request_id": request_id, "groups": [{**group, **changes}]}


def post(
    url: str, content: Any, headers: dict[str, str] | None = None, timeout: float = 20.0
) -> httpx.Response:
    body = wire.pack(content) if isinstance(content, dict) else content
    return httpx.post(
        f"{url}/v1/score",
        content=body,
        headers=headers or HEADERS,
        timeout=timeout,
        trust_env=False,
    )


def scores_in(response: httpx.Response) -> dict[tuple[str, str], float | None]:
    assert response.status_code == 200, response.text
    answer: ScoreAnswer = wire.unpack(
        response.content, ScoreAnswer, where="answer", max_bytes=2**20
    )
    return {(s.clip_id, s.scorer): s.value for group in answer.groups for s in group.scores}


def client(url: str, token_file: str, **changes: Any) -> RemoteReward:
    config = {"url": url, "fps": 8, "token_file": token_file, "max_attempts": 2, **changes}
    return RemoteReward(RemoteConfig(**config))


def test_every_clip_gets_the_score_of_its_own_pixels(url: str) -> None:
    got = scores_in(post(url, request([5, 300, 41], request_id="own-pixels")))
    assert {n: got[f"clip{n}", "reads"] for n in (5, 300, 41)} == {
        n: score_of(n) for n in (5, 300, 41)
    }
    assert len(got) == 3 * 4


def test_a_missing_score_is_null_with_its_reason_and_never_zero(url: str) -> None:
    response = post(url, request([0, 7], request_id="missing-one"))
    got = scores_in(response)
    assert got["clip0", "not_first"] is None
    assert got["clip7", "not_first"] == 0.25
    answer: ScoreAnswer = wire.unpack(response.content, ScoreAnswer, where="a", max_bytes=2**20)
    [reason] = [s.error for s in answer.groups[0].scores if s.value is None]
    assert reason is not None
    assert "nan" in reason


@pytest.mark.parametrize("path", ["/metrics", "/v1/scorers"])
@pytest.mark.parametrize("value", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer"])
def test_without_the_token_nothing_is_told(url: str, path: str, value: str | None) -> None:
    headers = {} if value is None else {"Authorization": value}
    response = httpx.get(url + path, headers=headers, trust_env=False)
    assert response.status_code == 401
    assert "mean" not in response.text


def test_without_the_token_nothing_is_scored(url: str) -> None:
    response = post(url, request([1]), {"Content-Type": "application/msgpack"})
    assert response.status_code == 401


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"garbage", 422, "no whole msgpack"),
        (wire.pack(request([1]))[:-3], 422, "no whole msgpack"),
        ({"request_id": "no-groups", "groups": []}, 422, "groups"),
        (request([1], frames=None), 422, "exactly one of frames and files"),
        (request([1], fps=None), 422, "fps"),
        (request([1], clip_ids=["a", "b"]), 422, "a clip for each of 2 ids, got 1"),
        (request([1, 2], clip_ids=["a", "a"]), 422, "same id"),
        (request([1], fps="fast"), 422, "groups.0.fps"),
        ({**request([1]), "scorers": ["meen"]}, 422, "no scorer 'meen' here; there: mean, reads"),
        (b"\x00" * 200_001, 413, "at most 200000"),
    ],
)
def test_a_bad_body_is_one_line(url: str, content: Any, status: int, reason: str) -> None:
    response = post(url, content)
    assert response.status_code == status
    assert reason in response.json()["error"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(url: str) -> None:
    """A client that lies about, or hides, the size of its body must not fill the memory."""
    sent = [0]

    def endless() -> Iterator[bytes]:
        while sent[0] < 2**30:
            sent[0] += 65536
            yield b"\x00" * 65536

    # It may hang up on us while we are still sending, and then we get no answer.
    with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        assert post(url, endless()).status_code == 413
    assert sent[0] < 2**28


def test_another_media_type_is_refused(url: str) -> None:
    response = post(url, b"{}", {**HEADERS, "Content-Type": "application/json"})
    assert response.status_code == 415


def test_a_repeated_request_is_answered_and_not_scored_again(url: str) -> None:
    """A client that lost the answer on the way asks again with the same id."""
    first = scores_in(post(url, request([600], request_id="again-and-again")))
    again = scores_in(post(url, request([600], request_id="again-and-again")))
    assert again == first
    assert READS.times_scored[600] == 1


def test_an_id_is_not_taken_for_other_clips(url: str) -> None:
    """Answering with the old scores would give one clip the score of another."""
    assert post(url, request([601], request_id="my-only-id")).status_code == 200
    response = post(url, request([602], request_id="my-only-id"))
    assert response.status_code == 409
    assert "make a new id" in response.json()["error"]


def test_a_late_request_is_504_and_its_scores_are_kept(url: str) -> None:
    NOT_FIRST.go_on.clear()
    try:
        response = post(url, request([610], request_id="too-slow-for-it"))
        assert response.status_code == 504
        assert httpx.get(url + "/healthz", trust_env=False, timeout=2.0).status_code == 200
    finally:
        NOT_FIRST.go_on.set()
    got = scores_in(post(url, request([610], request_id="too-slow-for-it")))
    assert got["clip610", "not_first"] == 0.25
    assert READS.times_scored[610] == 1


def test_a_full_queue_is_429_and_the_client_comes_again(url: str, token_file: str) -> None:
    remote = client(url, token_file, scorers={"reads": 1.0}, max_attempts=20)
    NOT_FIRST.entered.clear()
    NOT_FIRST.go_on.clear()
    with ThreadPoolExecutor(2) as threads:
        blocking = threads.submit(post, url, request(range(700, 720), request_id="fills-the-queue"))
        assert NOT_FIRST.entered.wait(10.0)
        refused = post(url, request([730], request_id="one-too-many"))
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        waiting = threads.submit(remote.score, numbered_videos([731]), [PROMPT])
        time.sleep(0.3)
        NOT_FIRST.go_on.set()
        assert waiting.result(20.0).tolist() == [score_of(731)]
        assert blocking.result(20.0).status_code in (200, 504)


def test_mp4_files_are_scored_too(url: str, tmp_path: Path) -> None:
    from rlvid.data.video_files import write_mp4

    for name, level in (("dark", 0.1), ("light", 0.8)):
        write_mp4(tmp_path / f"{name}.mp4", torch.full((4, 3, 16, 16), level), 8)
    files = [(tmp_path / f"{name}.mp4").read_bytes() for name in ("dark", "light")]
    message = request([1, 2], files=files, frames=None, fps=None)
    got = scores_in(post(url, {**message, "request_id": "two-files", "scorers": ["mean"]}))
    assert got["clip1", "mean"] == pytest.approx(0.1, abs=0.03)
    assert got["clip2", "mean"] == pytest.approx(0.8, abs=0.03)


def test_metrics_and_openapi_page_tell_what_is_there(url: str) -> None:
    assert post(url, request([740], request_id="counted-once")).status_code == 200
    text = httpx.get(url + "/metrics", headers=HEADERS, trust_env=False).text
    assert 'rlvid_requests_total{code="200"}' in text
    assert 'rlvid_scores_total{outcome="scored",scorer="mean"}' in text
    assert 'rlvid_pool{name="pool/test/count"} 1.0' in text
    assert "rlvid_waiting_clips 0.0" in text
    document = httpx.get(url + "/openapi.json", trust_env=False).json()
    body = document["paths"]["/v1/score"]["post"]["requestBody"]["content"]
    reference = body["application/msgpack"]["schema"]["$ref"].rpartition("/")[2]
    assert "groups" in document["components"]["schemas"][reference]["properties"]
    assert httpx.get(url + "/docs", trust_env=False).status_code == 200


def test_the_client_is_a_reward_like_any_other(url: str, token_file: str) -> None:
    """Shape, order, batches and determinism hold over the network too."""
    check_reward(client(url, token_file, scorers={"mean": 1.0}), num_frames=5, height=8, width=8)


def test_the_client_weighs_the_scorers_it_names(url: str, token_file: str) -> None:
    remote = client(url, token_file, scorers={"reads": 2.0, "not_first": 4.0})
    got = remote.score(numbered_videos([8, 0, 9]), [PROMPT] * 3).tolist()
    assert got[0] == 2.0 * score_of(8) + 1.0
    assert got[1] != got[1], "a clip without one of its scores has no sum"
    assert got[2] == 2.0 * score_of(9) + 1.0


def pictured(folder: Path, red: int) -> Prompt:
    """A prompt with a picture of this red, 0 to 255."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30), (red, 0, 0)).save(folder / f"{red}.png")
    return with_media(PROMPT, {"first_frame": f"{red}.png"}, where="test", folder=folder)


def test_media_of_a_prompt_travel_with_its_clips(
    seeing_url: str, token_file: str, media_folder: Path, tmp_path: Path
) -> None:
    """The service may be on another machine, where the client's paths say nothing."""
    remote = client(seeing_url, token_file)
    prompts = [pictured(tmp_path / "own", 255), pictured(tmp_path / "own", 51), PROMPT]
    got = remote.score(numbered_videos([1, 2, 3]), prompts).tolist()
    assert got == pytest.approx([1.0, 0.2, 0.0])
    seen = SEES.prompts[-3:]
    assert [p.prompt_id for p in seen[:2]] == [p.prompt_id for p in prompts[:2]]
    assert all(Path(p.media["first_frame"]).is_relative_to(media_folder) for p in seen[:2])
    assert list(media_folder.iterdir()) == [], "nothing of it stays"


def test_another_picture_of_the_same_name_is_another_request(seeing_url: str) -> None:
    """An id repeated with another picture would be answered with the scores of the first."""
    bodies = [medium(picture_bytes(red)) for red in (255, 51)]
    assert post(seeing_url, media_request(bodies[0], "one-picture")).status_code == 200
    assert post(seeing_url, media_request(bodies[1], "one-picture")).status_code == 409
    again = scores_in(post(seeing_url, media_request(bodies[0], "one-picture")))
    assert again["clip1", "sees"] == 1.0


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"first_frame": {"suffix": ".png", "data": b"no picture"}}, "does not decode"),
        ({"first_frame": {"suffix": ".mp4", "data": b"x"}}, "first_frame: expected a .png"),
        ({"first_frame": {"suffix": "/../x.png", "data": b"x"}}, "media.first_frame.suffix"),
        ({"../first_frame": {"suffix": ".png", "data": b"x"}}, "media.../first_frame"),
        ({"first_frame": "/etc/passwd"}, "media.first_frame"),
    ],
)
def test_bad_media_are_one_line(
    seeing_url: str, media_folder: Path, sent: dict[str, Any], reason: str
) -> None:
    """Above all no client may name a path of the service's machine."""
    response = post(seeing_url, media_request(sent, "bad-media-here"))
    assert response.status_code == 422
    assert reason in response.json()["error"]
    assert list(media_folder.iterdir()) == []


def test_picture_that_changed_is_not_sent(seeing_url: str, token_file: str, tmp_path: Path) -> None:
    prompt = pictured(tmp_path, 255)
    Image.new("RGB", (40, 30)).save(tmp_path / "255.png")
    with pytest.raises(RewardError, match="other files than those that the prompt set"):
        client(seeing_url, token_file).score(numbered_videos([1]), [prompt])
    (tmp_path / "255.png").write_bytes(b"")
    with pytest.raises(RewardError, match=r"media\.first_frame: .* has 0 bytes: expected 1 to"):
        client(seeing_url, token_file).score(numbered_videos([1]), [prompt])


def picture_bytes(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def medium(data: bytes) -> dict[str, Any]:
    return {"first_frame": {"suffix": ".png", "data": data}}


def media_request(media: dict[str, Any], request_id: str) -> dict[str, Any]:
    return request([1], request_id=request_id, prompt={**wire.prompt(PROMPT), "media": media})


def test_scorers_of_whole_groups_need_whole_groups(url: str, token_file: str) -> None:
    """A win rate within a group of one would be the same number for all."""
    with pytest.raises(ValueError, match="'ranks' scores whole groups; use `remote_group`"):
        client(url, token_file, scorers={"ranks": 1.0})
    config = RemoteConfig(url=url, fps=8, token_file=token_file, scorers={"ranks": 1.0})
    got = RemoteGroupReward(config).score_group(numbered_videos([9, 2, 5]), PROMPT)
    assert got.tolist() == [2.0, 0.0, 1.0]


def test_what_is_wrong_with_an_entry_is_said_when_it_is_opened(url: str, token_file: str) -> None:
    with pytest.raises(ValueError, match="no scorer 'meen'; there: mean, reads"):
        client(url, token_file, scorers={"meen": 1.0})
    with pytest.raises(ValueError, match="set token_file or token_env"):
        client(url, "")
    with pytest.raises(RewardError, match="no usable answer in 2 attempts.*Connect"):
        client("http://127.0.0.1:9", token_file)
    wrong = Path(token_file).with_name("other")
    wrong.write_text("not the token of this service")
    with pytest.raises(RewardError, match="status 401"):
        client(url, str(wrong))


class OneNumber:
    """Wrong: one number for the batch."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.zeros(1)


def test_a_pool_that_ended_is_told_to_health_checks_and_to_who_waits() -> None:
    """A broken contract ends the pool; the service must not look healthy and answer nothing."""
    with served({"wrong": OneNumber()}) as base:
        assert httpx.get(base + "/healthz", trust_env=False).status_code == 200
        response = post(base, request([1, 2], request_id="breaks-the-pool"))
        assert response.status_code == 503
        assert "returned shape (1,) for 2 videos" in response.json()["error"]
        health = httpx.get(base + "/healthz", trust_env=False)
        assert health.status_code == 503
        assert "returned shape (1,)" in health.json()["reason"]


def test_a_pool_that_ends_while_nobody_waits_is_told_too() -> None:
    """Else a load balancer would send it requests for ever, and each would be called bad."""
    pool = ThreadPool({"mean": Mean()})
    with served({"mean": Mean()}, pool=pool) as base:
        pool.end(ValueError("processes die faster than they score"))
        response = post(base, request([1], request_id="at-the-same-time"))
        assert response.status_code == 503, "the request is good, before the service knows as well"
        assert "processes die faster" in response.json()["error"]
        give_up = time.monotonic() + 5.0
        while (health := httpx.get(base + "/healthz", trust_env=False)).status_code == 200:
            assert time.monotonic() < give_up, "healthy without a pool"
            time.sleep(0.05)
        assert "processes die faster" in health.json()["reason"]
        assert post(base, request([2], request_id="afterwards")).status_code == 503


class Large:
    clip_spec = ClipSpec(height=8, min_frames=2)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return videos.mean(dim=(1, 2, 3, 4))


def test_a_request_with_one_bad_group_is_refused_whole() -> None:
    """Groups before the bad one would be scored for nobody, and their scores never collected."""
    pool = ThreadPool({"large": Large()})
    with served({"large": Large()}, pool=pool) as base:
        message = request([1], request_id="half-and-half")
        small = torch.from_numpy(numbered_clips([2])[:, :1])
        bad = {**message["groups"][0], "group_id": "bad", "frames": wire.array(small)}
        message["groups"].append(bad)
        response = post(base, message)
        assert response.status_code == 422
        assert "group 'bad': rewards 'large': needs clips with min_frames 2" in response.text
        assert pool.num_taken == 0
        assert post(base, request([1], request_id="good-group")).status_code == 200


class TakesOne(ThreadPool):
    """Ends at the second group, as a pool may in the middle of a request."""

    def submit_clips(self, *args: Any, **settings: Any) -> int:
        if self.num_taken:
            raise RuntimeError("no room in the object store")
        return super().submit_clips(*args, **settings)


def test_what_was_taken_of_a_request_that_failed_is_drained() -> None:
    """Answers that nobody takes would stay in the pool's memory for ever."""
    pool = TakesOne({"mean": Mean()})
    with served({"mean": Mean()}, pool=pool) as base:
        message = request([1], request_id="taken-in-part")
        message["groups"].append({**message["groups"][0], "group_id": "second"})
        assert post(base, message).status_code == 503
        give_up = time.monotonic() + 5.0
        while not pool.num_collected:
            assert time.monotonic() < give_up, "nobody takes the first group's scores"
            time.sleep(0.05)
