"""Writes the prompts P_s of the weak dimensions, filters them, and keeps them in a file.

The file is what a resumed run goes by: a language model would not write the same prompts again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlvid import durable
from rlvid.config.data_engine import EnginePromptsConfig
from rlvid.data.engine.filters import PromptFilter
from rlvid.data.engine.records import Cluster, Weakness, WrittenPrompt
from rlvid.data.engine.writers import PromptWriter

logger = logging.getLogger(__name__)

OVERWRITE = 2
"""Prompts asked for to each one wanted: some will be dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSet:
    """What was written, and how much of it was dropped for which reason."""

    weaknesses: tuple[Weakness, ...]
    prompts: tuple[WrittenPrompt, ...]
    counts: dict[str, dict[str, int]]
    """"base" and "long" form to "kept" and reason to number; "llm" to what it answered badly."""
    dimension_scores: tuple[dict[str, Any], ...] = ()
    """Every dimension on the broad prompts, weakest first; () where the user named them."""

    def metrics(self) -> dict[str, float]:
        """Return the counts by their metrics' names; of the reasons those that occurred."""
        found = {f"data_engine/llm/{k}": float(n) for k, n in self.counts.get("llm", {}).items()}
        for form in ("base", "long"):
            area, counts = f"data_engine/prompts_{form}", dict(self.counts[form])
            found[f"{area}/written"] = float(sum(counts.values()))
            found[f"{area}/kept"] = float(counts.pop("kept"))
            found |= {f"{area}/dropped_{reason}": float(n) for reason, n in counts.items() if n}
        return found

    def save(self, path: Path) -> None:
        text = json.dumps(asdict(self), indent=1) + "\n"
        durable.write_file(path, [text.encode()])

    @classmethod
    def load(cls, path: Path) -> WrittenSet:
        tree = json.loads(path.read_text())
        weaknesses = [
            Weakness(
                **{
                    **row,
                    "seed_prompts": tuple(row["seed_prompts"]),
                    "seed_scores": tuple(row["seed_scores"]),
                    "clusters": tuple(
                        Cluster(**{**c, "words": tuple(c["words"])}) for c in row["clusters"]
                    ),
                }
            )
            for row in tree["weaknesses"]
        ]
        prompts = [
            WrittenPrompt(**{**row, "questions": tuple(row["questions"])})
            for row in tree["prompts"]
        ]
        return cls(
            weaknesses=tuple(weaknesses),
            prompts=tuple(prompts),
            counts=tree["counts"],
            dimension_scores=tuple(tree["dimension_scores"]),
        )


def write_prompts(
    weaknesses: Sequence[Weakness],
    config: EnginePromptsConfig,
    writer: PromptWriter,
    keep_base: PromptFilter,
    keep_long: PromptFilter,
    *,
    on_round: Callable[[int], None] = lambda num_kept: None,
) -> tuple[WrittenPrompt, ...]:
    """Return the prompts that pass, in equal shares of the dimensions, in turn.

    What leaks or repeats shows in the short form, before augmentation; what is too long in the
    other. Each form has a filter and counts of its own.

    Raises:
        ValueError: the writer could not fill the number in `max_rounds`.
    """
    shares = _shares(config.num_prompts, len(weaknesses))
    found: list[list[WrittenPrompt]] = []
    for weakness, share in zip(weaknesses, shares, strict=True):
        kept: list[WrittenPrompt] = []
        for round_ in range(config.max_rounds):
            wanted = share - len(kept)
            if wanted <= 0:
                break
            # Those kept in earlier rounds may be written again, so more than the rest is asked for.
            written = writer.analogies(weakness, len(kept) + wanted * OVERWRITE, round_=round_)
            base = _first(written, wanted, keep_base)
            kept += _finished(weakness, base, writer, keep_long)
            on_round(sum(map(len, found)) + len(kept))
        if len(kept) < share:
            raise ValueError(
                f"data_engine.prompts: {weakness.dimension!r}: {len(kept)} of {share} prompts "
                f"after {config.max_rounds} rounds; short ones: {keep_base.counts.to_json()}, long "
                f"ones: {keep_long.counts.to_json()}. Lower num_prompts, raise max_rounds, or "
                "loosen the filter that drops most."
            )
        found.append(kept)
    longest = max(map(len, found))
    return tuple(row[n] for n in range(longest) for row in found if n < len(row))


def _first(written: Sequence[object], num: int, keep: PromptFilter) -> list[str]:
    """Return the first `num` that pass; what comes behind them is neither judged nor counted."""
    kept: list[str] = []
    place = 0
    while len(kept) < num and place < len(written):
        batch = written[place : place + num - len(kept)]
        place += len(batch)
        kept += keep.keep(batch)
    return kept


def _finished(
    weakness: Weakness, base: Sequence[str], writer: PromptWriter, keep_long: PromptFilter
) -> list[WrittenPrompt]:
    """Return the base prompts in their long form, with questions."""
    long = keep_long.keep(writer.augment(weakness, base))
    asked = writer.questions(weakness, long)
    return [
        WrittenPrompt(
            text=text,
            dimension=weakness.dimension,
            questions=tuple(q.strip() for q in questions if isinstance(q, str) and q.strip()),
        )
        for text, questions in zip(long, asked, strict=True)
    ]


def _shares(total: int, count: int) -> list[int]:
    """Return `count` whole numbers that differ by at most one and sum to `total`."""
    return [total // count + (place < total % count) for place in range(count)]
