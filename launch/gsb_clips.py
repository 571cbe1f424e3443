"""Finds the pairs of clips of a blind comparison: in two folders, or in a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlvid.evaluation.gsb import GsbPair

BASE, AFTER = "base", "after"
"""How the phase `evaluate` names the clips of its two policies: NN_base.mp4, NN_after.mp4."""


def pairs_of_folders(clips_a: Path, clips_b: Path, prompts_file: Path) -> tuple[GsbPair, ...]:
    """Return a pair for every .mp4 of one name in both folders, sorted by name.

    Args:
        prompts_file: .jsonl of lines {"file": "a.mp4", "text": "..."}, as captions.jsonl is; or
            .txt with one prompt a line, in the order of the sorted names.

    Raises:
        ValueError: a folder that is none or has no clips, a clip without partner, or a clip
            without prompt.
    """
    names_a, names_b = _clip_names(clips_a, "--clips-a"), _clip_names(clips_b, "--clips-b")
    alone = sorted(set(names_a) ^ set(names_b))
    if alone:
        raise ValueError(
            f"gsb make: {len(alone)} clips are in one folder only, e.g. {alone[0]!r}: expected the "
            "same names in --clips-a and --clips-b. Move the others away."
        )
    prompts = read_prompts(prompts_file, names_a)
    return _numbered([(prompts[n], clips_a / n, clips_b / n) for n in names_a])


def pairs_of_run(run: Path) -> tuple[GsbPair, ...]:
    """Return the pairs that the last evaluation of a run kept: base against trained policy.

    Raises:
        ValueError: no finished evaluation, or it kept no clips.
    """
    found = sorted(run.glob("phases/*/evaluation.json"))
    if not found:
        raise ValueError(
            f"gsb make: run folder {str(run)!r}: no finished phase `evaluate` in it. Give a run "
            "whose recipe has that phase, or two folders by --clips-a and --clips-b."
        )
    tree = json.loads(found[-1].read_text(encoding="utf-8"))
    prompts = {pair["position"]: pair["prompt"] for pair in tree["pairs"]}
    rows = []
    for base in sorted((found[-1].parent / "clips").glob(f"*_{BASE}.mp4")):
        after = base.with_name(base.name.replace(f"_{BASE}.", f"_{AFTER}."))
        position = int(base.name.partition("_")[0])
        if not after.is_file() or position not in prompts:
            what = "prompt in evaluation.json" if after.is_file() else "clip of the trained policy"
            raise ValueError(
                f"gsb make: {base}: no {what}. The evaluation is incomplete: run it again with "
                "`rlvid run --resume`, or give two folders by --clips-a and --clips-b."
            )
        rows.append((prompts[position], base, after))
    if not rows:
        raise ValueError(
            f"gsb make: {found[-1].parent}/clips: no clips kept. Set evaluate.num_clips in the "
            "recipe, or give two folders by --clips-a and --clips-b."
        )
    return _numbered(rows)


def read_prompts(path: Path, names: Sequence[str]) -> Mapping[str, str]:
    """Return the prompt of every clip name; see `pairs_of_folders` for the two forms."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"gsb make: --prompts: cannot read {str(path)!r}: {error}.") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix == ".txt":
        if len(numbered) != len(names):
            raise ValueError(
                f"gsb make: --prompts {path}: expected {len(names)} lines, one for each clip in "
                f"the order of the sorted names, got {len(numbered)}. Use a .jsonl file to name "
                "the clips."
            )
        return dict(zip(names, (line for _, line in numbered), strict=True))
    if path.suffix != ".jsonl":
        raise ValueError(f"gsb make: --prompts: expected a .txt or .jsonl file, got {str(path)!r}.")
    prompts = dict(_prompt_line(line, f"{path}:{number}") for number, line in numbered)
    missing = [name for name in names if name not in prompts]
    if missing:
        raise ValueError(
            f"gsb make: --prompts {path}: {len(missing)} clips have no line, e.g. {missing[0]!r}. "
            "Add them."
        )
    return prompts


def _prompt_line(line: str, where: str) -> tuple[str, str]:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from error
    is_complete = isinstance(item, dict) and {"file", "text"} <= set(item)
    if not is_complete or not (isinstance(item["file"], str) and isinstance(item["text"], str)):
        raise ValueError(
            f'{where}: expected an object {{"file": "a.mp4", "text": "..."}}, got {item!r}.'
        )
    return item["file"], item["text"]


def _clip_names(folder: Path, option: str) -> list[str]:
    names = sorted(path.name for path in folder.glob("*.mp4"))
    if not names:
        raise ValueError(
            f"gsb make: {option}: no .mp4 files in {str(folder)!r}. Name their folder."
        )
    return names


def _numbered(rows: Sequence[tuple[str, Path, Path]]) -> tuple[GsbPair, ...]:
    """Return the pairs with ids that say no more than their place."""
    return tuple(
        GsbPair(
            pair_id=f"p{place:03d}",
            prompt=prompt,
            first=str(first.resolve()),
            second=str(second.resolve()),
        )
        for place, (prompt, first, second) in enumerate(rows)
    )
