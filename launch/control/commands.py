"""What may be asked of a live run, and what it answers. An unknown field is an error."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator


class Message(BaseModel):
    """What lies in one file."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class ScaleCommand(Message):
    """Have so many rollout actors and so many replicas of a scorer."""

    kind: Literal["scale"] = "scale"
    id: str = ""
    """Given by `send`; sorts by the time of sending."""
    sender: str = ""
    """host:pid of who asked, for the log."""
    rollouts: int | None = Field(default=None, ge=1, le=65536)
    """Actors wanted; None leaves them."""
    scorers: dict[str, Annotated[int, Field(ge=1, le=4096)]] = {}
    """Scorer to the replicas wanted."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.rollouts is None and not self.scorers:
            raise ValueError("scale: nothing is asked for; give --rollouts N or --scorer NAME=M")
        return self


class DrainCommand(Message):
    """Give nothing new out, commit what is there, write a checkpoint and stop."""

    kind: Literal["drain"] = "drain"
    id: str = ""
    sender: str = ""


Command = ScaleCommand | DrainCommand
"""What the loop finds in its inbox."""


class Answer(Message):
    """What the driver says to one command."""

    id: str
    ok: bool
    message: str


_COMMANDS: TypeAdapter[Command] = TypeAdapter(
    Annotated[ScaleCommand | DrainCommand, Field(discriminator="kind")]
)


def parse_command(text: str) -> Command:
    """Return the command in the text of a file.

    Raises:
        ValueError: it is none; pydantic's error says which field.
    """
    return _COMMANDS.validate_json(text, strict=True)
