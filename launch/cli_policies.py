"""The commands about finished policies: `rlvid evaluate`, `rlvid compare` and `rlvid sample`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvid.launch.cli_options import Overrides, RunFolderOption, default_folder, show_logs

if TYPE_CHECKING:
    from torch import Tensor

    from rlvid.config import Recipe
    from rlvid.config.inference import InferenceConfig
    from rlvid.models.policy import Policy

DEFAULT_RECIPE = "quickstart_cpu"


def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run folder, or a pipeline folder.")
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"Recipe; the run's own, or {DEFAULT_RECIPE} for a model."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Pipeline folder to compare with; the run's own, or the recipe's model."),
    ] = None,
    run_folder: RunFolderOption = None,
) -> None:
    """Compare a policy with its base on held-out prompts, with intervals."""
    from rlvid.config.loader import load_recipe

    is_run = (Path(what) / "recipe.yaml").is_file()
    chosen = recipe or (str(Path(what) / "recipe.yaml") if is_run else DEFAULT_RECIPE)
    loaded = load_recipe(chosen, overrides or ())
    show_logs()
    from rlvid.launch.phases.base import Artifacts
    from rlvid.launch.run import artifacts_of, evaluate_run
    from rlvid.models.policy import Policy

    if is_run:
        artifacts = artifacts_of(Path(what))
    else:
        start = Policy(model_path=loaded.model.path)
        artifacts = Artifacts(base_policy=start, policy=policy_at(what))
    if base:
        artifacts = replace(artifacts, base_policy=Policy(model_path=base))
    folder = run_folder or default_folder(f"{loaded.name}-evaluate", resume=False)
    typer.echo(f"report: {evaluate_run(loaded, artifacts, folder)}")


def compare(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A run folder, or a pipeline folder; or tiny.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"Recipe; that of B, of A, or {DEFAULT_RECIPE} for two models."),
    ] = None,
    run_folder: RunFolderOption = None,
) -> None:
    """Compare two policies on held-out prompts from the same noise: B less A, with intervals."""
    from rlvid.config.loader import load_recipe

    runs = [what for what in (second, first) if (Path(what) / "recipe.yaml").is_file()]
    chosen = recipe or (str(Path(runs[0]) / "recipe.yaml") if runs else DEFAULT_RECIPE)
    loaded = load_recipe(chosen, overrides or ())
    show_logs()
    from rlvid.launch.phases.base import Artifacts
    from rlvid.launch.run import evaluate_run

    artifacts = Artifacts(base_policy=policy_at(first), policy=policy_at(second))
    folder = run_folder or default_folder(f"{loaded.name}-compare", resume=False)
    typer.echo(f"report: {evaluate_run(loaded, artifacts, folder)}")


def sample(
    prompt: Annotated[str, typer.Argument(help="What the clip should show.")],
    model: Annotated[
        str | None, typer.Option(help="Pipeline folder; the tiny model when left out.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder: its newest policy and its settings.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("sample.mp4"),
    seed: Annotated[int, typer.Option(min=0, help="Of the initial noise.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; the recipe's when left out.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=1.0, help="Guidance scale; the recipe's when left out.")
    ] = None,
    enhancer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Rewrite the prompt first, by this enhancer or run (`enhance`)."
        ),
    ] = None,
    inference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Setting that `rlvid optimise` wrote: optimised.json."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Write frames as a causal student makes them.")
    ] = False,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="With --stream: frames in all, the model's when left out."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="With --stream: blocks in sight, the trained length at most."),
    ] = None,
    sinks: Annotated[
        int | None,
        typer.Option(min=0, help="With --stream: first blocks that stay in sight; 1."),
    ] = None,
) -> None:
    """Sample one clip, the same for the same seed, and write it as mp4."""
    if model is not None and run is not None:
        raise ValueError("sample: --model and --run name two policies; give one of them")
    if not prompt.strip():
        raise ValueError("sample: the prompt is empty; say what the clip should show")
    recipe = recipe_for_sample(run, model)
    from rlvid.data.video_files import write_mp4

    policy = policy_at(str(run or model or recipe.model.path))
    text = prompt if enhancer is None else rewritten(prompt, enhancer, seed)
    if policy.sampling is not None and (steps or guidance):
        raise ValueError(
            "sample: the policy is a distilled student with levels of its own and no guidance; "
            "leave --steps and --guidance out"
        )
    setting = None if inference is None else inference_for_sample(inference, policy)
    out.parent.mkdir(parents=True, exist_ok=True)
    if stream:
        write_stream(out, text, policy, recipe, seed, num_frames=frames, window=window, sinks=sinks)
        return
    if frames or window or sinks is not None:
        raise ValueError("sample: --frames, --window and --sinks are of --stream; add it")
    clip = one_clip(text, policy, recipe, seed, steps=steps, guidance=guidance, inference=setting)
    write_mp4(out, clip, recipe.model.fps)
    num_frames, _, height, width = clip.shape
    typer.echo(f"{out}: {num_frames} frames of {width}x{height} at {recipe.model.fps} fps")


def one_clip(
    text: str,
    policy: Policy,
    recipe: Recipe,
    seed: int,
    *,
    steps: int | None,
    guidance: float | None,
    inference: InferenceConfig | None = None,
) -> Tensor:
    """Return a clip [T, 3, H, W]: of a student at its own levels, else by the ODE sampler."""
    from rlvid.launch.sample import sample_clip, sample_student

    if policy.sampling is not None:
        return sample_student(text, policy, recipe.model, seed=seed)
    evaluate = recipe.evaluate
    return sample_clip(
        text,
        policy,
        recipe.model,
        seed=seed,
        num_denoising_steps=steps or evaluate.num_denoising_steps,
        shift=recipe.rollout.shift,
        guidance_scale=guidance or evaluate.guidance_scale or recipe.rollout.guidance_scale,
        inference=inference,
    )


def inference_for_sample(path: Path, policy: Policy) -> InferenceConfig:
    """Return the setting in a file, having said what it is.

    Raises:
        ConfigError: the file holds none.
        ValueError: the policy is a student, which settings are not measured on.
    """
    from rlvid.config.inference_files import load_inference

    setting = load_inference(path)
    if policy.sampling is not None:
        raise ValueError(
            "sample --inference: the policy is a distilled student: expected one that is sampled "
            "in many steps, which is what rlvid optimise measures. Leave --inference out"
        )
    typer.echo(f"inference: {setting.describe()}")
    return setting


def write_stream(
    out: Path,
    text: str,
    policy: Policy,
    recipe: Recipe,
    seed: int,
    *,
    num_frames: int | None,
    window: int | None,
    sinks: int | None,
) -> None:
    """Write frames into a file that plays while it grows; say when the first ones came."""
    from rlvid.data.video_files import Mp4Writer
    from rlvid.launch.sample import open_stream

    streamed = open_stream(
        text,
        policy,
        recipe.model,
        seed=seed,
        num_frames=num_frames or recipe.model.num_frames,
        window_blocks=window,
        sink_blocks=1 if sinks is None else sinks,
    )
    written, elapsed_s = 0, 0.0
    with Mp4Writer(out, recipe.model.fps, is_live=True) as writer:
        for part in streamed:
            if not written:
                typer.echo(f"first {len(part.frames)} frames after {part.elapsed_s:.3f} s")
            writer.write(part.frames)
            written, elapsed_s = written + len(part.frames), part.elapsed_s
    typer.echo(f"{out}: {written} frames in {elapsed_s:.2f} s, {written / elapsed_s:.1f} a second")


def add_policy_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(
        epilog="Examples: rlvid evaluate runs/quickstart_cpu | "
        "rlvid evaluate path/to/pipeline --recipe quickstart_cpu --base tiny"
    )(evaluate)
    app.command(epilog="Example: rlvid compare runs/first runs/second evaluate.num_prompts=64")(
        compare
    )
    app.command(
        epilog='Examples: rlvid sample "a red ball falls" | '
        'rlvid sample "a red ball falls" --run runs/quickstart_cpu --seed 3 --out after.mp4 | '
        'rlvid sample "a red ball falls" --inference runs/quickstart_cpu-optimise/optimised.json | '
        'rlvid sample "a red ball falls" --run runs/distillation_tiny_cpu --stream --frames 65'
    )(sample)


def rewritten(prompt: str, enhancer: Path, seed: int) -> str:
    """Return the rewrite of a prompt, having said what it is.

    Raises:
        ValueError: there is no enhancer, or its answer is malformed; the user's words never pass
            for a rewrite.
    """
    from rlvid.launch.cli_enhance import drift_of, one_answer, open_enhancer, user_prompt, verdict

    opened, wish = open_enhancer(enhancer), user_prompt(prompt)
    answer = one_answer(opened, wish, seed)
    if isinstance(answer, str):
        raise ValueError(
            f"sample: --enhancer gave a malformed answer ({answer}); take another --seed, or leave "
            "--enhancer out to sample the prompt as it is"
        )
    typer.echo(f"prompt: {answer.prompt}")
    typer.echo(f"intent: {verdict(drift_of(opened, wish, answer))}")
    return answer.prompt


def recipe_for_sample(run: Path | None, model: str | None) -> Recipe:
    """Return the settings to sample with: the run's own, else the defaults."""
    from rlvid.config import ModelConfig, Recipe
    from rlvid.config.loader import load_recipe

    if run is not None:
        return load_recipe(run / "recipe.yaml")
    return Recipe(name="sample", model=ModelConfig(path=model) if model else ModelConfig())


def policy_at(what: str) -> Policy:
    """Return the newest policy of a run folder, or the policy of a pipeline folder."""
    from rlvid.launch.run import artifacts_of
    from rlvid.models.policy import Policy

    if (Path(what) / "recipe.yaml").is_file():
        return artifacts_of(Path(what)).policy
    return Policy(model_path=what)
