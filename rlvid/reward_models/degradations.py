"""Ways to spoil a true clip, so that a pair has a label nobody has to give.

None of them is a breakage of the tiny world: those are what a reward is tested with, and a reward
model is never shown one with a label. The nearest of both lists: uneven_time and freeze_and_jump
(both hold back and hurry, one smoothly), cut and teleport (both jump, one with the whole picture),
patch and vanish (both hide things, one behind foreign pixels), backwards and reversed_gravity (both
may rise where things fall), dust and noise (one stands still, one does not), posterise and blocky.
Letters: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Degrade = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(clip, another clip of the same caption, random numbers) -> spoilt clip; all [T, 3, H, W]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """One way to spoil a clip."""

    spoils: str
    """The part that gets worse; the others count as equal."""
    change: Degrade


def _draw(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


def _draw_int(generator: torch.Generator, low: int, high: int) -> int:
    """Return a number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def posterise(clip: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Leave 3 to 5 levels of each colour."""
    steps = _draw_int(generator, 2, 4)
    return (clip * steps).round() / steps


def halo(clip: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Sharpen until bright and dark rims stand around everything."""
    smooth = functional.avg_pool2d(clip, 3, stride=1, padding=1, count_include_pad=False)
    return clip + _draw(generator, 1.2, 3.0) * (clip - smooth)


def channel_shift(clip: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Print one colour beside the others, by 1 or 2 pixels."""
    channel, axis = _draw_int(generator, 0, 2), _draw_int(generator, 2, 3)
    spoilt = clip.clone()
    shift = _draw_int(generator, 1, 2) * (1 if _draw_int(generator, 0, 1) else -1)
    spoilt[:, channel : channel + 1] = clip[:, channel : channel + 1].roll(shift, dims=axis)
    return spoilt


def vignette(clip: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Darken the corners."""
    height, width = clip.shape[2:]
    rows = torch.linspace(-1.0, 1.0, height)[:, None]
    columns = torch.linspace(-1.0, 1.0, width)[None]
    return clip * (1.0 - _draw(generator, 0.25, 0.5) * (rows**2 + columns**2))


def dust(clip: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Put dark specks on the lens: the same pixels in every frame."""
    specks = torch.rand(clip.shape[2:], generator=generator) < _draw(generator, 0.01, 0.05)
    return torch.where(specks, clip * 0.3, clip)


def cut(clip: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Go on in mid clip with another take, at another moment of it."""
    count = len(clip)
    at = _draw_int(generator, count // 4, 3 * count // 4)
    shift = _draw_int(generator, count // 4, count // 2)
    order = torch.arange(at, count) - shift
    return torch.cat([clip[:at], other[order.clamp(0, count - 1)]])


def ghosting(clip: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Let every frame shine through into the ones after it."""
    keep = _draw(generator, 0.55, 0.8)
    frames = [clip[0]]
    for frame in clip[1:]:
        frames.append(keep * frames[-1] + (1.0 - keep) * frame)
    return torch.stack(frames)


def backwards(clip: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Play from the end to the start."""
    return clip.flip(0)


def patch(clip: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Show, for some frames, another moment of another take in a rectangle."""
    count, _, height, width = clip.shape
    high, wide = (_draw_int(generator, size // 4, size // 2) for size in (height, width))
    top, left = _draw_int(generator, 0, height - high), _draw_int(generator, 0, width - wide)
    first = _draw_int(generator, 1, count // 2)
    last = min(count, first + _draw_int(generator, count // 6, count // 2))
    area = (slice(None), slice(None), slice(top, top + high), slice(left, left + wide))
    spoilt = clip.clone()
    moved = other.roll(_draw_int(generator, count // 4, count // 2), dims=0)
    spoilt[area][first:last] = moved[area][first:last]
    return spoilt


def uneven_time(clip: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Run slow, then fast, or the other way round, smoothly."""
    power = _draw(generator, 1.8, 2.6)
    progress = torch.linspace(0.0, 1.0, len(clip)) ** power
    if _draw_int(generator, 0, 1):
        progress = 1.0 - progress.flip(0)
    return clip[(progress * (len(clip) - 1)).round().long()]


DEGRADATIONS: Mapping[str, Degradation] = {
    "posterise": Degradation(spoils="VQ", change=posterise),
    "halo": Degradation(spoils="VQ", change=halo),
    "channel_shift": Degradation(spoils="VQ", change=channel_shift),
    "vignette": Degradation(spoils="VQ", change=vignette),
    "dust": Degradation(spoils="VQ", change=dust),
    "cut": Degradation(spoils="MQ", change=cut),
    "ghosting": Degradation(spoils="MQ", change=ghosting),
    "backwards": Degradation(spoils="MQ", change=backwards),
    "patch": Degradation(spoils="MQ", change=patch),
    "uneven_time": Degradation(spoils="MQ", change=uneven_time),
}


def degrade(name: str, clip: Tensor, other: Tensor, seed: int) -> Tensor:
    """Return the clip spoilt in one way; [T, 3, H, W] float32 in [0, 1] in and out."""
    generator = torch.Generator().manual_seed(seed)
    return DEGRADATIONS[name].change(clip, other, generator).clamp(0.0, 1.0)


def check_names(names: tuple[str, ...], where: str) -> None:
    """Raise ValueError at a name that is no degradation."""
    for name in names:
        if name not in DEGRADATIONS:
            raise ValueError(
                f"{where}: unknown degradation {name!r}: expected of {', '.join(DEGRADATIONS)}"
            )
