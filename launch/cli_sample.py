"""The command `rlvid sample`: one prompt to one clip, whole or as a stream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvid.launch.cli_policies import policy_at

if TYPE_CHECKING:
    from torch import Tensor

    from rlvid.config import Recipe
    from rlvid.config.inference import InferenceConfig
    from rlvid.models.policy import Policy

PromptArgument = Annotated[str, typer.Argument(help="What the clip should show.")]
ModelOption = Annotated[
    str | None, typer.Option(help="Pipeline folder; the tiny model when left out.")
]
UseOption = Annotated[
    str | None, typer.Option(help="With --model: its family, as model.use; wan when left out.")
]
RunOption = Annotated[
    Path | None, typer.Option(help="Run folder: its newest policy and its settings.")
]
OutOption = Annotated[Path, typer.Option(help="The file to write.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the initial noise.")]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Denoising steps; the recipe's when left out.")
]
GuidanceOption = Annotated[
    float | None, typer.Option(min=1.0, help="Guidance scale; the recipe's when left out.")
]
FirstFrameOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Picture that the clip begins with, png or jpeg."),
]
LastFrameOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Picture that the clip ends with.")
]
ControlOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Clip that the clip follows, mp4 of as many frames: depth, edges, pose.",
    ),
]
EnhancerOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Rewrite the prompt first, by this enhancer or run (`enhance`)."
    ),
]
InferenceOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Setting that `rlvid optimise` wrote: optimised.json."),
]
StreamOption = Annotated[
    bool, typer.Option("--stream", help="Write frames as a causal student makes them.")
]
FramesOption = Annotated[
    int | None,
    typer.Option(min=1, help="With --stream: frames in all, the model's when left out."),
]
WindowOption = Annotated[
    int | None,
    typer.Option(min=1, help="With --stream: blocks in sight, the trained length at most."),
]
SinksOption = Annotated[
    int | None,
    typer.Option(min=0, help="With --stream: first blocks that stay in sight; 1."),
]


def sample(
    prompt: PromptArgument,
    model: ModelOption = None,
    use: UseOption = None,
    run: RunOption = None,
    out: OutOption = Path("sample.mp4"),
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    first_frame: FirstFrameOption = None,
    last_frame: LastFrameOption = None,
    control: ControlOption = None,
    enhancer: EnhancerOption = None,
    inference: InferenceOption = None,
    stream: StreamOption = False,
    frames: FramesOption = None,
    window: WindowOption = None,
    sinks: SinksOption = None,
) -> None:
    """Sample one clip, the same for the same seed, and write it as mp4."""
    if model is not None and run is not None:
        raise ValueError("sample: --model and --run name two policies; give one of them")
    if use is not None and model is None:
        raise ValueError("sample: --use names the family of --model, which is left out; give both")
    if not prompt.strip():
        raise ValueError("sample: the prompt is empty; say what the clip should show")
    if not stream and (frames or window or sinks is not None):
        raise ValueError("sample: --frames, --window and --sinks are of --stream; add it")
    recipe = recipe_for_sample(run, model, use)
    policy = policy_at(str(run or model or recipe.model.path))
    if policy.sampling is not None and (steps or guidance):
        raise ValueError(
            "sample: the policy is a distilled student with levels of its own and no guidance; "
            "leave --steps and --guidance out"
        )
    given = {"first_frame": first_frame, "last_frame": last_frame, "control": control}
    media = {name: str(path) for name, path in given.items() if path is not None}
    if media and policy.sampling is not None:
        raise ValueError(
            "sample: the policy is a distilled student, which is told a text alone; leave "
            "--first-frame, --last-frame and --control out"
        )
    setting = None if inference is None else inference_for_sample(inference, policy)
    text = prompt if enhancer is None else rewritten(prompt, enhancer, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    if stream:
        write_stream(
            out,
            text,
            policy,
            recipe,
            seed,
            num_frames=frames,
            window=window,
            sinks=sinks,
            inference=setting,
        )
        return
    clip = one_clip(
        text,
        policy,
        recipe,
        seed,
        steps=steps,
        guidance=guidance,
        inference=setting,
        media=media,
    )
    write_clip(out, clip, recipe.model.fps)


def one_clip(
    text: str,
    policy: Policy,
    recipe: Recipe,
    seed: int,
    *,
    steps: int | None,
    guidance: float | None,
    inference: InferenceConfig | None = None,
    media: Mapping[str, str] | None = None,
) -> Tensor:
    """Return a clip [T, 3, H, W]: of a student at its own levels, else by the ODE sampler."""
    from rlvid.data.prompts import with_media
    from rlvid.launch.sample import sample_clip, sample_student
    from rlvid.records import Prompt
    from rlvid.seeds import prompt_id

    if policy.sampling is not None:
        return sample_student(text, policy, recipe.model, seed=seed, inference=inference)
    evaluate = recipe.evaluate
    prompt = Prompt(prompt_id=prompt_id(text), text=text)
    return sample_clip(
        with_media(prompt, dict(media or {}), where="sample", folder=Path()),
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
        ValueError: the policy is a student, and the setting changes its latents.
    """
    from rlvid.config.inference_files import load_inference
    from rlvid.launch.sample import check_student_inference

    setting = load_inference(path)
    if policy.sampling is not None:
        check_student_inference(setting)
    typer.echo(f"inference: {setting.describe()}")
    return setting


def write_clip(out: Path, clip: Tensor, fps: int) -> None:
    """Write a clip [T, 3, H, W] and say what it is."""
    from rlvid.data.video_files import write_mp4

    write_mp4(out, clip, fps)
    num_frames, _, height, width = clip.shape
    typer.echo(f"{out}: {num_frames} frames of {width}x{height} at {fps} fps")


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
    inference: InferenceConfig | None,
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
        inference=inference,
    )
    written, elapsed_s = 0, 0.0
    with Mp4Writer(out, recipe.model.fps, is_live=True) as writer:
        for part in streamed:
            if not written:
                typer.echo(f"first {len(part.frames)} frames after {part.elapsed_s:.3f} s")
            writer.write(part.frames)
            written, elapsed_s = written + len(part.frames), part.elapsed_s
    typer.echo(f"{out}: {written} frames in {elapsed_s:.2f} s, {written / elapsed_s:.1f} a second")


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


def recipe_for_sample(run: Path | None, model: str | None, use: str | None = None) -> Recipe:
    """Return the settings to sample with: the run's own, else the defaults."""
    from rlvid.config import ModelConfig, Recipe
    from rlvid.config.loader import load_recipe

    if run is not None:
        return load_recipe(run / "recipe.yaml")
    given = {"path": model, "use": use}
    chosen = ModelConfig.model_validate({name: value for name, value in given.items() if value})
    return Recipe(name="sample", model=chosen)


def add_sample_command(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        epilog='Examples: rlvid sample "a red ball falls" | '
        'rlvid sample "a red ball falls" --run runs/quickstart_cpu --seed 3 --out after.mp4 | '
        'rlvid sample "a red ball falls" --inference runs/quickstart_cpu-optimise/optimised.json | '
        'rlvid sample "a red ball falls" --run runs/distillation_tiny_cpu --stream --frames 65'
    )(sample)
