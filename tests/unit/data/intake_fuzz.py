"""Malformed inputs of the intake, drawn at random; shared by the test and the benchmark."""

from __future__ import annotations

import json
import random
import string
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from rlvid.data.intake import REASONS, Drop, Intake, RealClip
from tests.unit.data.intake_sets import (
    SHAPE,
    arrow_bytes,
    encoded,
    members_of,
    parquet_bytes,
    rendered,
    section,
    tar_bytes,
)

Made = tuple[str, bytes, frozenset[str]]
GOOD = "good.mp4"
LINE = ".line"
"""Suffix of an input that is a line of captions.jsonl, not a file."""
SOURCES = (".tar", ".tar.gz", ".parquet", ".arrow")
"""Suffixes of the inputs that are a source of their own."""
ANY = frozenset({"kept", *REASONS})
DAMAGED = frozenset({"unreadable_video", "truncated_video", "damaged_video", "no_frames"})
HUGE = DAMAGED | {"too_large"}


def malformed(seed: int, index: int) -> Made:
    """Return an input that is wrong, the same for the same arguments.

    Returns:
        Its name, whose suffix says where it belongs, its bytes, and what may become of it: reasons,
        or "kept" where the damage may be harmless.
    """
    kind = tuple(KINDS)[index % len(KINDS)]
    suffix, data, expected = KINDS[kind](random.Random(f"{seed}/{index}"))
    return f"{index:06}-{kind}{suffix}", data, expected


@dataclass(slots=True)
class FuzzReport:
    """What became of a stretch of malformed inputs."""

    inputs: int = 0
    seen: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """Inputs that were lost, counted twice, or dropped for another reason than they should."""
    slowest_s: float = 0.0
    slowest: str = ""


def run_fuzz(folder: Path, seed: int, indices: range, report: FuzzReport) -> None:
    """Take in a stretch of malformed inputs, and add what became of them to the report."""
    (folder / GOOD).write_bytes(_videos()[".mp4"])
    made = [malformed(seed, index) for index in indices]
    lines = [made_one for made_one in made if not made_one[0].endswith(SOURCES)]
    sources = [made_one for made_one in made if made_one[0].endswith(SOURCES)]
    for name, data, _ in made:
        if not name.endswith(LINE):
            (folder / name).write_bytes(data)
    (folder / "captions.jsonl").write_bytes(b"\n".join(_line(*item[:2]) for item in lines))
    of_name = {f"{folder / 'captions.jsonl'}:{n}": item for n, item in enumerate(lines, start=1)}
    intake = Intake(section(folder, *(folder / item[0] for item in sources)), SHAPE)
    found: Counter[str] = Counter()
    began = time.perf_counter()
    for outcome in intake.outcomes():
        result = outcome.reason if isinstance(outcome, Drop) else "kept"
        item = of_name.get(outcome.name) or _source_of(outcome, sources)
        found[item[0]] += 1
        report.by_kind.setdefault(_kind(item[0]), Counter())[result] += 1
        if result not in item[2]:
            report.wrong.append(f"{item[0]}: {result}, expected one of {sorted(item[2])}")
        seconds, began = time.perf_counter() - began, time.perf_counter()
        if seconds > report.slowest_s:
            report.slowest_s, report.slowest = seconds, item[0]
    report.wrong += [
        f"{name}: counted {found[name]} times" for name, _, _ in lines if found[name] != 1
    ]
    report.wrong += [f"{name}: lost" for name, _, _ in sources if not found[name]]
    report.inputs += len(made)
    report.seen += intake.counts.seen
    report.kept += intake.counts.kept
    report.dropped.update(intake.counts.dropped)


def _line(name: str, data: bytes) -> bytes:
    return data if name.endswith(LINE) else json.dumps({"file": name, "text": "a ball"}).encode()


def _kind(name: str) -> str:
    return name.split("-", 1)[1].rsplit(".tar.gz", 1)[0].rsplit(".", 1)[0]


def _source_of(outcome: RealClip | Drop, sources: list[Made]) -> Made:
    return next(item for item in sources if f"/{item[0]}:" in outcome.name)


def _h264(video: Tensor) -> bytes:
    return encoded(video, 8, container="mp4", codec="libx264", pix_fmt="yuv420p")


@lru_cache(maxsize=1)
def _videos() -> dict[str, bytes]:
    """Return good videos of every container, in a few KB each."""
    video, _ = rendered(1, num_frames=17, fps=8)
    return {
        ".mp4": _h264(video),
        ".mov": encoded(video, 8, container="mov", codec="libx264", pix_fmt="yuv420p"),
        ".mkv": encoded(video, 8, container="matroska", codec="libx264", pix_fmt="yuv420p"),
        ".webm": encoded(video, 8, container="webm", codec="libvpx", pix_fmt="yuv420p"),
        ".avi": encoded(video, 8, container="avi", codec="mpeg4", pix_fmt="yuv420p"),
    }


@lru_cache(maxsize=1)
def _sources() -> dict[str, bytes]:
    clips = [rendered(index, num_frames=17, fps=8) for index in range(3)]
    pairs = [(_h264(video), text) for video, text in clips]
    return {
        ".tar": tar_bytes(members_of(pairs)),
        ".tar.gz": tar_bytes(members_of(pairs), gz=True),
        ".parquet": parquet_bytes(pairs),
        ".arrow": arrow_bytes(pairs),
    }


@lru_cache(maxsize=8)
def _plain(num_frames: int, shape: tuple[int, int] = (32, 32), *, moves: bool = True) -> bytes:
    video, _ = rendered(2, num_frames=num_frames, fps=8, height=shape[0], width=shape[1])
    return _h264(video if moves else video[:1].expand(num_frames, -1, -1, -1))


@lru_cache(maxsize=1)
def _raw_avi() -> bytes:
    return encoded(
        torch.zeros(2, 3, 32, 32), 8, container="avi", codec="rawvideo", pix_fmt="yuv420p"
    )


def _flipped(data: bytes, chance: random.Random, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _some_video(chance: random.Random) -> tuple[str, bytes]:
    return chance.choice(sorted(_videos().items()))


def _bit_flip(chance: random.Random) -> Made:
    suffix, data = _some_video(chance)
    return suffix, _flipped(data, chance, 1), ANY


def _many_flips(chance: random.Random) -> Made:
    suffix, data = _some_video(chance)
    return suffix, _flipped(data, chance, chance.randrange(2, 200)), ANY


def _zeroed(chance: random.Random) -> Made:
    suffix, data = _some_video(chance)
    start = chance.randrange(len(data))
    stop = min(len(data), start + chance.randrange(1, 2000))
    return suffix, data[:start] + bytes(stop - start) + data[stop:], ANY


def _truncated(chance: random.Random) -> Made:
    """At most three quarters are left, so that frames are missing whatever the container."""
    suffix, data = _some_video(chance)
    return suffix, data[: chance.randrange(len(data) * 3 // 4)], DAMAGED


def _other_magic(chance: random.Random) -> Made:
    """One container's first bytes before another's content."""
    (suffix, data), (_, other) = _some_video(chance), _some_video(chance)
    cut = chance.randrange(4, 64)
    return suffix, other[:cut] + data[cut:], ANY


def _random_bytes(chance: random.Random) -> Made:
    """Seven in eight begin like a video; none of the others does, by chance neither."""
    head = chance.choice(
        [b"\0\0\0\x20ftypisom", b"\0\0\1\0moov", b"\x1aE\xdf\xa3", b"RIFF\0\1\0\0AVI "]
    )
    head = b"" if chance.random() < 0.125 else head
    return ".mp4", head + chance.randbytes(chance.randrange(4, 5000)), DAMAGED


def _huge_avi(chance: random.Random) -> Made:
    """A header that declares frames of up to 65535 x 65535; 32 x 32 follow.

    Half of the sizes are such that the decoder itself would take them.
    """
    data = _raw_avi()
    place = data.index(b"strf") + 12
    most = chance.choice([12000, 65536])
    sides = struct.pack("<ii", chance.randrange(6000, most), chance.randrange(6000, most))
    return ".avi", data[:place] + sides + data[place + 8 :], HUGE


def _huge_mp4(chance: random.Random) -> Made:
    """The sample entry declares a size of its own; H.264's parameters have the last word."""
    data = _videos()[".mp4"]
    place = data.index(b"avc1", data.index(b"stsd")) + 28
    sides = struct.pack(">HH", chance.randrange(8192, 65536), chance.randrange(8192, 65536))
    return ".mp4", data[:place] + sides + data[place + 4 :], HUGE | {"kept", "duplicate"}


def _huge_vp8(chance: random.Random) -> Made:
    """A key frame of up to 16383 x 16383 in the stream itself."""
    data = _videos()[".webm"]
    place = data.index(b"\x9d\x01\x2a") + 3
    sides = struct.pack("<HH", chance.randrange(8192, 16384), chance.randrange(8192, 16384))
    return ".webm", data[:place] + sides + data[place + 4 :], HUGE


def _names_other_files(chance: random.Random) -> Made:
    text = chance.choice(
        [
            f"ffconcat version 1.0\nfile {GOOD}\n",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 45678 RTP/AVP 96\n",
            f"#EXTM3U\n#EXTINF:1,\n{GOOD}\n",
        ]
    )
    return ".mp4", text.encode(), frozenset({"unreadable_video"})


def _line_of(make: Callable[[random.Random], bytes], *expected: str) -> Callable[..., Made]:
    return lambda chance: (LINE, make(chance), frozenset(expected))


def _good_line(**changes: object) -> bytes:
    return json.dumps({"file": GOOD, "text": "a ball"} | changes).encode()


def _word(chance: random.Random) -> str:
    return "".join(chance.choices(string.ascii_letters, k=chance.randrange(1, 12)))


def _broken_json(chance: random.Random) -> bytes:
    line = _good_line(text=_word(chance))
    return chance.choice(
        [
            line[: chance.randrange(1, len(line))],
            line.replace(b":", b"", 1),
            b"[" * chance.randrange(2000, 200000),
            b'{"file": 1' + b"0" * 5000 + b"}",
            _word(chance).encode(),
            b"[" + line + b"]",
            line + b"}",
        ]
    )


def _wrong_type(chance: random.Random) -> bytes:
    wrong = chance.choice([1, 1.5, True, [], {}, ["a"], {"a": "b"}])
    return _good_line(**{chance.choice(["file", "text"]): wrong})


def _not_utf8(chance: random.Random) -> bytes:
    bad = chance.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88", b"\\ud800"])
    return _good_line(text="a ball").replace(b"a ball", b"a " + bad)


def _leaves_folder(chance: random.Random) -> bytes:
    up = "../" * chance.randrange(1, 5)
    name = f"{_word(chance)}.mp4"
    return _good_line(file=chance.choice([up + name, f"/tmp/{name}", f"a/../../{name}"]))


def _no_such_file(chance: random.Random) -> bytes:
    word = _word(chance)
    return _good_line(
        file=chance.choice([f"{word}.mp4", f"{word}\0.mp4", word * 300 + ".mp4", "\ud800.mp4"])
    )


def _source(damage: Callable[[bytes, random.Random], bytes]) -> Callable[[random.Random], Made]:
    def make(chance: random.Random) -> Made:
        suffix, data = chance.choice(sorted(_sources().items()))
        return suffix, damage(data, chance), ANY

    return make


KINDS: dict[str, Callable[[random.Random], Made]] = {
    "zero length": lambda chance: (".mp4", b"", frozenset({"unreadable_video"})),
    "random bytes": _random_bytes,
    "truncated": _truncated,
    "bit flip": _bit_flip,
    "many flips": _many_flips,
    "zeroed": _zeroed,
    "other magic": _other_magic,
    "huge avi": _huge_avi,
    "huge mp4": _huge_mp4,
    "huge vp8": _huge_vp8,
    "names other files": _names_other_files,
    "wrong extension": lambda chance: (
        chance.choice([".txt", ".jpg", ".sdp", ".m3u8", ".mp4x", ""]),
        _videos()[".mp4"],
        frozenset({"wrong_extension"}),
    ),
    "one frame": lambda chance: (".mp4", _plain(1), frozenset({"one_frame"})),
    "short": lambda chance: (".mp4", _plain(6), frozenset({"too_short"})),
    "long": lambda chance: (".mp4", _plain(80), frozenset({"too_long"})),
    "small": lambda chance: (".mp4", _plain(17, (16, 32)), frozenset({"too_small"})),
    "static": lambda chance: (".mp4", _plain(17, moves=False), frozenset({"static"})),
    "broken JSON": _line_of(_broken_json, "bad_json"),
    "wrong type": _line_of(_wrong_type, "bad_json"),
    "not UTF-8": _line_of(_not_utf8, "not_utf8"),
    "empty caption": _line_of(
        lambda chance: _good_line(text=chance.choice(["", " ", "\t\n ", "\u3000"])), "empty_caption"
    ),
    "long caption": _line_of(
        lambda chance: _good_line(text=_word(chance) + " x" * 1000), "caption_too_long"
    ),
    "endless line": _line_of(lambda chance: b"x" * 3 * 2**20, "bad_json"),
    "no caption": _line_of(lambda chance: _good_line(text=None), "missing_caption"),
    "no video": _line_of(lambda chance: _good_line(file=None), "missing_file"),
    "no such file": _line_of(_no_such_file, "missing_file"),
    "leaves the folder": _line_of(_leaves_folder, "outside_folder"),
    "source bit flip": _source(lambda data, chance: _flipped(data, chance, 1)),
    "source many flips": _source(lambda data, chance: _flipped(data, chance, 50)),
    "source truncated": _source(lambda data, chance: data[: chance.randrange(len(data))]),
    "source random": _source(lambda data, chance: chance.randbytes(chance.randrange(3000))),
}
