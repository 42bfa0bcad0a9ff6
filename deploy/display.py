"""How a run looks: a live panel while it is followed in a terminal, else one line per change; its wait, its attempts, a plan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.lifecycle import TERMINAL, Status
from service.protocol import Plan
from service.runs import Attempt, Run, Wait

LINE_SECONDS = 3.0
"""At most one line in this time, apart from changes of status and phase."""
COLOURS = {
    Status.SUCCEEDED: "green",
    Status.FAILED: "red",
    Status.CANCELLED: "yellow",
    Status.PAUSED: "yellow",
    Status.RUNNING: "cyan",
}


class Display:
    """`show` a run as often as you like."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._last_line = ""
        self._last_change: object = None
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def show(self, run: Run, note: str = "") -> None:
        """`note`: what the reader should know beside the run, e.g. that the API does not answer."""
        if self._live:
            self._live.update(panel(run, note))
            return
        line, change = one_line(run, note), (run.status, run.attempt, run.phase, note)
        due = change != self._last_change or time.monotonic() >= self._next_line or run.status in TERMINAL
        if line != self._last_line and due:
            self._console.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True, markup=False, highlight=False)
            self._last_line, self._last_change, self._next_line = line, change, time.monotonic() + LINE_SECONDS


def panel(run: Run, note: str = "") -> RenderableType:
    """The run as a panel of a few lines."""
    lines: list[RenderableType] = [Text(run.reason or "")]
    if run.wait is not None:
        lines += [Text(line, style="dim") for line in wait_lines(run.wait)]
    if run.progress is not None:
        progress = run.progress
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(run.phase or ""),
            ProgressBar(total=progress.num_steps, completed=progress.step, width=30),
            f"step {progress.step}/{progress.num_steps}",
            f"epoch {progress.epoch:.1f}/{progress.num_epochs:g}",
            f"ETA {duration(progress.eta_seconds)}",
        )
        lines += [bar, Text(_numbers(run))]
    elif run.phase:
        lines.append(Text(f"{run.phase} ..."))
    if knn := _accuracies(run):
        lines.append(Text(knn))
    lines += [Text(f"warning: {warning}", style="yellow") for warning in run.warnings[-3:]]
    if note:
        lines.append(Text(note, style="yellow"))
    title = Text.assemble((run.name, "bold"), f"  {run.id}  ", (run.status, COLOURS.get(run.status, "")))
    if run.attempt > 1:
        title.append(f"  attempt {run.attempt}")
    return Panel(Group(*lines), title=title, title_align="left", expand=False)


def one_line(run: Run, note: str = "") -> str:
    """The run as one line."""
    parts = [f"{run.status}, attempt {run.attempt}" if run.attempt > 1 else str(run.status)]
    if run.status in TERMINAL or run.progress is None:
        parts.append(run.reason)
    if run.status not in TERMINAL and run.phase:
        parts.append(run.phase)
    if run.progress is not None:
        progress = run.progress
        parts.append(f"epoch {progress.epoch:.1f}/{progress.num_epochs:g} step {progress.step}/{progress.num_steps}")
        if run.status not in TERMINAL:
            parts += [_numbers(run), f"ETA {duration(progress.eta_seconds)}"]
    return "  ".join(part for part in (*parts, _accuracies(run), note) if part)


def wait_lines(wait: Wait) -> Iterator[str]:
    """Why a run waits, each reason, and what would let it start."""
    start = "" if wait.starts_at is None else f", expected to start at {clock(wait.starts_at)}"
    if wait.position is not None:
        yield f"position {wait.position} in the queue{start}"
    yield from (f"waits: {reason.message} ({reason.token})" for reason in wait.reasons)
    yield from (f"starts now with: {what}" for what in wait.starts_if)


def attempt_lines(attempt: Attempt, *, with_log_tail: bool = False) -> Iterator[str]:
    """An attempt in a line, and one for each node: worker, slots, how it ended there."""
    begun = "" if attempt.start_step is None else f" from step {attempt.start_step}"
    seconds = "" if attempt.ended_at is None else f" after {duration(attempt.ended_at - attempt.placed_at)}"
    ended = f"{attempt.outcome}{seconds}: {attempt.reason}" if attempt.outcome else "goes on"
    yield f"attempt {attempt.number}  {clock(attempt.placed_at)}{begun}  {ended}"
    for node, member in enumerate(attempt.members):
        code = "" if member.exit_code is None else f", exit code {member.exit_code}"
        slots = ",".join(map(str, member.slots))
        first = node * attempt.ranks_per_node
        ranks = f"ranks {first}-{first + attempt.ranks_per_node - 1}" if attempt.ranks_per_node > 1 else f"rank {first}"
        why = f": {member.reason}" if member.reason else ""
        yield f"  node {node}  {member.worker} on {member.host}, slots {slots}, {ranks}  {member.state}{code}{why}"
        if with_log_tail:
            yield from (f"    | {line}" for line in member.log_tail.splitlines())


def plan_lines(plan: Plan) -> Iterator[str]:
    """A plan, one fact a line."""
    if not plan.feasible:
        yield "cannot run on the workers that there are"
    elif plan.starts_now:
        yield f"starts now on {plan.ranks} ranks: {', '.join(plan.placement or ())}"
    else:
        start = "" if plan.starts_at is None else f", expected to start at {clock(plan.starts_at)}"
        yield f"waits at position {plan.position} in the queue{start}"
    yield from (f"  {reason.message} ({reason.token})" for reason in plan.reasons)
    yield from (f"  starts now with: {what}" for what in plan.starts_if)
    yield f"{'images':<12}{'not known' if plan.num_images is None else f'{plan.num_images:,}'}"
    if plan.memory is not None:
        memory = plan.memory
        yield f"{'memory':<12}{_size(memory.total)} per rank{'' if plan.ranks is None else f' of {plan.ranks}'}, beside Python and PyTorch"
        for name in ("rows", "rows_momentum", "classifier_work", "encoder", "activations"):
            yield f"  {name.replace('_', ' '):<17}{_size(getattr(memory, name))}"
    yield f"{'duration':<12}" + ("not known: no run like it has trained yet" if plan.eta_seconds is None else duration(plan.eta_seconds))


def clock(seconds: float) -> str:
    """A Unix time as date and time of this machine."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _size(num_bytes: int | None) -> str:
    return "not known" if num_bytes is None else f"{num_bytes / 2**20:,.1f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:,.2f} GiB"


def duration(seconds: float) -> str:
    """12.3 as 0:00:12."""
    return str(timedelta(seconds=round(seconds)))


def _numbers(run: Run) -> str:
    if run.progress is None:
        return ""
    progress = run.progress
    return (
        f"loss {progress.loss:.3f}  {progress.images_per_second:,.0f} images/s  "
        f"learning rate {progress.learning_rate:.3g}  data wait {progress.data_wait:.0%}"
    )


def _accuracies(run: Run) -> str:
    known = [("kNN", run.knn), ("random encoder", run.knn_random), ("raw pixels", run.knn_pixels)]
    return "  ".join(f"{name} {value:.1f}%" for name, value in known if value is not None)
