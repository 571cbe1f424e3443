"""The command `rlvid enhance`: one prompt through a trained rewriter, with what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rlvid.enhancement.answer import Enhanced
    from rlvid.enhancement.folder import Enhancer
    from rlvid.enhancement.intent import Drift
    from rlvid.records import Prompt

MALFORMED_STATUS = 3
"""Exit status where no answer could be read; 2 is an error of the user's."""


def enhance(
    prompt: Annotated[str, typer.Argument(help="What the clip should show, in your words.")],
    enhancer: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="An enhancer's folder, or that of a run with one."),
    ],
    seed: Annotated[int, typer.Option(min=0, help="Of the rewrite.")] = 0,
    tries: Annotated[
        int, typer.Option(min=1, help="Answers drawn at most, until one is well formed.")
    ] = 1,
) -> None:
    """Rewrite a prompt and say whether it still asks for the same.

    Exit status: 0 rewritten; 2 an error of the user's; 3 every answer was malformed, and nothing is
    printed as a rewrite.
    """
    if not prompt.strip():
        raise ValueError("enhance: the prompt is empty; say what the clip should show")
    opened = open_enhancer(enhancer)
    wish = user_prompt(prompt)
    failures = []
    for number in range(tries):
        answer = one_answer(opened, wish, seed + number)
        if isinstance(answer, str):
            failures.append(answer)
            continue
        typer.echo(f"reason: {answer.reason}")
        typer.echo(f"prompt: {answer.prompt}")
        typer.echo(f"intent: {verdict(drift_of(opened, wish, answer))}")
        return
    typer.echo(
        f"error: enhance: no well-formed answer in {tries}: {', '.join(failures)}. The prompt was "
        "not rewritten; try another --seed or more --tries, or train the enhancer longer",
        err=True,
    )
    raise typer.Exit(MALFORMED_STATUS)


def open_enhancer(folder: Path) -> Enhancer:
    """Return the enhancer of a folder, or of the run whose folder it is.

    Raises:
        ValueError: there is none.
    """
    from rlvid.enhancement.folder import load_enhancer

    if not (folder / "recipe.yaml").is_file():
        return load_enhancer(folder)
    from rlvid.launch.run import artifacts_of

    found = artifacts_of(folder).enhancer
    if found is None:
        raise ValueError(
            f"run folder {str(folder)!r}: its finished phases trained no enhancer; run a recipe "
            "with phase prompt_enhancement, or name another folder"
        )
    return load_enhancer(Path(found))


def user_prompt(text: str) -> Prompt:
    """Return the prompt of a user; a caption of the tiny world has its facts."""
    from rlvid.data.tiny_world.grammar import parse
    from rlvid.records import Prompt
    from rlvid.seeds import prompt_id

    return Prompt(prompt_id=prompt_id(text), text=text, facts=parse(text) or {})


def one_answer(enhancer: Enhancer, prompt: Prompt, seed: int) -> Enhanced | str:
    """Return an answer that keeps the form, or the name of what is wrong with it."""
    from rlvid.enhancement.answer import Malformed
    from rlvid.enhancement.rewriter import rewrite_seed

    seeds = [[rewrite_seed(seed, prompt.prompt_id, 0, 0)]]
    answer = enhancer.rewriter.rewrite([prompt], seeds)[0][0].answer
    return answer.failure.value if isinstance(answer, Malformed) else answer


def drift_of(enhancer: Enhancer, prompt: Prompt, answer: Enhanced) -> Drift:
    from rlvid.enhancement.answer import with_enhancement

    return enhancer.drift(with_enhancement(prompt, answer))


def verdict(drift: Drift) -> str:
    """Return in words what became of the user's wishes."""
    wrongs = [f"{item.wanted} became {' and '.join(item.found)}" for item in drift.contradicted] + [
        f"{item} is gone" for item in drift.dropped
    ]
    if wrongs:
        return f"drifted: {'; '.join(wrongs)}"
    named = ", ".join(str(item) for item in drift.required if item.is_insisted)
    return f"kept: {named}" if named else "nothing was named that could be checked"


def add_enhance_command(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        epilog='Example: rlvid enhance "crimson orb, falling, left" '
        "--enhancer runs/prompt_enhancement_tiny_cpu"
    )(enhance)
