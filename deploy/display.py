"""How a run looks while it is followed: a live panel in a terminal, else one line per change."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.lifecycle import TERMINAL, Status
from service.runs import Run

LINE_SECONDS = 3.0
"""At most one line in this time, apart from changes of status and phase."""
COLOURS = {Status.SUCCEEDED: "green", Status.FAILED: "red", Status.CANCELLED: "yellow", Status.RUNNING: "cyan"}


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
