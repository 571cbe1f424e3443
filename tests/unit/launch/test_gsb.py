"""A comparison from clips to tally: who may see what, and which votes are kept."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import shutil
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rlvid.data.tiny_world import all_facts, caption, render_clip
from rlvid.data.video_files import decode_mp4, read_mp4, write_mp4
from rlvid.evaluation.gsb import GsbPair, assign_sides
from rlvid.evaluation.gsb_votes import AXES, Vote, VoteStore, read_votes
from rlvid.launch.cli_gsb import gsb_app
from rlvid.launch.gsb import SheetSettings, load_key, make_sheet
from rlvid.launch.gsb_clips import pairs_of_folders, pairs_of_run
from rlvid.launch.gsb_server import HOST, make_app, token_of
from rlvid.launch.gsb_tally import PEOPLE, tally_sheet
from rlvid.launch.gsb_voter import choice_of, vote_by_model
from rlvid.rewards.judges.connection import AskSettings
from rlvid.rewards.judges.frames import View, to_frames
from tests.unit.rewards.judges.fake_vllm import FakeVllm, parts_of, running

TOKEN = "0123456789abcdef-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
NUM_PAIRS = 4
SIDES = ("left", "right")


def write_clips(root: Path) -> tuple[Path, Path, Path]:
    """Write clips of a broken and of a true policy, and their prompts."""
    folders = root / "broken_policy", root / "true_policy"
    lines = []
    for folder in folders:
        folder.mkdir(parents=True)
    for place, facts in enumerate(all_facts()[::101][:NUM_PAIRS]):
        name = f"{place:02d}.mp4"
        for folder, breakage in zip(folders, ("flicker", None), strict=True):
            write_mp4(folder / name, render_clip(facts, place, breakage=breakage), 8)
        lines.append(json.dumps({"file": name, "text": caption(facts)}))
    (root / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return *folders, root / "prompts.jsonl"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, clips: tuple[Path, Path, Path]) -> Path:
    sheet = tmp_path_factory.mktemp("made") / "sheet"
    make(sheet, clips, seed=1)
    return sheet


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "sheet"))


def make(folder: Path, clips: tuple[Path, Path, Path], *, seed: int | None) -> SheetSettings:
    return make_sheet(folder, pairs_of_folders(*clips), policies=("old", "new"), seed=seed)


def vote(pair: str = "p000", choice: str = "left", **more: Any) -> dict[str, Any]:
    values = {"pair_id": pair, "axis": "VQ", "choice": choice, "voter": "anna", "time_s": 1.7e9}
    return values | more


def talk(folder: Path, work: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Run requests against the application, in process, from its start to its end."""

    async def run() -> None:
        app = make_app(folder, token=TOKEN)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}:1") as client,
        ):
            await work(client)

    asyncio.run(run())


def test_the_page_does_not_say_which_side_is_which(
    tmp_path: Path, made: Path, clips: tuple[Path, Path, Path]
) -> None:
    """Policies swapped and sides mirrored show the same clips: the page must be the same.

    Whatever told the policies apart (a name, a path, the seed) would differ. Clips are compared by
    their pixels: x264 gives other bytes for the same frames once in a while, by a level or two.
    """
    first, second, prompts = clips
    names = [f"p{place:03d}" for place in range(NUM_PAIRS)]
    shown = load_key(made).sides
    mirrored = {name: "right" if side == "left" else "left" for name, side in shown.items()}
    seed = next(seed for seed in range(100) if assign_sides(names, seed) == mirrored)
    make(tmp_path / "crossed", (second, first, prompts), seed=seed)
    assert load_key(tmp_path / "crossed").sides == mirrored
    (shell, sheet), (other_shell, other) = (
        shell_and_sheet((one / "sheet.html").read_text()) for one in (made, tmp_path / "crossed")
    )
    assert shell == other_shell
    assert sheet | {"id": "", "pairs": []} == other | {"id": "", "pairs": []}
    for one, two in zip(sheet["pairs"], other["pairs"], strict=True):
        assert (one["id"], one["prompt"]) == (two["id"], two["prompt"])
        for side in SIDES:
            (mine, _), (theirs, _) = (decode_mp4(base64.b64decode(p[side])) for p in (one, two))
            assert np.abs(mine.astype(float) - theirs.astype(float)).mean() < 0.5
        (left, _), (right, _) = (decode_mp4(base64.b64decode(one[side])) for side in SIDES)
        assert np.abs(left.astype(float) - right.astype(float)).mean() > 5.0
    for word in (first.name, second.name, str(first.parent), "policy", "key.json"):
        assert word not in shell
        assert word not in (made / "settings.json").read_text()


def shell_and_sheet(page: str) -> tuple[str, dict[str, Any]]:
    """Return the page without its data, and its data."""
    before, mark, rest = page.partition('id="sheet">')
    data, _, after = rest.partition("</script>")
    return before + mark + after, json.loads(data)


def test_the_key_is_private_and_its_seed_not_to_be_guessed(
    tmp_path: Path, made: Path, clips: tuple[Path, Path, Path]
) -> None:
    pair = pairs_of_folders(*clips)[:1]
    for name in ("one", "two"):
        make_sheet(tmp_path / name, pair, policies=("old", "new"))
    assert stat.S_IMODE((made / "key.json").stat().st_mode) == 0o600
    seeds = {load_key(tmp_path / name).seed for name in ("one", "two")}
    assert len(seeds) == 2
    assert max(seeds) > 2**40


def test_a_sheet_is_not_written_over(folder: Path, clips: tuple[Path, Path, Path]) -> None:
    before = (folder / "key.json").read_bytes()
    with pytest.raises(ValueError, match="holds a sheet already"):
        make(folder, clips, seed=2)
    assert (folder / "key.json").read_bytes() == before


def test_clips_that_give_a_policy_away_are_refused(tmp_path: Path) -> None:
    for name, frames in (("a.mp4", 8), ("b.mp4", 9)):
        write_mp4(tmp_path / name, torch.zeros(frames, 3, 16, 16), 8)
    pair = GsbPair(
        pair_id="p", prompt="x", first=str(tmp_path / "a.mp4"), second=str(tmp_path / "b.mp4")
    )
    with pytest.raises(ValueError, match="expected clips of one size, length and frame rate"):
        make_sheet(tmp_path / "sheet", [pair], policies=("a", "b"))
    assert not (tmp_path / "sheet").exists()


def test_folders_that_do_not_pair_are_refused(
    tmp_path: Path, clips: tuple[Path, Path, Path]
) -> None:
    first, second, prompts = clips
    short = tmp_path / "short.txt"
    short.write_text("one prompt\n")
    with pytest.raises(ValueError, match="expected 4 lines, one for each clip"):
        pairs_of_folders(first, second, short)
    lacking = tmp_path / "lacking.jsonl"
    lacking.write_text(prompts.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"3 clips have no line, e.g. '01.mp4'"):
        pairs_of_folders(first, second, lacking)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ValueError, match="--clips-b: no .mp4 files"):
        pairs_of_folders(first, other, prompts)
    (other / "99.mp4").touch()
    with pytest.raises(ValueError, match=r"5 clips are in one folder only, e.g. '00.mp4'"):
        pairs_of_folders(first, other, prompts)


def test_prompts_of_a_text_file_go_by_the_order_of_names(
    tmp_path: Path, clips: tuple[Path, Path, Path]
) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("zero\none\n\ntwo\nthree\n")
    pairs = pairs_of_folders(clips[0], clips[1], text)
    assert [pair.prompt for pair in pairs] == ["zero", "one", "two", "three"]
    assert [Path(pair.first).name for pair in pairs] == [f"{n:02d}.mp4" for n in range(4)]


def test_a_run_gives_its_evaluation_clips(tmp_path: Path) -> None:
    phase = tmp_path / "phases" / "02_evaluate"
    (phase / "clips").mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {"position": place, "seed_index": index, "prompt": f"prompt {place}", "scores": {}}
        for place in (0, 1)
        for index in (0, 1)
    ]
    (phase / "evaluation.json").write_text(json.dumps({"pairs": rows}))
    for place in (0, 1):
        for label in ("base", "after"):
            (phase / "clips" / f"{place:02d}_{label}.mp4").touch()
    pairs = pairs_of_run(tmp_path)
    assert [pair.prompt for pair in pairs] == ["prompt 0", "prompt 1"]
    assert [Path(pair.first).name for pair in pairs] == ["00_base.mp4", "01_base.mp4"]
    assert [Path(pair.second).name for pair in pairs] == ["00_after.mp4", "01_after.mp4"]
    (phase / "clips" / "01_after.mp4").unlink()
    with pytest.raises(ValueError, match=r"01_base.mp4: no clip of the trained policy"):
        pairs_of_run(tmp_path)
    with pytest.raises(ValueError, match="no finished phase `evaluate`"):
        pairs_of_run(tmp_path / "phases")


def test_a_vote_is_kept_before_it_is_confirmed(folder: Path) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/votes", json=vote(), headers=BEARER)
        assert (answer.status_code, answer.json()) == (201, {"kept": True})
        kept = read_votes(folder / "votes.jsonl", ["p000"]).votes
        assert [one.choice for one in kept] == ["left"]

    talk(folder, work)


@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", "Basic x"])
def test_nothing_is_served_without_the_token(folder: Path, given: str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        headers = {"Authorization": given} if given else {}
        for path in ("/", "/v1/sheet"):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 401
            assert "p000" not in answer.text
        answer = await client.post("/v1/votes", json=vote(), headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (401, "wrong or no token")
        assert (await client.get("/", params={"token": "wrong"})).status_code == 401

    talk(folder, work)
    assert (folder / "votes.jsonl").read_bytes() == b""


def test_the_printed_address_signs_a_browser_in(folder: Path) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.get("/", params={"token": TOKEN})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        page = await client.get("/")
        assert page.content == (folder / "sheet.html").read_bytes()
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert (await client.get("/v1/sheet")).json()["num_pairs"] == NUM_PAIRS
        assert (await client.post("/v1/votes", json=vote())).status_code == 201

    talk(folder, work)


@pytest.mark.parametrize("path", ["/key.json", "/settings.json", "/votes.jsonl", "/server.token"])
def test_no_other_file_of_the_folder_is_served(folder: Path, path: str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        assert (await client.get(path, headers=BEARER)).status_code == 404

    talk(folder, work)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (json.dumps(vote(pair="p9")), 422, "pair_id: no pair 'p9' in this sheet of 4 pairs"),
        (json.dumps(vote(axis="beauty")), 422, "axis: expected one of VQ, MQ, TA, overall"),
        (json.dumps(vote(voter="vlm:x")), 422, "names that begin with 'vlm:' are for models"),
        ("{", 422, "not a vote: Expecting"),
        ("[" * 3000, 422, "not a vote"),
        (json.dumps(vote(voter="x" * 5000)), 413, "a body of more than 4096 bytes"),
    ],
)
def test_a_bad_vote_is_refused_with_its_reason(
    folder: Path, body: str, code: int, said: str
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        headers = BEARER | {"Content-Type": "application/json"}
        answer = await client.post("/v1/votes", content=body, headers=headers)
        assert answer.status_code == code
        assert said in answer.json()["error"]

    talk(folder, work)
    assert (folder / "votes.jsonl").read_bytes() == b""


def test_a_form_of_another_site_is_no_vote(folder: Path) -> None:
    """Browsers send forms across sites without asking; JSON they do not."""

    async def work(client: httpx.AsyncClient) -> None:
        headers = BEARER | {"Content-Type": "text/plain"}
        answer = await client.post("/v1/votes", content=json.dumps(vote()), headers=headers)
        assert answer.status_code == 415

    talk(folder, work)


def test_the_token_is_private_and_stays(folder: Path) -> None:
    token = token_of(folder)
    assert stat.S_IMODE((folder / "server.token").stat().st_mode) == 0o600
    assert token_of(folder) == token
    assert len(token) >= 32
    with pytest.raises(ValueError, match="a token of 5 characters"):
        make_app(folder, token="short")
    with pytest.raises(ValueError, match="expected the folder of a sheet"):
        token_of(folder.parent)


def write_votes(path: Path, *votes: Vote) -> None:
    store = VoteStore(path)
    store.open()
    for one in votes:
        store.append(one)
    store.close()


def truthful(folder: Path, voter: str, axis: str = "VQ") -> list[Vote]:
    """Return the votes of somebody who prefers policy B in every pair."""
    other = {"left": "right", "right": "left"}
    return [
        Vote(pair_id=p, axis=axis, choice=other[s], voter=voter, time_s=time.time())  # type: ignore[arg-type]
        for p, s in load_key(folder).sides.items()
    ]


def test_people_and_models_are_tallied_apart(folder: Path) -> None:
    write_votes(folder / "votes.jsonl", *truthful(folder, "anna"), *truthful(folder, "ben"))
    against = [
        Vote(pair_id=p, axis="VQ", choice=s, voter="vlm:judge", time_s=1.0)
        for p, s in load_key(folder).sides.items()
    ]
    write_votes(folder / "votes-vlm-judge.jsonl", *against)
    result = tally_sheet(folder)
    assert [group.voters for group in result.groups] == [PEOPLE, "vlm:judge"]
    assert [group.tally.axes[0].gsb for group in result.groups] == [1.0, -1.0]
    assert result.groups[0].tally.num_voters == 2
    assert (result.policy_a, result.policy_b) == ("old", "new")
    tree = json.loads((folder / "tally.json").read_text())
    assert tree["groups"][0]["tally"]["axes"][0]["good"] == 2 * NUM_PAIRS


def test_a_tally_without_votes_says_where_it_looked(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no votes in .*votes\*\.jsonl: expected some"):
        tally_sheet(folder)


def test_the_commands_go_from_clips_to_a_table(
    tmp_path: Path, clips: tuple[Path, Path, Path]
) -> None:
    sheet = tmp_path / "sheet"
    names = [str(path) for path in clips]
    made = CliRunner().invoke(
        gsb_app,
        ["make", str(sheet), "--clips-a", names[0], "--clips-b", names[1], "--prompts", names[2]],
    )
    assert made.exit_code == 0, made.output
    assert "4 pairs" in made.output
    votes = [one for axis in AXES for one in truthful(sheet, "anna", axis)]
    write_votes(tmp_path / "anna.jsonl", *votes)
    (tmp_path / "ben.jsonl").write_text('{"pair_id": "p0')
    found = CliRunner().invoke(
        gsb_app,
        ["tally", str(sheet), "--votes", str(tmp_path / "anna.jsonl")]
        + ["--votes", str(tmp_path / "ben.jsonl")],
        env={"COLUMNS": "140"},
    )
    assert found.exit_code == 0, found.output
    assert "true_policy against broken_policy" in found.output
    assert "+1.00" in found.output
    assert "cut short by a crash" in found.output
    wrong = CliRunner().invoke(gsb_app, ["make", str(tmp_path / "x"), "--clips-a", names[0]])
    assert "expected either --run, or all of" in str(wrong.exception)


@pytest.mark.parametrize(
    ("left_first", "right_first", "expected"),
    [
        (0.9, 0.1, "left"), (0.1, 0.9, "right"),
        (0.9, 0.8, "same"), (0.2, 0.1, "same"), (0.95, 0.6, "same"), (0.5, 0.5, "same"),
    ],
)  # fmt: skip
def test_a_verdict_that_flips_with_the_order_is_same(
    left_first: float, right_first: float, expected: str
) -> None:
    """0.95 and 0.6: more sure of the left one, but the first one was named both times."""
    assert choice_of(left_first, right_first) == expected


ASKS = {"TA": AskSettings(prompts="adherence", layout="images", num_frames=2, max_attempts=1)}


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    with running(FakeVllm()) as (one,):
        yield one


def test_a_model_that_names_the_first_always_votes_same(folder: Path, server: FakeVllm) -> None:
    server.masses = lambda text: {"A": 0.9, "B": 0.1}
    found = vote_by_model(folder, server.endpoint, name="big/judge", asks=ASKS)
    assert (found.path.name, found.num_votes) == ("votes-vlm-big-judge.jsonl", NUM_PAIRS)
    assert server.num_chats >= 2 * NUM_PAIRS
    result = tally_sheet(folder)
    assert [group.voters for group in result.groups] == ["vlm:big/judge"]
    axis = result.groups[0].tally.axes[list(AXES).index("TA")]
    assert (axis.good, axis.same, axis.bad) == (0, NUM_PAIRS, 0)


def test_a_model_that_sees_the_better_clip_votes_for_its_policy(
    folder: Path, server: FakeVllm
) -> None:
    """Asked blind, in both orders and from both sides: every vote must come out as good."""
    view = View(layout="images", num_frames=2)
    frames = [to_frames(read_mp4(Path(pair.second))[0]) for pair in load_key(folder).pairs]
    better = {json.dumps(list(view.show(one, 8.0).parts)) for one in frames}

    def names_the_better(text: str) -> dict[str, float]:
        parts = parts_of(server.bodies[-1]["messages"])
        images = [part for part in parts if part["type"] == "image_url"]
        first, second = (json.dumps(two) in better for two in (images[:2], images[2:]))
        assert first != second
        return {"A": 0.8, "B": 0.2} if first else {"A": 0.2, "B": 0.8}

    server.masses = names_the_better
    one_at_a_time = {"TA": dataclasses.replace(ASKS["TA"], concurrency=1)}
    vote_by_model(folder, server.endpoint, name="judge", asks=one_at_a_time)
    axis = tally_sheet(folder).groups[0].tally.axes[list(AXES).index("TA")]
    assert (axis.good, axis.same, axis.bad) == (NUM_PAIRS, 0, 0)
    votes = read_votes(folder / "votes-vlm-judge.jsonl", load_key(folder).sides).votes
    assert {one.choice for one in votes} == {"left", "right"}


def test_a_question_without_an_answer_is_no_vote(folder: Path, server: FakeVllm) -> None:
    server.masses = lambda text: {}
    found = vote_by_model(folder, server.endpoint, name="judge", asks=ASKS)
    assert (found.num_votes, found.num_missing) == (0, NUM_PAIRS)


def test_a_question_that_cannot_be_asked_is_refused(folder: Path, server: FakeVllm) -> None:
    with pytest.raises(ValueError, match="axis: expected some of VQ, MQ, TA, overall, got fun"):
        vote_by_model(folder, server.endpoint, name="x", asks={"fun": ASKS["TA"]})
    with pytest.raises(ValueError, match="has no section `pair`"):
        vote_by_model(
            folder, server.endpoint, name="x", asks={"TA": AskSettings(prompts="outcome")}
        )
