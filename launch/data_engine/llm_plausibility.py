"""A language model as the judge of whether a written prompt could be filmed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlvid.data.engine.plausibility import Plausible
from rlvid.launch.data_engine.llm_client import Form, LlmClient
from rlvid.launch.data_engine.templates_file import render
from rlvid.rewards.judges.client import JudgeAnswerError

ANSWERS = {"yes": True, "no": False}


def llm_plausibility(client: LlmClient) -> Plausible:
    """Return a judge that asks the model yes or no about each prompt, once.

    The first attempt takes the likeliest answer; a broken one would come back the same, so the
    attempts after it are drawn. A prompt without a readable answer is judged None, and asked about
    again should it be written again.
    """
    form = Form(
        kind="plausible",
        key="plausible",
        schema={"type": "string", "enum": list(ANSWERS)},
        read=read_yes_no,
        temperature=0.0,
    )
    known: dict[str, bool] = {}

    def judge(texts: Sequence[str]) -> Sequence[bool | None]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        answers = client.ask([render(client.templates.plausible, prompt=t) for t in new], form)
        for text, answer in zip(new, answers, strict=True):
            if answer is not None:
                known[text] = answer
        return [known.get(text) for text in texts]

    return judge


def read_yes_no(found: Any) -> bool:
    """Return what the word says.

    Raises:
        JudgeAnswerError: it is neither of the two words; a word like them is no answer.
    """
    if not isinstance(found, str) or found not in ANSWERS:
        raise JudgeAnswerError(f"expected 'yes' or 'no', got {str(found)[:120]!r}")
    return ANSWERS[found]
