"""Has a trained enhancer rewrite prompts for use, in a process of its own.

The driver holds no model. What comes back carries the user's words beside the rewrite; a prompt
whose rewrite is malformed keeps the user's words alone, and is counted by what was wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayTaskError

from rlvid.config import Recipe
from rlvid.enhancement.folder import load_enhancer
from rlvid.ray_errors import cause_of
from rlvid.records import Prompt

NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPrompts:
    """What the video model is shown, and how the rewriting went."""

    prompts: tuple[Prompt, ...]
    failures: Mapping[str, int] = field(default_factory=dict)
    """Name of a `Failure` to the number of prompts."""
    num_drifted: int = 0
    """Rewrites that lost a wish of the user's or contradict one."""
    enhancer: str | None = None
    """Its folder; None where nothing was to be rewritten."""

    @property
    def num_rewritten(self) -> int:
        return sum(prompt.enhanced_text is not None for prompt in self.prompts)

    def to_json(self) -> dict[str, Any]:
        """Return it as evaluation.json has it; nothing where nothing was to be rewritten."""
        if self.enhancer is None:
            return {}
        return {
            "enhanced": {
                "enhancer": self.enhancer,
                "prompts": len(self.prompts),
                "rewritten": self.num_rewritten,
                "malformed": dict(self.failures),
                "drifted": self.num_drifted,
            }
        }

    def lines(self) -> list[str]:
        """Return what to tell whoever watches."""
        if self.enhancer is None:
            return []
        failed = ", ".join(f"{n} {kind}" for kind, n in sorted(self.failures.items()))
        return [
            f"rewrote {self.num_rewritten} of {len(self.prompts)} prompts"
            + (f" (as written: {failed})" if failed else "")
            + f"; {self.num_drifted} rewrites lost a wish of the user's"
        ]


def enhanced_prompts(recipe: Recipe, prompts: Sequence[Prompt]) -> ShownPrompts:
    """Return the prompts as `evaluate.enhance` wants them shown; needs Ray.

    Raises:
        ValueError: no enhancer there; or it took longer than `evaluate.enhance_deadline_s`.
    """
    if recipe.evaluate.enhance == NONE:
        return ShownPrompts(prompts=tuple(prompts))
    return rewritten_prompts(recipe, Path(recipe.evaluate.enhance), prompts)


def rewritten_prompts(recipe: Recipe, enhancer: Path, prompts: Sequence[Prompt]) -> ShownPrompts:
    """Return the prompts with the enhancer's rewrites beside them; needs Ray.

    Raises:
        ValueError: no enhancer there; or it took longer than `evaluate.enhance_deadline_s`.
    """
    evaluate, folder = recipe.evaluate, enhancer.expanduser().resolve()
    task = ray.remote(num_cpus=0, max_retries=0)(rewrite_with)
    rewriting = task.remote(folder, tuple(prompts), recipe.cluster.threads_per_role)
    try:
        found: ShownPrompts = ray.get(rewriting, timeout=evaluate.enhance_deadline_s)
    except RayTaskError as error:
        raise cause_of(error) from error
    except GetTimeoutError as error:
        ray.cancel(rewriting, force=True)
        raise ValueError(
            f"evaluate.enhance_deadline_s: rewriting {len(prompts)} prompts took longer than "
            f"{evaluate.enhance_deadline_s:g} s; raise it"
        ) from error
    return found


def rewrite_with(folder: Path, prompts: Sequence[Prompt], num_threads: int) -> ShownPrompts:
    """Return the prompts with one rewrite each, by seeds that depend on the prompts alone."""
    torch.set_num_threads(num_threads)
    enhancer = load_enhancer(folder)
    found = enhancer.rewriter.enhance(prompts, seed=0)
    drifts = [enhancer.drift(p) for p in found.prompts if p.enhanced_text is not None]
    return ShownPrompts(
        prompts=found.prompts,
        failures=found.failures,
        num_drifted=sum(bool(drift.dropped or drift.contradicted) for drift in drifts),
        enhancer=str(folder),
    )
