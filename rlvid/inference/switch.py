"""What every optimisation is: something on a model that can be switched on and off again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Protocol


class Switch(Protocol):
    """One optimisation. Off, the model computes the very bits it computed before."""

    def on(self) -> None:
        """Change the model.

        Raises:
            ValueError: this machine or model cannot; the model is as it was.
        """
        ...

    def off(self) -> None:
        """Undo `on`; called only after it, and in the reverse order of several."""
        ...


def switch_on(switches: Iterable[Switch]) -> None:
    """Switch all on in order, or none when one raises."""
    with ExitStack() as undo:
        for switch in switches:
            switch.on()
            undo.callback(switch.off)
        undo.pop_all()


def switch_off(switches: Sequence[Switch]) -> None:
    """Switch all off, the last one first."""
    for switch in reversed(switches):
        switch.off()
