"""Held-out prompts as the user wrote them and rewritten, from the same noise.

A prompt whose rewrite is malformed is rendered as it was written, which is what whoever uses the
rewriter would see, and is counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvid.config import Recipe
from rlvid.config.enhancement import PromptEnhancementConfig
from rlvid.enhancement.answer import Enhanced, with_enhancement
from rlvid.enhancement.intent import Drift, intent_drift
from rlvid.enhancement.lexicon import Lexicon
from rlvid.enhancement.rewriter import Rewrite, rewrite_seed
from rlvid.launch.heldout import Measurement, measure
from rlvid.launch.roles import SamplingRoles
from rlvid.records import Prompt

Rewriting = Callable[[Sequence[Prompt], Sequence[Sequence[int]]], Sequence[Sequence[Rewrite]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutRewrite:
    """One held-out prompt and what became of it."""

    prompt: Prompt
    """With the enhanced text, where there is one."""
    failure: str | None
    """Of a malformed answer."""
    drift: Drift | None
    """None where the answer is malformed."""

    def to_json(self) -> dict[str, Any]:
        drift = self.drift
        return {
            "text": self.prompt.text,
            "enhanced_text": self.prompt.enhanced_text,
            "failure": self.failure,
            "dropped": [str(item) for item in drift.dropped] if drift else [],
            "contradicted": [str(item.wanted) for item in drift.contradicted] if drift else [],
        }


def rewrite_heldout(
    prompts: Sequence[Prompt],
    rewriting: Rewriting,
    lexicon: Lexicon,
    config: PromptEnhancementConfig,
) -> list[HeldoutRewrite]:
    """Return one rewrite of each prompt, from seeds that no recipe moves."""
    seeds = [[rewrite_seed(0, prompt.prompt_id, 0, 0)] for prompt in prompts]
    found = []
    for prompt, (rewrite,) in zip(prompts, rewriting(prompts, seeds), strict=True):
        answer = rewrite.answer
        if isinstance(answer, Enhanced):
            kinds = config.reward.intent.kinds
            drift = intent_drift(prompt, answer.prompt, lexicon, kinds)
            enhanced = with_enhancement(prompt, answer)
            found.append(HeldoutRewrite(prompt=enhanced, failure=None, drift=drift))
        else:
            failure = answer.failure.value
            found.append(HeldoutRewrite(prompt=prompt, failure=failure, drift=None))
    return found


@dataclass(slots=True)
class HeldoutMeasurement:
    """Measures the rewriter now and then against the prompts as they were written."""

    recipe: Recipe
    roles: SamplingRoles
    prompts: tuple[Prompt, ...]
    lexicon: Lexicon
    folder: Path
    _plain: Measurement | None = None
    """The same at every step, since the video model is frozen; taken once in an attempt."""

    def measure(self, rewriting: Rewriting, *, step: int) -> tuple[dict[str, float], str]:
        """Return the metrics after `step` steps, and a table of examples in Markdown."""
        config = self.recipe.prompt_enhancement
        rewrites = rewrite_heldout(self.prompts, rewriting, self.lexicon, config)
        if self._plain is None:
            self._plain = self._sample(self.prompts, f"plain-{step:06d}", step)
        enhanced = self._sample([one.prompt for one in rewrites], f"rewritten-{step:06d}", step)
        tree = [one.to_json() for one in rewrites]
        path = self.folder / f"heldout-{step:06d}.json"
        path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        return self._metrics(self._plain, enhanced, rewrites), examples_table(rewrites)

    def _sample(self, prompts: Sequence[Prompt], label: str, step: int) -> Measurement:
        return measure(
            self.recipe,
            self.roles.run_issues,
            self.roles.ledger,
            prompts,
            label=label,
            num_seeds=1,
            step=step,
        )

    def _metrics(
        self, plain: Measurement, enhanced: Measurement, rewrites: Sequence[HeldoutRewrite]
    ) -> dict[str, float]:
        metrics = enhanced.metrics()
        pairs = sorted(set(plain.rewards) & set(enhanced.rewards))
        if pairs:
            before = sum(plain.rewards[pair] for pair in pairs) / len(pairs)
            after = sum(enhanced.rewards[pair] for pair in pairs) / len(pairs)
            metrics["enhance/heldout_plain/mean"] = before
            metrics["enhance/heldout_gain/mean"] = after - before
        drifts = [one.drift for one in rewrites if one.drift is not None]
        num_drifted = sum(bool(drift.dropped or drift.contradicted) for drift in drifts)
        metrics["enhance/heldout_malformed/frac"] = 1.0 - len(drifts) / len(rewrites)
        metrics["enhance/heldout_drifted/frac"] = num_drifted / max(len(drifts), 1)
        return metrics


def examples_table(rewrites: Sequence[HeldoutRewrite], *, most: int = 12) -> str:
    """Return a table in Markdown: what the user wrote, what was made of it, what was lost."""
    lines = ["| the user's words | rewritten | lost |", "| --- | --- | --- |"]
    for one in rewrites[:most]:
        tree = one.to_json()
        lost = ", ".join([*tree["dropped"], *tree["contradicted"]]) or "nothing"
        made = one.prompt.enhanced_text or f"*malformed: {one.failure}*"
        cells = (one.prompt.text, made, lost if one.drift else "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
