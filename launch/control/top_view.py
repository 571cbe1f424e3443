"""The picture of a live run in a terminal: `RunStatus` in, something rich can print out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rlvid.launch.control.status import OVER, STALE_S, ActorStatus, RunStatus
from rlvid.observability.progress import duration_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

STATE_STYLES = {
    "busy": "green", "running": "bold green", "evaluating": "bold green", "idle": "yellow",
    "starting": "cyan", "draining": "magenta", "done": "bold cyan", "stopped": "bold cyan",
    "failed": "bold red",
}  # fmt: skip
GROUP_STATES = (
    "planned", "leased", "sampled", "scoring", "ready", "claimed", "consumed", "dropped",
)  # fmt: skip
"""Ledger states in the order of a group's life."""
RATES = (
    ("learner idle", "idle/learner/frac", "share"),
    ("actors idle", "idle/rollout/frac", "share"),
    ("step over ideal", "overlap/step/over_ideal", "number"),
    ("reward tail", "reward_pool/exposed_tail/seconds", "seconds"),
    ("learner MFU", "mfu/learner/frac", "share"),
    ("actors MFU", "mfu/rollout/frac", "share"),
    ("decoder MFU", "mfu/decoder/frac", "share"),
    ("in the policy", "ft/ettr/frac", "share"),
    ("lost", "ft/lost/seconds", "duration"),
)
"""Label, metric and how it is shown."""
BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
FULL, EMPTY = "\u2501", "\u2500"
SIDE_BY_SIDE = 110
FIXED_LINES = 20
"""Lines of a wide frame beside the actors."""
OTHER_COLUMNS = 44
"""Width of the actors' table beside what they do."""
SHOWN_ACTORS = 12
"""Actors listed when the terminal's height is not known."""


def render(
    status: RunStatus, age_s: float, *, width: int, height: int | None = None
) -> RenderableType:
    """Return one frame.

    Args:
        age_s: seconds since the driver wrote the status.
        width: columns there are; fewer than `SIDE_BY_SIDE` get one table below the other.
        height: lines there are; decides how many actors and events are listed.
    """
    from rich.console import Group
    from rich.table import Table

    wide = width >= SIDE_BY_SIDE
    taken = FIXED_LINES if wide else 2 * FIXED_LINES
    rows = SHOWN_ACTORS if height is None else max(3, height - taken)
    work = Group(
        learner_line(status), "", actor_table(status, rows, width * 4 // 7 if wide else width)
    )
    rest = Group(scorer_table(status), "", rate_table(status), "", staleness_table(status))
    columns = Table.grid(expand=True, padding=(0, 3))
    if wide:
        columns.add_column(ratio=4)
        columns.add_column(ratio=3)
        columns.add_row(work, rest)
    else:
        columns.add_row(Group(work, "", rest))
    return Group(
        heading(status, age_s),
        progress(status),
        group_line(status),
        "",
        columns,
        "",
        events(status, 5 if height is None else max(2, height // 8)),
    )


def heading(status: RunStatus, age_s: float) -> Text:
    """Return who runs where, and whether it lives."""
    from rich.text import Text

    text = Text()
    text.append(f"{status.run}", style="bold")
    text.append(f"  {status.phase}  ")
    text.append(status.state, style=STATE_STYLES.get(status.state, ""))
    text.append(f"  {status.host} pid {status.pid}", style="dim")
    up_s = status.time_s - status.started_s
    if status.started_s:
        text.append(f"  up {duration_text(up_s)}", style="dim")
    if status.state not in OVER and age_s > STALE_S:
        text.append(f"  no sign of life for {duration_text(age_s)}", style="bold red")
    return text


def progress(status: RunStatus) -> Text:
    """Return the bar of steps with rate and reward."""
    from rich.text import Text

    width = 16
    share = status.step / status.num_steps if status.num_steps else 0.0
    done = round(width * min(1.0, share))
    parts = [
        f"step [bold]{status.step}[/bold]/{status.num_steps}",
        f"[green]{FULL * done}[/green][dim]{EMPTY * (width - done)}[/dim]",
        f"version {status.version}",
        "" if status.step_s is None else f"{status.step_s:.1f} s/step",
        "" if status.videos_per_s is None else f"{status.videos_per_s:.2f} videos/s",
        "" if status.eta_s is None else f"ETA {duration_text(status.eta_s)}",
    ]
    lines = ["  ".join(part for part in parts if part)]
    reward = [
        "" if status.reward_mean is None else f"reward [bold]{status.reward_mean:.3f}[/bold]",
        f"[cyan]{sparkline(status.rewards)}[/cyan]" if status.rewards else "",
        "" if status.heldout_reward is None else f"held-out [bold]{status.heldout_reward:.3f}",
    ]
    lines.append("  ".join(part for part in reward if part))
    return Text.from_markup("\n".join(line for line in lines if line))


def group_line(status: RunStatus) -> Text:
    """Return how many groups are where in their life."""
    from rich.text import Text

    text = Text("groups  ")
    others = sorted(set(status.groups) - set(GROUP_STATES))
    for state in (*GROUP_STATES, *others):
        count = status.groups.get(state, 0)
        text.append(f"{state} ", style="dim")
        text.append(f"{count}   ", style="bold" if count else "dim")
    return text


def learner_line(status: RunStatus) -> Text:
    """Return what the learner does or waits for."""
    from rich.text import Text

    learner = status.learner
    if learner is None:
        return Text("learner  not up", style="dim")
    ranks = f" ({learner.num_ranks} ranks)" if learner.num_ranks > 1 else ""
    text = Text(f"learner{ranks}  ", style="bold")
    text.append(learner.state, style=STATE_STYLES.get(learner.state, ""))
    if learner.doing:
        text.append(f"  {with_verb(learner.state, learner.doing)}")
    text.append(f"  {learner.since_s:.1f} s", style="dim")
    return text


def actor_table(status: RunStatus, rows: int, width: int) -> RenderableType:
    """Return the counts by state and the first actors, in `width` columns."""
    from rich.console import Group

    counts = ", ".join(
        f"{count} [{STATE_STYLES.get(state, 'default')}]{state}[/]"
        for state, count in sorted(status.actor_states.items())
        if count
    )
    has, wants = sum(status.actor_states.values()), status.actors_wanted
    wanted = "" if wants in (None, has) else f"  (wanted {wants})"
    table = plain_table(f"rollout actors  {counts}{wanted}")
    table.add_column("actor", style="bold", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=8)
    table.add_column("does, or waits for", overflow="fold")
    table.add_column("for", justify="right", no_wrap=True)
    table.add_column("version", justify="right", no_wrap=True)
    for actor in status.actors[:rows]:
        table.add_row(*actor_row(actor, status.version, max(8, width - OTHER_COLUMNS)))
    hidden = has - len(status.actors[:rows])
    return Group(table, f"[dim]and {hidden} more[/dim]") if hidden > 0 else table


def actor_row(actor: ActorStatus, newest: int, room: int) -> tuple[str, ...]:
    """Return one actor's cells; a version behind the newest says how far."""
    from rich.markup import escape

    version = "" if actor.version is None or actor.version < 0 else str(actor.version)
    if actor.version is not None and 0 <= actor.version < newest:
        version += f" [yellow](-{newest - actor.version})[/yellow]"
    style = STATE_STYLES.get(actor.state, "default")
    doing = with_verb(actor.state, actor.doing)
    if len(doing) > room:
        doing = doing[: room - 1] + "\u2026"
    return (
        escape(actor.actor_id),
        f"[{style}]{escape(actor.state)}[/]",
        escape(doing),
        f"{actor.since_s:.1f} s" if actor.since_s < 600 else f"{actor.since_s / 60:.0f} min",
        version,
    )


def scorer_table(status: RunStatus) -> Table:
    """Return a row a scorer."""
    from rich.text import Text

    table = plain_table("scorers")
    table.add_column("name", style="bold")
    for heading_text in ("replicas", "queue", "p95", "missing"):
        table.add_column(heading_text, justify="right")
    for scorer in status.scorers:
        missing = scorer.missing_frac
        table.add_row(
            Text(scorer.name),
            str(scorer.replicas),
            str(scorer.queue),
            "-" if scorer.p95_s is None else f"{scorer.p95_s:.2f} s",
            "-" if missing is None else f"[{'red' if missing else 'default'}]{missing:.0%}[/]",
        )
    return table


def rate_table(status: RunStatus) -> Table:
    """Return where the time of the last step went."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2), expand=False)
    found = [(label, shown(status.rates.get(name), kind)) for label, name, kind in RATES]
    found.insert(1, ("it waited for", waiting_on(status.rates, "learner")))
    cells = [f"[dim]{label}[/dim] [bold]{value}[/bold]" for label, value in found if value]
    for first in range(0, len(cells), 2):
        table.add_row(*cells[first : first + 2])
    return table


def staleness_table(status: RunStatus) -> Table:
    """Return a bar for each number of versions behind."""
    table = plain_table(f"staleness, at most {status.max_staleness}")
    table.add_column("behind", justify="right")
    table.add_column("groups")
    most = max(status.staleness.values(), default=0)
    for lag, count in sorted(status.staleness.items()):
        bar = FULL * max(1, round(16 * count / most)) if count else ""
        table.add_row(str(lag), f"[cyan]{bar}[/cyan] {count}")
    return table


def events(status: RunStatus, count: int) -> Table:
    """Return the last events, the newest first, each with its age."""
    from rich.text import Text

    table = plain_table("events")
    table.add_column("ago", justify="right", style="dim")
    table.add_column("what", style="bold")
    table.add_column("", overflow="fold")
    for event in reversed(status.events[-count:]):
        ago = duration_text(status.time_s - event.time_s)
        table.add_row(ago, Text(event.kind), Text(event.text))
    if not status.events:
        table.add_row("", "[dim]none[/dim]", "")
    return table


def plain_table(title: str) -> Table:
    from rich.table import Table

    return Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0),
        header_style="dim", show_header=True,
    )  # fmt: skip


def with_verb(state: str, doing: str) -> str:
    """Return what one does, or what it waits for."""
    return f"waits for {doing}" if state == "idle" and doing else doing


def waiting_on(rates: Mapping[str, float | None], role: str) -> str:
    """Return whom the role waited for, the longest first, as "rollout 12 %, rewards 3 %"."""
    prefix = f"idle/{role}/on_"
    found = {
        name.removeprefix(prefix).removesuffix("_frac"): value
        for name, value in rates.items()
        if name.startswith(prefix) and value is not None and value >= 0.005
    }
    longest = sorted(found.items(), key=lambda item: -item[1])
    return ", ".join(f"{on} {value:.0%}" for on, value in longest)


def shown(value: float | None, kind: str) -> str:
    """Return the value as text; "" when there is none."""
    if value is None or not math.isfinite(value):
        return ""
    if kind == "share":
        return f"{value:.1%}"
    if kind == "duration":
        return duration_text(value)
    return f"{value:.2f} s" if kind == "seconds" else f"{value:.2f}"


def sparkline(values: Sequence[float | None], width: int = 32) -> str:
    """Return the last values as a row of blocks; a missing one is a gap."""
    last = values[-width:]
    finite = finite_of(last)
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    span = high - low or 1.0
    return "".join(
        " " if value is None or not math.isfinite(value)
        else BLOCKS[round((len(BLOCKS) - 1) * (value - low) / span)]
        for value in last
    )  # fmt: skip


def finite_of(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
