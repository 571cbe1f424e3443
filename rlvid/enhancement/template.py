"""What the rewriter is told: YAML with Jinja, shipped or the user's own, made into tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from rlvid.config.enhancement import LengthConfig
from rlvid.config.shipped_file import ShippedFile, check_templates, read_shipped, render_template

FOLDER = Path(__file__).parent / "templates"
WHERE = "prompt_enhancement.rewriter.template"


class RewriterTemplate(ShippedFile):
    """The messages of a chat, and one text for models that know no chat."""

    system: str = ""
    """"" sends none, for chat templates that take no system message."""
    user: str
    plain: str = ""
    answer_start: str = ""
    """Written for the model, so that it need not find the form by itself (RePrompt's code does the
    same); part of the answer that is read, and no part of what is trained."""


def load_template(name: str) -> RewriterTemplate:
    """Read a file by its path, or one of those that ship by its name.

    Raises:
        ValueError: no such file, a key that does not fit, or a template that does not parse.
    """
    found = read_shipped(name, RewriterTemplate, folder=FOLDER, where=WHERE, what="template")
    check_templates(found.system, found.user, found.plain, where=f"{WHERE}: {name}")
    return found


def request_tokens(
    tokenizer: Any, template: RewriterTemplate, text: str, length: LengthConfig
) -> tuple[int, ...]:
    """Return the tokens that ask for a rewrite of `text`, with the start of the answer.

    Args:
        tokenizer: of transformers; its chat template is used where it has one.

    Raises:
        ValueError: the text holds a special token of the model, which would end the user's message
            early; or the template does not fit the model.
    """
    special = [token for token in tokenizer.all_special_tokens if token in text]
    if special:
        raise ValueError(
            f"prompt {text[:80]!r}: holds {special[0]!r}, a special token of the rewriter. Take it "
            "out of the prompt."
        )
    values = {"prompt": text, "min_words": length.min_words, "max_words": length.max_words}
    if tokenizer.chat_template is None:
        if not template.plain:
            raise ValueError(
                f"{WHERE}: {template.name!r} has no `plain` text, and the model has no chat "
                "template: give the template one, or take a model that was taught to chat."
            )
        request = render_template(template.plain, values, where=WHERE)
    else:
        request = _chat(tokenizer, template, values)
    request += template.answer_start
    tokens = tokenizer(request, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
    return tuple(int(token) for token in tokens)


def _chat(tokenizer: Any, template: RewriterTemplate, values: dict[str, Any]) -> str:
    messages = [{"role": "user", "content": render_template(template.user, values, where=WHERE)}]
    if template.system:
        messages.insert(
            0, {"role": "system", "content": render_template(template.system, values, where=WHERE)}
        )
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except jinja2.TemplateError as error:
        raise ValueError(
            f"{WHERE}: the model's chat template refuses the messages of {template.name!r}: "
            f"{error}. If it takes no system message, leave `system` empty and say all in `user`."
        ) from error
