"""What the rewriter is told: YAML with Jinja, shipped or the user's own, made into tokens."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, ValidationError

from rlvid.config.base import Section
from rlvid.config.enhancement import LengthConfig
from rlvid.config.errors import describe_one

FOLDER = Path(__file__).parent / "templates"
WHERE = "prompt_enhancement.rewriter.template"
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True
)


class RewriterTemplate(Section):
    """The messages of a chat, and one text for models that know no chat."""

    name: str
    version: int = Field(ge=1)
    system: str = ""
    """"" sends none, for chat templates that take no system message."""
    user: str
    plain: str = ""
    answer_start: str = ""
    """Written for the model, so that it need not find the form by itself (RePrompt's code does the
    same); part of the answer that is read, and no part of what is trained."""

    @property
    def digest(self) -> str:
        """12 hex digits over the whole file."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def load_template(name: str) -> RewriterTemplate:
    """Read a file by its path, or one of those that ship by its name.

    Raises:
        ValueError: no such file, a key that does not fit, or a template that does not parse.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise ValueError(
            f"{WHERE}: no template {name!r}: expected a path that ends in .yaml, or one of "
            f"{shipped}."
        )
    try:
        found = RewriterTemplate.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        for text in (found.system, found.user, found.plain):
            _ENVIRONMENT.from_string(text)
    except (yaml.YAMLError, jinja2.TemplateSyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{WHERE}: {path}: {error}") from error
    except ValidationError as error:
        line = describe_one(error.errors(include_url=False)[0], RewriterTemplate)
        raise ValueError(f"{WHERE}: {path}: {line}") from error
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
        request = _render(template.plain, values)
    else:
        request = _chat(tokenizer, template, values)
    request += template.answer_start
    tokens = tokenizer(request, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
    return tuple(int(token) for token in tokens)


def _chat(tokenizer: Any, template: RewriterTemplate, values: dict[str, Any]) -> str:
    messages = [{"role": "user", "content": _render(template.user, values)}]
    if template.system:
        messages.insert(0, {"role": "system", "content": _render(template.system, values)})
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except jinja2.TemplateError as error:
        raise ValueError(
            f"{WHERE}: the model's chat template refuses the messages of {template.name!r}: "
            f"{error}. If it takes no system message, leave `system` empty and say all in `user`."
        ) from error


def _render(template: str, values: dict[str, Any]) -> str:
    try:
        return _ENVIRONMENT.from_string(template).render(**values).strip()
    except jinja2.UndefinedError as error:
        raise ValueError(
            f"{WHERE}: {error.message}; a template may use {', '.join(sorted(values))}."
        ) from error
