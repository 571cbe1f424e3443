"""Memory of one process of each role, an estimate by what it is for.

P parameters, T trainable ones, b bytes a number of `model.dtype`, c bytes of a trained one: b, or 4
of a LoRA, which is float32 on every base.

- A frozen copy takes P b; an actor that is published to holds a spare copy besides, T c.
- Training state is 4 T (gradients) + 8 T (Adam) + 4 T (EMA), and from stage 1 on 4 T (DeepSpeed's
  float32 master, of float32 parameters too). ZeRO 1 divides Adam and master by the ranks, 2 also
  the gradients, 3 also the parameters; the average is divided in every stage, whole parameters
  going to one rank each (`learners/ema.py`).
- From stage 1 on gradients go to other ranks by a bucket of T numbers, at most
  `MAX_BUCKET_ELEMENTS` of `learners/zero_settings.py`, allocated whole in the first backward and
  there with a single rank too: of c bytes, at stage 1 of 4, where the sum itself is staged
  (DeepSpeed's `setup_buckets`).
- Of a rank with a GPU this is the GPU's memory, and what `learner.offload` moves is not in it: Adam
  and master, at stage 3 the gradients (DeepSpeed keeps those of stages 1 and 2 on the GPU up to the
  step), and parameters but for those gathered at a time; `launch/host_memory.py` has them. On a
  rank without a GPU all of it stays.
- Activations: `launch/activations.py`. Decoding: `rlvid/observability/vae_flops.py`, small clips of
  a group together. Scorers: `launch/scorer_memory.py`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rlvid.config import LearnerConfig, OfflineDpoConfig, Recipe
from rlvid.config.distillation import DMD_STAGES
from rlvid.config.enhancement import RewriterConfig
from rlvid.config.rewards import ServerConfig
from rlvid.launch.activations import activation_bytes, bytes_of, denoising_bytes
from rlvid.launch.folder_parts import count_parameters, tensor_shapes
from rlvid.launch.model_size import ModelSize

if TYPE_CHECKING:
    from rlvid.records import StepPlan

LIVE_NUMBERS = 1e9
"""Parameters whole at a time on a rank of ZeRO 3, at most (DeepSpeed's default)."""
SAMPLED_PLANS = 16
"""Step plans drawn to find the one with most rows."""
MIB = 2**20
SMOLLM2_PARAMETERS = 134.5e6
"""Of SmolLM2-135M-Instruct, input and output embeddings being one."""
_NOMINAL = re.compile(r"(\d+(?:\.\d+)?)b(?![a-z])", re.IGNORECASE)


def branches(guidance_scale: float) -> int:
    """Return how often the transformer sees a latent."""
    return 1 if guidance_scale == 1.0 else 2


def engine_guidance(recipe: Recipe) -> float:
    return recipe.data_engine.guidance_scale or recipe.rollout.guidance_scale


def enhancement_guidance(recipe: Recipe) -> float:
    return recipe.prompt_enhancement.guidance_scale or recipe.rollout.guidance_scale


def evaluate_guidance(recipe: Recipe) -> float:
    return recipe.evaluate.guidance_scale or recipe.rollout.guidance_scale


def group_rows(recipe: Recipe) -> tuple[int, int]:
    """Return the most clips of a group, and the most rows an actor forwards at once.

    Of the phase that needs most: all clips of a prompt are denoised together.
    """
    rollout, engine, evaluate = recipe.rollout, recipe.data_engine, recipe.evaluate
    enhancement = recipe.prompt_enhancement
    probed = 0 if engine.weakness.given else engine.weakness.seeds_per_prompt
    groups = {
        "grpo": (rollout.group_size, rollout.guidance_scale),
        "data_engine": (max(engine.clips_per_prompt, probed), engine_guidance(recipe)),
        "prompt_enhancement": (enhancement.clips_per_rewrite, enhancement_guidance(recipe)),
        "evaluate": (evaluate.seeds_per_prompt, evaluate_guidance(recipe)),
    }
    here = [groups[phase] for phase in groups if phase in recipe.phases]
    return max(clips for clips, _ in here), max(c * branches(scale) for c, scale in here)


def actor_memory(recipe: Recipe, size: ModelSize) -> dict[str, float]:
    """Return MiB of one process of a rollout actor by what it is for.

    Of several that share clips it is the one that leads; the others hold the transformer alone.
    """
    width = bytes_of(recipe)
    texts = text_encoder_bytes(recipe, size)
    frozen = (size.transformer_parameters + size.vae_parameters) * width
    _, rows = group_rows(recipe)
    alive = denoising_bytes(recipe, size, rows, ranks=recipe.rollout.sequence_parallel)
    published = size.trainable_parameters if "grpo" in recipe.phases else 0
    spare = published * trained_width(recipe, recipe.learner)
    adapter = spare if recipe.learner.mode == "lora" else 0.0
    return {
        "weights": (frozen + texts + adapter) / MIB,
        "spare copy": spare / MIB,
        "activations": alive / MIB,
    }


def text_encoder_bytes(recipe: Recipe, size: ModelSize) -> float:
    """Return the bytes of the text encoders where the transformer is: 0 if they are in RAM."""
    return (
        0.0 if texts_are_apart(recipe) else float(size.text_encoder_parameters * bytes_of(recipe))
    )


def texts_are_apart(recipe: Recipe) -> bool:
    """Return whether text encoders are in RAM, wherever the model computes."""
    return recipe.model.text_encoder_device == "cpu"


def decoder_memory(recipe: Recipe, size: ModelSize) -> dict[str, float]:
    """Return MiB of the process that turns latents into pixels, a group's as floats included."""
    from rlvid.models.video_vae import PIXELS_AT_ONCE

    num_clips, _ = group_rows(recipe)
    together = min(num_clips, max(1, PIXELS_AT_ONCE * 3 // size.clip_numbers))
    return {
        "weights": size.vae_parameters * 4 / MIB,
        "decoding": together * size.decode_bytes / MIB,
        "clips": num_clips * size.clip_numbers * 4 / MIB,
    }


def server_memory(server: ServerConfig) -> dict[str, float]:
    """Return MiB of a model server's weights; what it keeps of requests comes on top.

    They are as large as the files in its folder, or, while that is not here, 2 bytes for each
    parameter that the folder's name speaks of.
    """
    from rlvid.rewards.vllm.command import server_folder

    folder = server_folder(server)
    if folder.is_dir():
        return {"weights": sum(f.stat().st_size for f in folder.glob("*.safetensors")) / MIB}
    return {"weights": 2 * (server_parameters(server) or 0.0) / MIB}


def server_parameters(server: ServerConfig) -> float | None:
    """Return the parameters of a server's model; of a folder that is not here those in its name.

    "Qwen2.5-VL-7B-Instruct" says 7 billion; None where the name says nothing.
    """
    from rlvid.rewards.vllm.command import server_folder

    folder = server_folder(server)
    if folder.is_dir() and not server.urls:
        return float(count_parameters(dict(tensor_shapes(folder))))
    return nominal_parameters(folder.name)


def nominal_parameters(name: str) -> float | None:
    """Return the parameters that the name of a model's folder speaks of, None where it does not."""
    nominal = _NOMINAL.search(name)
    return float(nominal.group(1)) * 1e9 if nominal else None


def learner_memory(recipe: Recipe, size: ModelSize) -> dict[str, float]:
    """Return MiB of one learner rank of the RL phase by what it is for."""
    learner = recipe.learner
    memory = _training_state(recipe, learner, size)
    held = recipe.algorithm.held_policies
    copies = sum(_is_whole_copy(name, learner) for name in held)
    memory["weights"] += copies * size.transformer_parameters * bytes_of(recipe) / MIB
    if "old" in held:
        memory["EMA"] += 4 * size.trainable_parameters / learner.num_ranks / MIB
    most, guided = _rows_together(recipe), branches(recipe.rollout.guidance_scale)
    if recipe.algorithm.is_forward:
        most, guided = recipe.rollout.group_size * recipe.algorithm.forward.num_noise_levels, 1
    rows = guided * max(1, min(learner.micro_batch_rows, most))
    if recipe.algorithm.use == "refl":  # what decoder and reward keep is not known, and left out
        rows *= recipe.algorithm.refl.num_gradient_steps
    return {**memory, "activations": activation_bytes(recipe, size, learner, rows) / MIB}


def _rows_together(recipe: Recipe) -> int:
    """Return the rows of a group that one forward may take: of one trained step, or of all.

    Rollouts that are at one state share a row. Plans differ from step to step; the most of some.
    """
    size = recipe.rollout.group_size
    if recipe.algorithm.use == "refl":
        return size
    most = 0
    for step in range(SAMPLED_PLANS):
        drawn = plan_to_count(recipe, prompt_id="memory", step=step)
        rows = [drawn.num_starts(j, size) for j in drawn.trained_steps]
        most = max([most, *rows, sum(rows) * (recipe.learner.replay != "as_sampled")])
    return most


def plan_to_count(recipe: Recipe, *, prompt_id: str, step: int) -> StepPlan:
    """Return the step plan of a prompt, on noise levels of which only the number counts."""
    from rlvid.flow.sigmas import shifted_sigmas
    from rlvid.flow.step_plans import make_step_plan

    config = recipe.rollout
    levels = shifted_sigmas(config.num_denoising_steps, 1.0)
    return make_step_plan(
        config, recipe_seed=recipe.seed, prompt_id=prompt_id, step=step, sigmas=levels
    )


def _is_whole_copy(held: str, learner: LearnerConfig) -> bool:
    """Return whether a policy that the learner compares with takes a transformer of its own.

    Of a LoRA run the reference is the base, and the old policy shares it where it is not sharded.
    """
    if learner.mode == "full" or held == "anchor":
        return True
    return held == "old" and learner.zero_stage == 3


def sft_memory(recipe: Recipe, size: ModelSize) -> dict[str, float]:
    """Return MiB of one learner rank of phase sft by what it is for; it has the VAE as well."""
    learner = recipe.sft.learner
    memory = _training_state(recipe, learner, size)
    memory["weights"] += size.vae_parameters * 4 / MIB
    rows = min(learner.micro_batch_rows, sft_rows(recipe) // learner.data_parallel)
    return {**memory, "activations": activation_bytes(recipe, size, learner, rows) / MIB}


def dpo_memory(recipe: Recipe, size: ModelSize) -> dict[str, float]:
    """Return MiB of one learner rank of phase dpo by what it is for, the VAE included.

    A pair is a forward by itself, all its noise levels in one. The reference of a LoRA is the base.
    """
    config, learner = recipe.dpo, recipe.dpo.learner
    memory = _training_state(recipe, learner, size)
    memory["weights"] += size.vae_parameters * 4 / MIB
    if _is_whole_copy("reference", learner):
        memory["weights"] += size.transformer_parameters * bytes_of(recipe) / MIB
    rows = dpo_forward_rows(config)
    return {**memory, "activations": activation_bytes(recipe, size, learner, rows) / MIB}


def dpo_forward_rows(config: OfflineDpoConfig) -> int:
    """Return the rows of one forward of phase dpo: noise levels of one pair, two rows each."""
    return 2 * min(config.learner.micro_batch_rows // 2, config.forward.num_noise_levels)


def dpo_pairs(config: OfflineDpoConfig) -> int:
    """Return the pairs of a step over all ranks, those that only fill up the last rank too."""
    ranks = config.learner.data_parallel
    return math.ceil(config.batch_size / ranks) * ranks


def distillation_memory(recipe: Recipe, size: ModelSize) -> dict[str, float]:
    """Return MiB of one rank of phase distillation, in the stage that needs most.

    Distribution matching trains student and fake score, beside the teacher, which every rank holds
    whole; the regression of a causal student holds a frozen copy, consistency one more and an
    average. A roll-out keeps one forward of the whole clip for its backward.
    """
    config, learner = recipe.distillation, recipe.distillation.learner
    stages = [getattr(config, stage) for stage in config.stages]
    learner = learner.model_copy(
        update={"ema": next((stage.ema for stage in stages if stage.ema), None)}
    )
    memory = _training_state(recipe, learner, size)
    transformer = size.transformer_parameters * bytes_of(recipe) / MIB
    third = 0.0
    if set(DMD_STAGES) & set(config.stages):
        third = _held_numbers(learner, size.transformer_parameters) * bytes_of(recipe) / MIB
        for part in ("gradients", "gradient bucket", "optimiser"):  # two engines
            memory[part] *= 2
    if "causal_init" in config.stages and config.causal_init.method == "consistency":
        third = transformer
        memory["EMA"] += 4 * size.trainable_parameters / learner.num_ranks / MIB
    memory["weights"] += transformer + third + size.vae_parameters * 4 / MIB
    most = max(stage.batch_size for stage in stages)
    rows = min(learner.micro_batch_rows, math.ceil(most / learner.num_ranks))
    return {**memory, "activations": activation_bytes(recipe, size, learner, rows) / MIB}


def enhancer_memory(recipe: Recipe) -> dict[str, float]:
    """Return MiB of one rank of phase prompt_enhancement, adapter and activations aside."""
    config = recipe.prompt_enhancement
    parameters = rewriter_parameters(config.rewriter)
    width = 2 if config.rewriter.dtype == "bfloat16" else 4
    memory = {"weights": parameters * width / MIB}
    if config.learner.mode == "full":
        stage, ranks = config.learner.zero_stage, config.learner.num_ranks
        over = {least: ranks if stage >= least else 1 for least in (1, 2)}
        master = 4 if stage else 0
        memory["gradients"] = 4 * parameters / over[2] / MIB
        if not is_optimizer_offloaded(config.learner):
            memory["optimiser"] = (8 + master) * parameters / over[1] / MIB
        if config.algorithm.kl_coefficient:
            memory["reference"] = parameters * width / MIB
    return memory


def rewriter_parameters(config: RewriterConfig) -> float:
    """Return the parameters of the language model; of a folder that is not here, 0."""
    if config.model == "smollm2":
        return SMOLLM2_PARAMETERS
    folder = Path(config.model).expanduser()
    is_there = any(folder.glob("*.safetensors"))
    return float(count_parameters(dict(tensor_shapes(folder)))) if is_there else 0.0


def sft_rows(recipe: Recipe) -> int:
    """Return the rows of a step over all ranks, those included that only fill up the last rank."""
    sft = recipe.sft
    wanted = sft.batch_size + (sft.anchor.batch_size if sft.anchor.beta else 0)
    ranks = sft.learner.data_parallel
    return math.ceil(wanted / ranks) * ranks


def trained_width(recipe: Recipe, learner: LearnerConfig) -> int:
    """Return bytes a trained number."""
    return 4 if learner.mode == "lora" else bytes_of(recipe)


def _training_state(recipe: Recipe, learner: LearnerConfig, size: ModelSize) -> dict[str, float]:
    """Return MiB of weights, gradients, optimiser and average of one rank."""
    width, trainable = bytes_of(recipe), size.trainable_parameters
    over = {stage: learner.num_ranks if learner.zero_stage >= stage else 1 for stage in (1, 2)}
    master = 4 if learner.zero_stage else 0
    gradients, optimiser = 4 * trainable / over[2], (8 + master) * trainable / over[1]
    if is_optimizer_offloaded(learner):
        gradients, optimiser = 0.0 if learner.zero_stage == 3 else gradients, 0.0
    elif learner.offload is not None and learner.offload.optimizer == "disk":
        optimiser = 0.0
    held = _held_numbers(learner, size.transformer_parameters) * width
    adapter = 4 * trainable if learner.mode == "lora" else 0
    return {
        "weights": (held + adapter + text_encoder_bytes(recipe, size)) / MIB,
        "gradients": gradients / MIB,
        "gradient bucket": bucket_bytes(recipe, learner, trainable) / MIB,
        "optimiser": optimiser / MIB,
        "EMA": (4 * trainable / learner.num_ranks if learner.ema else 0) / MIB,
    }


def bucket_bytes(recipe: Recipe, learner: LearnerConfig, trainable: float) -> float:
    """Return the bytes of the buffer in which gradients go to other ranks."""
    from rlvid.learners.zero_settings import MAX_BUCKET_ELEMENTS

    if not learner.zero_stage:
        return 0.0
    width = 4 if learner.zero_stage == 1 else trained_width(recipe, learner)
    return min(MAX_BUCKET_ELEMENTS, trainable) * width


def _held_numbers(learner: LearnerConfig, parameters: float) -> float:
    """Return how many of a trained transformer's parameters lie in a rank's memory, its GPU's if
    it has one."""
    if learner.zero_stage < 3:
        return parameters
    if learner.num_gpus and learner.offload is not None and learner.offload.parameters == "cpu":
        return min(parameters, LIVE_NUMBERS)
    return parameters / learner.num_ranks


def is_optimizer_offloaded(learner: LearnerConfig) -> bool:
    """Return whether the optimiser's state is in another memory than the one planned."""
    offload = learner.offload
    return bool(learner.num_gpus) and offload is not None and offload.optimizer != "none"
